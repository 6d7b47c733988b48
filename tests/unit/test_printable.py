"""Text of others' making never begins a line, moves a cursor or turns a line round: in the log, a problem, an error."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from cni.daemon.events import Events
from cni.daemon.log_lines import LineFormatter
from cni.daemon.problem_board import ProblemBoard
from cni.printable import one_line, printable

FORGED = "node\n2026-01-01 ERROR cni: all is lost\x1b[2K\u202e\ud800"


def test_what_cannot_be_printed_is_written_out() -> None:
    shown = printable(FORGED)
    assert shown.isprintable()
    assert shown == "node\\n2026-01-01 ERROR cni: all is lost\\x1b[2K\\u202e\\ud800"
    assert printable("Zürich ☃") == "Zürich ☃"


def test_several_lines_become_one() -> None:
    assert one_line("iptables refused:\n\n  try --help\x07\n") == "iptables refused: try --help\\x07"


@pytest.fixture
def lines() -> tuple[logging.Logger, io.StringIO]:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("zlt")
    logger.addHandler(handler)
    return logger, said


def test_a_record_is_a_line_of_the_log(lines: tuple[logging.Logger, io.StringIO]) -> None:
    logger, said = lines
    logger.warning("%s is gone", FORGED)
    logger.info("100 %% of %s", "it")
    assert said.getvalue().splitlines() == [f"WARNING {printable(FORGED)} is gone", "INFO 100 % of it"]


def test_no_line_of_a_traceback_begins_as_a_record_does(lines: tuple[logging.Logger, io.StringIO]) -> None:
    logger, said = lines
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger.error("unforeseen", exc_info=sys.exc_info())
    first, *rest = said.getvalue().splitlines()
    assert first == "ERROR unforeseen"
    assert rest and all(line.startswith("    ") and line.isprintable() for line in rest)


def test_a_problem_is_one_line() -> None:
    board = ProblemBoard(Events())
    board.note("record-refused", "x", f"the record {FORGED}")
    (problem,) = board.problems()
    assert problem.text.isprintable()
