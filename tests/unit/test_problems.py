"""The registry of problems, its page, and the board that holds those that exist."""

import logging
import re
from pathlib import Path

import pytest

from cni.daemon.events import Events
from cni.daemon.problem_board import ProblemBoard
from cni.errors import FenceFailed
from cni.problems import REGISTRY, Problem
from cni.problems.page import page

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_registry() -> None:
    assert (ROOT / "docs" / "problems.md").read_text() == page(), "python -m cni.problems > docs/problems.md"


def test_every_code_is_noted_by_the_daemon() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "cni").rglob("*.py") if path.parent.name != "problems")
    assert [code for code in REGISTRY if f'"{code}"' not in sources] == []


ELSEWHERE = {
    "dns-host-not-set": "tests/dns/test_forward_host.py::test_without_systemd_resolved_it_is_a_problem",
}
"""Tests that make a problem happen and know it by its text."""
NOT_MADE = {
    "cluster-step": "needs a fault of the program in a thread of the cluster",
    "start-incomplete": "needs a fault of the program in a step of the start: what is outside has codes of its own",
}
"""The problems that no test of a running daemon makes happen, each with the reason."""


def test_every_code_has_a_test_that_makes_it_happen() -> None:
    """A test of a running daemon names the code; a unit test does not count."""
    parts = [path for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name not in ("unit", "fakes")]
    sources = "".join(path.read_text("utf-8") for part in parts for path in part.rglob("test_*.py"))
    named = {code for code in REGISTRY if re.search(rf"""["'(=]{re.escape(code)}["')]""", sources)}
    for place in ELSEWHERE.values():
        path, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text("utf-8")
    assert REGISTRY.keys() - named - ELSEWHERE.keys() == NOT_MADE.keys()


@pytest.mark.parametrize("kind", REGISTRY.values(), ids=lambda kind: kind.code)
def test_a_row_is_whole(kind) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", kind.code)
    assert kind.severity in ("error", "warning")
    assert kind.area in ("node", "fence", "mesh", "cluster")
    assert kind.meaning.endswith(".")
    assert kind.action.endswith(".")


def test_the_log_has_a_line_at_the_beginning_and_one_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    board = ProblemBoard(Events())
    for _ in range(3):
        board.note("forwarding-off", "4", "the node does not forward IPv4")
    board.clear("forwarding-off", "4")
    board.clear("forwarding-off", "4")
    assert caplog.messages == [
        "problem=forwarding-off the node does not forward IPv4",
        "resolved=forwarding-off the node does not forward IPv4",
    ]
    assert board.problems() == []


def test_an_unregistered_code_is_refused() -> None:
    with pytest.raises(KeyError):
        ProblemBoard(Events()).note("no-such-code", "", "text")


def test_a_step_that_fails_is_a_problem_and_raises_nothing() -> None:
    board = ProblemBoard(Events())
    for error in (OSError(28, "No space left on device"), FenceFailed("refused", "by nftables"), ValueError("bug")):
        with board.step("mesh-out-of-order", "a", "the step"):
            raise error
    assert board.problems() == [Problem("mesh-out-of-order", "the step: ValueError: bug")]
    with board.step("mesh-out-of-order", "a", "the step"):
        pass
    assert board.problems() == []


def test_set_all_clears_what_is_not_named() -> None:
    board = ProblemBoard(Events())
    board.set_all("record-refused", {"a": "record a", "b": "record b"})
    board.set_all("record-refused", {"b": "record b"})
    assert [problem.text for problem in board.problems()] == ["record b"]
