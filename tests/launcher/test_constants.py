"""What the launcher's C repeats of the Python sources is the same there."""

from __future__ import annotations

import re
from pathlib import Path

from cni import plugin_protocol
from cni.plugin import config, main

LAUNCHER = Path(__file__).parents[2] / "cni/launcher"
SOURCE = "".join(path.read_text() for path in sorted(LAUNCHER.glob("*.[ch]")))


def number(name: str) -> int:
    """The value of an enumerator, which is a product of numbers."""
    (text,) = re.findall(rf"\b{name} = ([0-9 *]+),", SOURCE)
    value = 1
    for factor in text.split("*"):
        value *= int(factor)
    return value


def test_the_limits_are_the_same() -> None:
    assert number("LARGEST") == plugin_protocol.LARGEST
    assert {"runDir": number("RUN_DIR_LIMIT"), "dataDir": number("DATA_DIR_LIMIT")} == {
        key: config._LIMITS[key] for key in ("runDir", "dataDir")
    }


def test_the_verbs_and_their_deadlines_are_the_same() -> None:
    rows = re.findall(r'\{"([A-Z]+)", (\d+)\}', SOURCE)
    assert {name.encode(): int(milliseconds) / 1000 for name, milliseconds in rows} == main.DEADLINES


def test_the_variables_are_the_same() -> None:
    (block,) = re.findall(r"sent_variables\[\] = \{(.*?)\};", SOURCE, re.DOTALL)
    assert tuple(name.encode() for name in re.findall(r'"(\w+)"', block)) == plugin_protocol.VARIABLES


def test_the_words_that_decide_are_the_same() -> None:
    (block,) = re.findall(r"words\[\] = \{(.*?)\};", SOURCE, re.DOTALL)
    words = [word.replace(r"\\", "\\") for word in re.findall(r'"([^"]+)"', block)]
    assert tuple(word.encode() for word in words) == main._DECIDING_KEYS


def test_every_key_of_a_request_is_one_of_the_protocol() -> None:
    known = {value for name, value in vars(plugin_protocol).items() if name.isupper() and isinstance(value, str)}
    keys = set(re.findall(r'add_pair\(\w+, "(\w+)"', SOURCE))
    assert keys and keys <= known
    assert f'"{plugin_protocol.MAGIC.decode()}", {len(plugin_protocol.MAGIC) + 1}' in SOURCE
    assert f'send(answer->socket, "{plugin_protocol.CONFIRMATION.decode()}", 1' in SOURCE
