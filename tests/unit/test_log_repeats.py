"""Lines of the log that repeat, and the log's formats."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from cni.daemon import log_repeats
from cni.daemon.log_lines import BoundedHandler, JsonFormatter, KeyValueFormatter, LineFormatter
from cni.daemon.log_repeats import BURST, FIRST, LONGEST, MOST, Repeats

LINE = ("cni.x", logging.WARNING, "it failed")


def written(times: list[float]) -> tuple[int, list[int]]:
    """How many of the equal lines at these times are written, and the counts that are told."""
    repeats, count, told = Repeats(), 0, []
    for now in times:
        told += [left_out for _, left_out, _ in repeats.due(now)]
        count += repeats.writes(LINE, now)
    return count, told


def test_a_few_equal_lines_are_written_as_they_come() -> None:
    assert written([float(n) for n in range(BURST)]) == (BURST, [])


def test_further_ones_are_counted_and_told_when_the_time_is_over() -> None:
    count, told = written([float(n) for n in range(int(FIRST) + 1)])
    assert (count, told) == (BURST, [int(FIRST) - BURST])


def test_a_line_that_comes_every_second_for_a_day_is_written_some_30_times() -> None:
    count, told = written([float(n) for n in range(86400)])
    assert count + len(told) < 40
    assert sum(told) + count > 86400 - 2 * LONGEST


def test_no_count_is_lost_when_the_line_stops() -> None:
    repeats = Repeats()
    for n in range(20):
        repeats.writes(LINE, n / 10)
    assert repeats.due(FIRST - 1) == []
    assert [(key, count) for key, count, _ in repeats.due(FIRST + 1)] == [(LINE, 20 - BURST)]
    assert repeats.due(FIRST + 2) == []


def test_after_a_pause_it_begins_anew() -> None:
    repeats = Repeats()
    assert [repeats.writes(LINE, n / 10) for n in range(BURST + 1)][-1] is False
    assert repeats.writes(LINE, 3 * FIRST) is True


def test_different_lines_do_not_count_as_one_and_their_number_is_bounded() -> None:
    repeats = Repeats()
    assert all(repeats.writes(("cni.x", 30, f"line {n}"), 0.0) for n in range(3 * MOST))
    assert len(repeats._seen) == MOST


def test_the_handler_leaves_them_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, out, now = BoundedHandler(str(tmp_path / "log")), io.StringIO(), [0.0]
    handler.setStream(out)
    monkeypatch.setattr("cni.daemon.log_lines.time.monotonic", lambda: now[0])
    log = logging.Logger("cni.y")
    log.addHandler(handler)
    for _ in range(8):
        log.warning("it failed %s", "again")
    now[0] = FIRST
    log.warning("something else")
    lines = out.getvalue().splitlines()
    assert lines == ["it failed again"] * BURST + ["it failed again (and 3 more times in 60 s)", "something else"]
    assert log_repeats.BURST == 5


def record(message: str, *, fields: dict[str, str] | None = None, failed: bool = False) -> logging.LogRecord:
    made = logging.LogRecord("cni.x", logging.ERROR, "", 0, message, None, None)
    made.created, made.msecs = 1700000000.25, 250.0
    if fields is not None:
        made.fields = fields
    if failed:
        made.exc_info = (ValueError, ValueError("bad\nvalue"), None)
    return made


def test_logfmt() -> None:
    line = KeyValueFormatter().format(record('a "quoted" text\nand more'))
    assert line == ('time=2023-11-14T22:13:20.250Z level=error logger=cni.x msg="a \\"quoted\\" text\\nand more"')
    line = KeyValueFormatter().format(record("x", fields={"verb": "ADD", "code": "0"}))
    assert line.endswith("logger=cni.x verb=ADD code=0")
    assert "\n" not in KeyValueFormatter().format(record("x", failed=True))


def test_json() -> None:
    line = JsonFormatter().format(record("é\n", failed=True))
    assert line.isascii()
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["msg"]) == ("error", "cni.x", "é\n")
    assert found["traceback"] == "ValueError: bad\nvalue"
    assert json.loads(JsonFormatter().format(record("x", fields={"problem": "a-b", "text": "t"})))["problem"] == "a-b"


def test_text_is_as_it_was() -> None:
    text = LineFormatter("%(levelname)s %(name)s: %(message)s").format(record("x", fields={"verb": "ADD"}))
    assert text == "ERROR cni.x: x"
