"""Watches the daemon's threads: starts a thread that ended again, reports a thread that hangs, and replaces the daemon
when the thread goes on hanging.

A hanging thread cannot be ended from outside, and may hold locks. After `REPLACE` seconds the process therefore
executes its own program again. The process id stays, so a service manager still tracks the daemon. Records are on disk
before they take effect, and links, tables and engines stay, so no packet is lost (docs/reliability.md).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cni.daemon.problem_board import ProblemBoard
from cni.host.worker import Crew, Pulse, Worker

log = logging.getLogger(__name__)

TICK = 1.0  # seconds between two checks
LATE = 15.0  # seconds that a heartbeat may be overdue before the thread counts as hanging
REPLACE = 60.0  # seconds that a heartbeat may be overdue before the daemon replaces itself
STOPPED = 5.0  # seconds: a check later than this means that the whole process was stopped (SIGSTOP, a frozen machine)
AGAIN = 5.0  # seconds between two starts of a thread that keeps ending
SETTLED = 60.0  # seconds after which a restarted thread counts as healthy and its problem is cleared


@dataclass(frozen=True)
class Verdict:
    """The actions of one check: threads to start, threads to report, and the thread that the daemon is replaced for
    ("" for none)."""

    start: tuple[str, ...] = ()
    hangs: tuple[str, ...] = ()
    replace: str = ""


def judge(pulses: list[Pulse], started: dict[str, float], now: float) -> Verdict:
    """The actions that the threads' state calls for. Pure. `started`: when threads were started again, by name. Times
    are seconds of the monotonic clock."""
    ended = [pulse.name for pulse in pulses if pulse.ended and now - started.get(pulse.name, now - AGAIN) >= AGAIN]
    overdue = {pulse.name: now - pulse.due for pulse in pulses if not pulse.ended}
    hangs = tuple(name for name, seconds in overdue.items() if seconds >= LATE)
    worst = max(hangs, key=lambda name: overdue[name], default="")
    return Verdict(tuple(ended), hangs, worst if worst and overdue[worst] >= REPLACE else "")


class Supervisor:
    """Watches the threads of one process, in a thread of its own."""

    def __init__(
        self, crew: Crew, board: ProblemBoard, replace: Callable[[str], None], alive: Callable[[], None]
    ) -> None:
        """`replace` is called with the reason when the daemon must be replaced, and returns only on failure; `alive`
        is called at every check at which no thread hangs."""
        self._crew, self._board, self._replace, self._alive = crew, board, replace, alive
        self._stop = threading.Event()
        self._last_check = time.monotonic()
        self._started: dict[str, float] = {}
        self._reported: set[str] = set()
        self._own = Worker("supervisor", self._run)

    def start(self) -> None:
        """Start watching."""
        self._last_check = time.monotonic()
        self._own.start()

    def stop(self) -> None:
        """Stop watching: the threads are about to end."""
        self._own.retire()
        self._stop.set()

    def check(self) -> None:
        """Start the supervisor's own thread again if it ended. Called regularly by another thread."""
        if self._own.pulse().ended:
            log.error("the thread supervisor ended: starting it again")
            self._own.start()

    def _run(self) -> None:
        while not self._stop.wait(TICK):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Check every thread once. `now`: seconds of the monotonic clock."""
        workers = {worker.name: worker for worker in self._crew.all()}
        if now - self._last_check > STOPPED:
            for worker in workers.values():
                worker.forgive(now)
        self._last_check = now
        pulses = [worker.pulse() for worker in workers.values()]
        verdict = judge(pulses, self._started, now)
        reasons = {pulse.name: pulse.failure for pulse in pulses}
        for name in verdict.start:
            self._board.note("thread-ended", name, f"the thread {name} ended and was started again: {reasons[name]}")
            self._started[name] = now
            workers[name].start()
        for name, since in list(self._started.items()):
            if now - since >= SETTLED and name not in verdict.start:
                del self._started[name]
                self._board.clear("thread-ended", name)
        self._report(verdict, workers)
        if verdict.replace:
            where = workers[verdict.replace].where()
            self._replace(f"the thread {verdict.replace} gave no sign of life for {REPLACE:.0f} s (at {where})")
        elif not verdict.hangs:
            self._alive()

    def _report(self, verdict: Verdict, workers: dict[str, Worker]) -> None:
        for name in set(verdict.hangs) - self._reported:
            log.error("the thread %s hangs at %s", name, workers[name].where())
        self._reported = set(verdict.hangs)
        text = f"gives no sign of life; the daemon replaces itself when that lasts {REPLACE:.0f} s"
        self._board.set_all("thread-hangs", {name: f"the thread {name} {text}" for name in verdict.hangs})
