"""docs/cni-socket.md names every constant of the CNI socket's protocol, and cni/ writes none of them a second time."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from cni import plugin_protocol
from cni.daemon.api import cni_socket
from cni.plugin import client

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/cni-socket.md").read_text("utf-8")
PROTOCOL = ROOT / "cni/plugin_protocol.py"
KEYS = {value for value in vars(plugin_protocol).values() if isinstance(value, str) and value.isupper()}
ARGUMENTS = {"SRC", "DST", "PORT", "DRY_RUN", "PEER", "TOKEN"}
"""Keys that are ordinary words elsewhere: heads of tables, names of options."""


def test_every_key_has_a_row_and_every_row_a_key() -> None:
    table = PAGE.split("| key | sent by |")[1].split("\n\n")[0]
    rows = {key for row in table.splitlines()[2:] for key in re.findall(r"`([^`]+)`", row.split(" | ")[0])}
    assert rows == KEYS


def test_the_frame_is_as_documented() -> None:
    assert f"`{plugin_protocol.MAGIC.decode()}` NUL" in PAGE
    assert f"at most {plugin_protocol.LARGEST} bytes" in PAGE
    assert (
        f"`{plugin_protocol.CONFIRMATION.decode()}`, from the plugin, if the request had `{plugin_protocol.CONFIRMS}`"
        in PAGE
    )
    assert f"/{plugin_protocol.SOCKET_NAME}`" in PAGE
    listed = re.findall(r"`(CNI_[A-Z_]+)`", PAGE)
    assert tuple(name.encode() for name in listed) == plugin_protocol.VARIABLES
    assert cni_socket.PATIENCE == 10.0, "the page says ten seconds"


def test_what_the_plugin_writes_the_daemon_reads() -> None:
    variables, keys = {b"CNI_COMMAND": b"ADD", b"CNI_ARGS": b"A=\xff;B="}, {plugin_protocol.ATTEMPT: b"0f" * 16}
    request = cni_socket.parse(client.request(variables, keys, b"{}\0\0x"), None, lambda: True)
    assert request is not None
    assert request.env == {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=\udcff;B=", "ATTEMPT": "0f" * 16}
    assert request.stdin == b"{}\0\0x"


def test_the_launcher_writes_the_same() -> None:
    """The launcher is C, so it has the constants a second time."""
    folder = ROOT / "cni/launcher"
    source = "".join(path.read_text() for path in sorted(folder.glob("*.[ch]")))
    keys = set(re.findall(r'add_pair\(body, "(\w+)"', source))
    assert keys <= KEYS - ARGUMENTS
    assert plugin_protocol.ATTEMPT in keys
    listed = re.findall(r'"(CNI_[A-Z_]+)"', source.split("CNI_COMMAND", 1)[1].split("}", 1)[0])
    assert ("CNI_COMMAND", *listed) == tuple(name.decode() for name in plugin_protocol.VARIABLES)
    assert f'"{plugin_protocol.MAGIC.decode()}", {len(plugin_protocol.MAGIC) + 1})' in source
    assert f"/{plugin_protocol.SOCKET_NAME}" in source
    (largest,) = re.findall(r"LARGEST = (\d+) \* 1024 \* 1024", source)
    assert int(largest) << 20 == plugin_protocol.LARGEST


def written_again(source: str) -> list[str]:
    """The keys and constants of the protocol that a source has as literals."""
    ours = (KEYS - ARGUMENTS) | {plugin_protocol.MAGIC, plugin_protocol.MAGIC + b"\0", plugin_protocol.SOCKET_NAME}
    ours |= {key.encode() for key in KEYS - ARGUMENTS}
    return [
        repr(node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and node.value in ours
    ]


def test_no_other_module_writes_them() -> None:
    again = {str(path.relative_to(ROOT)): written_again(path.read_text()) for path in (ROOT / "cni").rglob("*.py")}
    del again[str(PROTOCOL.relative_to(ROOT))]
    assert {path: literals for path, literals in again.items() if literals} == {}


def test_a_second_literal_is_seen() -> None:
    assert written_again('x = env.get("ATTEMPT", "")\ny = b"zcni1\\0"') == ["b'zcni1\\x00'", "'ATTEMPT'"]


def test_the_daemon_reads_the_tools_arguments_by_their_constants() -> None:
    for path in (ROOT / "cni/daemon/api").glob("*.py"):
        literals = set(re.findall(r"env(?:\.get\(|\[)\"\w+\"", path.read_text()))
        assert [literal for literal in literals if '"CNI_' not in literal] == [], path
