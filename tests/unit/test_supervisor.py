"""What to do with threads that ended or hang; and the looks of a supervisor at real ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cni.daemon import supervisor
from cni.daemon.events import Events
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.supervisor import AGAIN, LATE, REPLACE, SETTLED, STOPPED, Supervisor, Verdict, judge
from cni.host.worker import Crew, Pulse, beat

NOW = 1000.0


def test_threads_that_beat_in_time_need_nothing() -> None:
    assert judge([Pulse("a", NOW + 5), Pulse("b", NOW - LATE + 1)], {}, NOW) == Verdict()


def test_an_ended_thread_is_started_at_once_and_then_not_too_often() -> None:
    ended = [Pulse("a", NOW, True)]
    assert judge(ended, {}, NOW).start == ("a",)
    assert judge(ended, {"a": NOW - AGAIN + 1}, NOW).start == ()
    assert judge(ended, {"a": NOW - AGAIN}, NOW).start == ("a",)


def test_a_late_thread_hangs_and_the_latest_ends_the_daemon() -> None:
    late = [Pulse("a", NOW - LATE), Pulse("b", NOW - LATE - 1)]
    assert judge(late, {}, NOW) == Verdict(hangs=("a", "b"))
    assert judge([*late, Pulse("c", NOW - REPLACE)], {}, NOW) == Verdict(hangs=("a", "b", "c"), replace="c")


def test_an_ended_thread_does_not_hang_as_well() -> None:
    assert judge([Pulse("a", NOW - REPLACE, True)], {}, NOW) == Verdict(start=("a",))


class Watched:
    """A supervisor with its board, and what it was told to do."""

    def __init__(self) -> None:
        self.crew, self.board = Crew(), ProblemBoard(Events())
        self.replaced: list[str] = []
        self.alive = 0
        self.supervisor = Supervisor(self.crew, self.board, self.replaced.append, self._count)
        self.over = threading.Event()

    def _count(self) -> None:
        self.alive += 1

    def codes(self) -> list[str]:
        return [problem.code for problem in self.board.problems()]

    def worker(self, name: str, work: Callable[[], None]) -> None:
        self.crew.worker(name, work).start()


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.over.set()


def until(what: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_thread_that_raises_is_told_and_started_again(watched: Watched) -> None:
    runs: list[int] = []

    def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("of no use")
        watched.over.wait()

    watched.worker("once", work)
    until(lambda: watched.crew.all()[0].pulse().ended)
    now = time.monotonic()
    watched.supervisor.look(now)
    assert [problem.text for problem in watched.board.problems()] == [
        "the thread once ended and was started again: ValueError: of no use"
    ]
    until(lambda: len(runs) == 2)
    watched.supervisor._last_check = now + SETTLED
    watched.supervisor.look(now + SETTLED)
    assert "thread-ended" not in watched.codes()


def test_a_thread_that_was_told_to_end_is_not_missed(watched: Watched) -> None:
    worker = watched.crew.worker("over", lambda: None)
    worker.start()
    worker.retire()
    worker.join(5)
    watched.supervisor.look(time.monotonic())
    assert watched.codes() == []


def test_a_worker_that_has_not_begun_is_not_missed(watched: Watched) -> None:
    watched.crew.worker("later", lambda: None)
    watched.supervisor._last_check = time.monotonic() + 1000
    watched.supervisor.look(time.monotonic() + 1000)
    assert watched.codes() == []


def test_a_thread_that_hangs_is_told_and_then_the_daemon_is_replaced(watched: Watched) -> None:
    begun = threading.Event()

    def work() -> None:
        begun.set()
        watched.over.wait()

    watched.worker("stuck", work)
    assert begun.wait(5)
    now = time.monotonic()
    watched.supervisor._last_check = now + LATE
    watched.supervisor.look(now + LATE + 1)
    assert watched.codes() == ["thread-hangs"]
    assert not watched.replaced
    assert watched.alive == 0
    watched.supervisor._last_check = now + REPLACE
    watched.supervisor.look(now + REPLACE + 1)
    assert "stuck" in watched.replaced[0]
    assert "test_supervisor.py" in watched.replaced[0], "where it hangs"


def test_an_announced_wait_is_no_hang(watched: Watched) -> None:
    waiting = threading.Event()

    def work() -> None:
        beat(600)
        waiting.set()
        watched.over.wait()

    watched.worker("patient", work)
    waiting.wait(5)
    now = time.monotonic()
    watched.supervisor._last_check = now + 500
    watched.supervisor.look(now + 500)
    assert watched.codes() == []
    assert watched.alive == 1


def test_a_daemon_that_was_stopped_as_a_whole_is_not_replaced(watched: Watched) -> None:
    watched.worker("stuck", lambda: watched.over.wait() and None)
    now = time.monotonic()
    watched.supervisor.look(now)
    watched.supervisor.look(now + REPLACE + STOPPED)
    assert watched.codes() == []
    assert not watched.replaced


def test_the_supervisor_itself_is_started_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "TICK", 0.01)
    looks: list[float] = []

    def fail(now: float) -> None:
        looks.append(now)
        if len(looks) == 1:
            raise ValueError("once")

    monkeypatch.setattr(watched.supervisor, "look", fail)
    watched.supervisor.start()
    until(lambda: watched.supervisor._own.pulse().ended)
    watched.supervisor.check()
    until(lambda: len(looks) > 2)
    watched.supervisor.stop()
