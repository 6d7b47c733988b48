"""docs/protocol.md is held to the code: its tables miss nothing of the protocol, and what they name is there.

A test that a cell names must exist and must speak of what the row is about: by the name of the wire type, or of a
method of the row's, in its own text or in a helper or table of its file that it uses.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.daemon import operations
from cni.overlay import wire
from cni.overlay.manager import OverlayManager
from tests.unit.fake_overlayd import FakeOverlayd

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/protocol.md").read_text("utf-8")
FILES = {
    "manager": "tests/unit/test_manager.py",
    "client": "tests/unit/test_client.py",
    "news": "tests/unit/test_news.py",
    "static": "tests/mesh/test_static.py",
    "socket": "tests/unit/test_overlay_socket.py",
    "op": "tests/unit/test_operations.py",
    "agents": "tests/kernel/test_overlay_agents.py",
    "upstream": "tests/interop/test_upstream_client.py",
    "step": "tests/interop/scenario.py",
}
HELPERS = ("tests/kernel/overlayd.py", "tests/interop/daemons.py")
"""Files whose helpers the tests above call."""
COLUMNS = ["client tested by", "server tested by", "interop"]

Row = dict[str, str]


def tag(kind: type) -> str:
    """A wire type's name on the wire."""
    return str(kind.__struct_config__.tag)  # type: ignore[attr-defined]


def table(first: str) -> dict[str, Row]:
    """The rows of the table whose first column has that head, by what the first column says."""
    lines = iter(PAGE.splitlines())
    head = next(line for line in lines if line.startswith(f"| {first} |"))
    next(lines)
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        row = dict(zip(cells(head), cells(line), strict=True))
        rows[row[first].strip("`")] = row
    return rows


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def code(cell: str) -> list[str]:
    """What a cell has between backticks."""
    return re.findall(r"`([^`]+)`", cell)


KINDS = {
    first: {tag(kind): kind for kind in typing.get_args(union)}
    for first, union in (("operation", wire.AnyRequest), ("result", wire.AnyReply), ("event", wire.AnyEvent))
}
ROWS = [(first, name, row) for first in KINDS for name, row in table(first).items()]
every_row = pytest.mark.parametrize(("first", "name", "row"), ROWS, ids=[f"{first} {name}" for first, name, _ in ROWS])


@pytest.mark.parametrize(("first", "count"), [("operation", 26), ("result", 12), ("event", 2)])
def test_nothing_of_the_protocol_is_missing(first: str, count: int) -> None:
    assert len(KINDS[first]) == count
    assert list(table(first)) == list(KINDS[first])


@every_row
def test_no_cell_is_empty(first: str, name: str, row: Row) -> None:
    for column, cell in row.items():
        assert code(cell) or re.fullmatch(r"none: .+", cell), f"{first} {name}: {column}: {cell!r}"


@every_row
def test_the_methods_named_exist(first: str, name: str, row: Row) -> None:
    for method in code(row.get("client") or row["taken by"]):
        if method not in ("on_event", "Refused"):
            assert callable(getattr(OverlayManager, method)), f"{first} {name}: {method}"


@pytest.mark.parametrize("name", KINDS["operation"])
def test_the_function_named_is_the_one_that_answers(name: str) -> None:
    answers = operations.OPERATIONS[KINDS["operation"][name]]
    module = answers.__module__.rpartition(".")[2]
    assert code(table("operation")[name]["our daemon"])[0] == f"{module}.{answers.__name__}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", ["result", "event"])
def test_the_givers_named_exist(first: str) -> None:
    for name, row in table(first).items():
        for giver in code(row["given by"]):
            module, *path = giver.split(".")
            place = {"operations": "cni.daemon.operations", "peer_events": "cni.daemon.mesh.peer_events"}
            found: object = importlib.import_module(place.get(module, f"cni.daemon.operations.{module}"))
            for part in path:
                found = getattr(found, part)
            assert callable(found), f"{first} {name}: {giver}"


@every_row
def test_the_tests_named_exist_and_speak_of_it(first: str, name: str, row: Row) -> None:
    kind = KINDS[first][name]
    words = {kind.__name__, name, *code(row.get("client") or row["taken by"])}
    spoken = re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)
    for column in COLUMNS:
        for place in code(row[column]):
            file, _, test = place.replace("step:", "step::").partition("::")
            assert file in FILES, f"{first} {name}: {place}"
            source = definitions(FILES[file]).get(test)
            assert source is not None, f"{first} {name}: {place} does not exist"
            assert test.startswith("test_") or file == "step", f"{first} {name}: {place} is no test"
            assert any(map(spoken.search, used_by(source, FILES[file]))), (
                f"{first} {name}: {place} does not speak of any of {sorted(words)}"
            )


@functools.cache
def definitions(path: str) -> dict[str, str]:
    """The functions, methods and tables of a file, by name, decorators included."""
    text = (ROOT / path).read_text("utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    found: dict[str, str] = {}
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name):
            found[target.id] = ast.get_source_segment(text, statement) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


def used_by(source: str, path: str) -> Iterator[str]:
    """A test's text, the helpers and tables of its file that it names and what those name, and helpers of HELPERS."""
    known: dict[str, list[str]] = {}
    for file in (path, *HELPERS):
        for name, text in definitions(file).items():
            if not name.startswith("test_"):
                known.setdefault(name, []).append(text)
    seen, fresh = {source}, [source]
    while fresh:
        named = set(re.findall(r"\w+", fresh.pop())) & set(known)
        fresh += [text for name in named for text in known[name] if text not in seen]
        seen.update(fresh)
    yield from seen


def test_the_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, one after the other, in front of a fake: what is printed is what the comments say."""
    fake = FakeOverlayd(tmp_path / "o.sock", "zlayer-cni/1.0").start()
    script = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    assert script.count("overlay.") > 10
    space: dict[str, typing.Any] = {"pid": 4242}
    try:
        exec(compile(script.replace("/var/run/zlayer-overlayd.sock", fake.path), "docs/protocol.md", "exec"), space)
        space["overlay"].close()
    finally:
        fake.stop()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "zl-prod-42-g 10.200.0.17"
    assert printed[1].startswith("no service bridge for service no-such-service; call ")
    assert space["token"].startswith("zledge1.")
    assert (fake.peers, fake.edges, fake.attached) == ({}, {}, {})
