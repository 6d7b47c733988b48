"""The launcher's reader of a configuration (cni/launcher/location.c) beside the Python plugin's: it never finds another
daemon than Python would. Compiled with the address and the undefined-behaviour sanitizer.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.errors import CniError
from cni.plugin import config, main

HERE = Path(__file__).parent
LAUNCHER = HERE.parents[1] / "cni/launcher"
DEFAULT = ("/run/zlayer-cni", "/var/lib/zlayer-cni")
SEED = 20261130


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program, compiled."""
    program = tmp_path_factory.mktemp("launcher") / "read_locations"
    flags = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    flags += ["-fno-sanitize-recover=all", "-o", str(program)]
    subprocess.run(["gcc", *flags, str(HERE / "read_locations.c"), str(LAUNCHER / "location.c")], check=True)
    return program


def read(reader: Path, configs: list[bytes]) -> list[tuple[str, str] | None]:
    """What the launcher finds in each configuration: run and data directory, or None for a case for Python."""
    frames = b"".join(struct.pack("=I", len(config)) + config for config in configs)
    done = subprocess.run([reader], input=frames, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(configs)
    return [tuple(line.split("\t")[1:]) if line.startswith("1") else None for line in lines]  # type: ignore[misc]


def expected(stdin: bytes) -> tuple[str, str] | None:
    """The daemon that the Python plugin asks; None if it raises an error, or serves the call without one."""
    if not main._may_decide(stdin):
        return DEFAULT
    try:
        location = config.place(stdin, b"ADD")
    except CniError:
        return None
    return None if location.foreign else (location.run_dir, location.data_dir)


def judge(reader: Path, configs: list[bytes]) -> int:
    """Compare both readers; returns how many configurations the launcher read itself."""
    results = read(reader, configs)
    for stdin, result in zip(configs, results, strict=True):
        assert result is None or result == expected(stdin), stdin
    return sum(result is not None for result in results)


PLAIN = [
    b"{}",
    b"",
    b"not json",
    b'{"runDir":"/run/a"}',
    b' {"name":"n","runDir":"/run/a","dataDir":"/var/b","autostart":true,"more":[1,-2.5e3,{"x":null}]} \n',
    b'{"RUNDIR":"/run/a"}',
    b'{"runDir":null,"dataDir":""}',
    b'{"args":{"runDir":"/x"},"runDir":"/run/a"}',
    b'{"more":"\\u00fc \\"","runDir":"/run/a"}',
]
FOR_PYTHON = [
    b'{"runDir":"/run/a/"}',
    b'{"runDir":"/run//a"}',
    b'{"runDir":"/run/../a"}',
    b'{"runDir":"run"}',
    b'{"runDir":5}',
    b'{"runDir":"/run/a","rundir":"/run/b"}',
    b'{"\\u0072unDir":"/run/a"}',
    b'{"runDir":"/run/\\u0061"}',
    b'{"runDir":"/run/a"',
    b'{"runDir":"/run/a"} x',
    b'{"runDir":"/run/a",}',
    b'{"runDir":"/run/a","x":NaN}',
    b'{"runDir":"/run/a","x":01}',
    b'{"runDir":"/run/a","x":1.}',
    b'{"runDir":"/run/a","x":"\x01"}',
    '{"runDir":"/run/a","x":"\u00fc"}'.encode(),
    b'{"runDir":"/run/a","x":"\xff"}',
    b'{"runDir":"/run/a","x":' + b"[" * 100 + b"]" * 100 + b"}",
    b'{"runDir":"/run/a","x":' + b"9" * 5000 + b"}",
    b'{"runDir":"/' + b"a" * 80 + b'"}',
    b'{"overlayd":{"socket":"/run/x.sock"}}',
    b'{"autostart":"yes","runDir":"/run/a"}',
    b'["runDir"]',
    b'"runDir"',
]


@pytest.mark.parametrize("stdin", PLAIN)
def test_a_plain_configuration_is_read(reader: Path, stdin: bytes) -> None:
    assert read(reader, [stdin]) == [expected(stdin)] != [None]


@pytest.mark.parametrize("stdin", FOR_PYTHON)
def test_every_other_configuration_is_left_to_python(reader: Path, stdin: bytes) -> None:
    assert read(reader, [stdin]) == [None]


KEYS = st.sampled_from(
    ["runDir", "rundir", "dataDir", "DATADIR", "autostart", "overlayd", "name", "x", "\u017f", "\u212a"]
)
PATHS = st.sampled_from(["/run/a", "/var/lib/b", "/a/", "/a//b", "/a/./b", "a", "", "/" + "c" * 90, "/d\u00fc", "/e f"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | PATHS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.tuples(KEYS, VALUES), max_size=6)


@settings(max_examples=25)
@given(st.lists(st.tuples(OBJECTS, st.booleans()), min_size=40, max_size=80))
def test_generated_configurations_are_read_as_python_reads_them(
    reader: Path, drawn: list[tuple[list[tuple[str, object]], bool]]
) -> None:
    def text(pairs: list[tuple[str, object]], ascii_only: bool) -> bytes:
        members = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=ascii_only)}" for key, value in pairs)
        return f"{{{', '.join(members)}}}".encode("utf-8", "surrogatepass")

    judge(reader, [text(*each) for each in drawn])


def test_mutated_configurations_are_read_as_python_reads_them(reader: Path) -> None:
    """20,000 configurations in which a few bytes are changed, removed, repeated or moved."""
    rng = random.Random(SEED)
    seeds = [*PLAIN, *FOR_PYTHON]
    configs = []
    for _ in range(20_000):
        config_bytes = bytearray(rng.choice(seeds)[:400])
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(config_bytes) + 1)
            kind = rng.randrange(4)
            if kind == 0:
                config_bytes[at:at] = rng.choice(
                    (b"{", b"}", b'"', b"\\", b",", b":", b"/", b"\0", b"\x80", b" ", b"runDir")
                )
            elif kind == 1:
                del config_bytes[at : at + rng.randint(1, 5)]
            elif kind == 2 and at < len(config_bytes):
                config_bytes[at] ^= 1 << rng.randrange(8)
            else:
                config_bytes[at:at] = config_bytes[at : at + rng.randint(1, 12)]
        configs.append(bytes(config_bytes))
    assert judge(reader, configs) > 2_000  # the comparison is of both readers, not of one that always gives up
