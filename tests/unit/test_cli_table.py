"""docs/cli.md has a row for every field that a command prints with `--json`, and no other."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cni import answers
from cni.cli import table
from cni.daemon.api import tool

PAGE = (Path(__file__).resolve().parents[2] / "docs/cli.md").read_text("utf-8")
COMMANDS: dict[str, object] = {
    "status": answers.Status,
    "attachments": list[answers.Attachment],
    "networks": answers.Networks,
    "drops": answers.DroppedPacket,
    "connectivity test": answers.Connectivity,
    "trace": answers.Trace,
    "plan": list[answers.Plan],
    "version": answers.Versions,
    "explain": list[answers.Explanation],
    "why": answers.Reachability,
    "resolve": answers.Resolution,
    "gc": answers.Garbage,
    "peers": list[answers.Peer],
    "peer gone": list[answers.DepartedNode],
    "peer forget": answers.DepartedNode,
    "peer token": answers.Token,
    "peer rotate": answers.RotatedKey,
    "peer remove": answers.RemovedPeer,
    "join": answers.Joined,
    "showconf": answers.PeerConfiguration,
    "graph": answers.Graph,
    "log-level": answers.LogLevel,
    "netcheck": answers.Netcheck,
    "ping": list[answers.Ping],
}
"""The answer that a command prints."""
QUESTIONS = {"peer token": "token", "teardown": "teardown"}
"""The request of a command, where it is not the command's words with a hyphen."""
OF_THE_TOOL = {"connectivity test", "trace", "plan", "version", "explain"}
"""The commands that no single request of the daemon answers."""
SAME = {"peers[]": answers.Peer}
"""A list whose objects another command's table describes."""


def paths(kind: object, prefix: str = "") -> Iterator[str]:
    """`a`, `a.b`, `a[].b`: the leaves of an answer by their names in JSON."""
    arguments = [argument for argument in typing.get_args(kind) if argument is not types.NoneType]
    if typing.get_origin(kind) is list:
        if SAME.get(f"{prefix}[]") is arguments[0]:
            yield f"{prefix}[]"
            return
        is_of_values = not isinstance(arguments[0], type) or not issubclass(arguments[0], msgspec.Struct)
        yield from paths(arguments[0], prefix if is_of_values or not prefix else f"{prefix}[]")
    elif arguments:
        yield from paths(arguments[0], prefix)
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            yield from paths(field.type, f"{prefix}.{field.encode_name}" if prefix else field.encode_name)
    else:
        yield prefix


def documented() -> dict[str, list[str]]:
    """The fields in the tables of docs/cli.md, by command."""
    tables: dict[str, list[str]] = {}
    for head, body in re.findall(
        r"^\| fields? of (.+?) \| meaning \|\n\| --- \| --- \|\n((?:\|.*\n?)+)", PAGE, re.MULTILINE
    ):
        names = [name for row in body.splitlines() for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
        for command in re.findall(r"`([a-z -]+) --json`", head):
            tables[command] = names
    return tables


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_has_a_row_and_every_row_a_field(command: str) -> None:
    names = documented()[command]
    assert sorted(names) == sorted(set(paths(COMMANDS[command])))


def test_every_request_of_the_tool_has_a_command() -> None:
    of_commands = {
        QUESTIONS.get(command, command.replace(" ", "-")) for command in COMMANDS if command not in OF_THE_TOOL
    }
    assert of_commands | {"teardown"} == set(tool.QUESTIONS)
    assert set(documented()) == set(COMMANDS)


def test_the_paths_of_an_answer() -> None:
    assert {"wireguard.note", "services[].bridge", "notes"} <= set(paths(answers.Status))
    assert {"paths[].from.kind", "port.number", "paths[].notes"} <= set(paths(answers.Reachability))


def test_a_status_of_an_earlier_daemon_is_understood() -> None:
    """The fields of the commit before this type; a field of a later version is ignored."""
    earlier = b"""{"version": "0", "pid": 7, "uptime_seconds": 1.0, "run_dir": "/r", "data_dir": "/d", "node":
    {"deployment": "d", "instance_id": "i", "node_id": 1, "cluster_cidrs": [], "slice_cidr": null}, "mtu": 1420,
    "wireguard": {"interface": null, "peers": 0}, "fence": {"in_force": true, "trouble": ""}, "services": [],
    "attachments": 0, "unfinished": 0, "problems": ["x"], "of a later version": 1}"""
    status = msgspec.json.decode(earlier, type=answers.Status)
    assert (status.problem_details, status.notes, status.problems) == (None, [], ["x"])
    assert msgspec.json.decode(earlier, type=answers.Running) == answers.Running(version="0", pid=7)


def test_control_characters_are_escaped_at_any_depth() -> None:
    rule = answers.Rule(name="a\x1b[2J", family="inet", chain="c")
    assert table.escape_control([rule]) == [answers.Rule(name="a\\x1b[2J", family="inet", chain="c")]
