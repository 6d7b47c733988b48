"""Named threads with a heartbeat, and the crew: all such threads of a process.

A thread reports by `beat` that it is alive, and how long it may take until the next beat: a long wait is announced.
`cni/daemon/supervisor.py` checks the crew, restarts a thread that has ended, and reports a thread whose beat is
overdue.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

IDLE = 10.0  # seconds that a thread without work waits between two beats
_TASKS = Path("/proc/self/task")
_here = threading.local()


@dataclass(frozen=True)
class Pulse:
    """The state of one thread. `due`: the time of its next beat, on the monotonic clock in seconds; `ended`: the thread
    has ended without being told to, for the reason `failure`."""

    name: str
    due: float
    ended: bool = False
    failure: str = ""


class Worker:
    """One thread of a crew. `start` starts it, and restarts it after it ended. Safe from any thread."""

    def __init__(self, name: str, work: Callable[[], None] | None) -> None:
        """`work` returns when the thread is told to end. None: the worker represents an existing thread."""
        self.name = name
        self._work = work
        self._thread: threading.Thread | None = None
        self._due: float | None = None  # None: it has not begun
        self._told_to_end = False
        self._failure = ""

    def start(self) -> None:
        """Run `work` in a new thread. Must not be called while the previous thread runs."""
        self._failure = ""
        self.beat()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def retire(self) -> None:
        """Note that the thread is about to be told to end: its end is then not reported."""
        self._told_to_end = True

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` for the end of the thread, if it was started."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(seconds)

    def beat(self, allow: float = 0.0) -> None:
        """Report that the thread is alive; the next beat is due in `allow` seconds. The supervisor reports a thread
        only some time after its beat was due."""
        self._due = time.monotonic() + allow

    def forgive(self, now: float) -> None:
        """Move a due time before `now` (monotonic clock) to `now`: the whole process was stopped meanwhile."""
        self._due = max(self._due or now, now)

    def pulse(self) -> Pulse:
        """The present state of the thread."""
        ended = self._thread is not None and not self._told_to_end and not self._is_there()
        return Pulse(self.name, self._due or 0.0, ended, self._failure or "it returned")

    def where(self) -> str:
        """The call stack of the thread, innermost call last; empty if it is unknown."""
        frame = sys._current_frames().get(self._thread.ident or 0) if self._thread is not None else None
        steps = traceback.extract_stack(frame)[-8:] if frame is not None else []
        return " > ".join(f"{Path(step.filename).name}:{step.lineno} {step.name}" for step in steps)

    def _is_there(self) -> bool:
        """Whether the thread runs. Python does not notice that the kernel has ended a thread."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            return False
        return thread.native_id is None or not _TASKS.is_dir() or (_TASKS / str(thread.native_id)).is_dir()

    def _run(self) -> None:
        assert self._work is not None
        _here.worker = self
        with contextlib.suppress(OSError):  # for top and gdb: Python names no thread to the kernel before 3.14
            (_TASKS / str(threading.get_native_id()) / "comm").write_text(self.name[:15])
        try:
            self._work()
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            log.exception("the thread %s ended", self.name)


class Crew:
    """The threads of one process. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: list[Worker] = []

    def worker(self, name: str, work: Callable[[], None] | None) -> Worker:
        """Add a worker, not started."""
        made = Worker(name, work)
        with self._lock:
            self._workers.append(made)
        return made

    def all(self) -> list[Worker]:
        """Every worker that has started and was not told to end."""
        with self._lock:
            self._workers = [worker for worker in self._workers if not worker._told_to_end]
            return [worker for worker in self._workers if worker._due is not None]


def beat(allow: float = 0.0) -> None:
    """`Worker.beat` of the calling thread; does nothing for a thread that belongs to no crew."""
    worker: Worker | None = getattr(_here, "worker", None)
    if worker is not None:
        worker.beat(allow)
