"""Named threads with a heartbeat, and the crew that knows all of a process's.

A thread says that it is alive by `beat`, and how long it may be before it says so again: a wait that is meant to last
is announced. `cni/daemon/supervisor.py` looks at the crew, starts a thread again that ended, and tells of one that does
not beat any more.
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

IDLE = 10.0  # seconds for which a thread without work waits before it beats again
_TASKS = Path("/proc/self/task")
_here = threading.local()


@dataclass(frozen=True)
class Pulse:
    """One thread at one moment. `due`: when its next beat is due, on the monotonic clock; `ended`: it is gone though
    it was not told to end, for the reason `failure`."""

    name: str
    due: float
    ended: bool = False
    failure: str = ""


class Worker:
    """One thread of a crew. `start` starts it, also again after it ended. Safe from any thread."""

    def __init__(self, name: str, work: Callable[[], None] | None) -> None:
        """`work` returns when the thread is told to end. None: the beats are those of a thread that exists already."""
        self.name = name
        self._work = work
        self._thread: threading.Thread | None = None
        self._due: float | None = None  # None: it has not begun
        self._told_to_end = False
        self._failure = ""

    def start(self) -> None:
        """Begin to work, in a new thread. Not while the last one works."""
        self._failure = ""
        self.beat()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def retire(self) -> None:
        """The thread is about to be told to end: its end is no fault from now on."""
        self._told_to_end = True

    def join(self, seconds: float) -> None:
        """Wait for its end, if it was ever started."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(seconds)

    def beat(self, allow: float = 0.0) -> None:
        """The thread is alive, and need not say so again for `allow` seconds."""
        self._due = time.monotonic() + allow

    def forgive(self, now: float) -> None:
        """What it did not say before `now` (monotonic clock) counts as said: the whole process was stopped."""
        self._due = max(self._due or now, now)

    def pulse(self) -> Pulse:
        """The thread as it is now."""
        ended = self._thread is not None and not self._told_to_end and not self._is_there()
        return Pulse(self.name, self._due or 0.0, ended, self._failure or "it returned")

    def where(self) -> str:
        """Where in the program the thread is, innermost last; empty if that cannot be told."""
        frame = sys._current_frames().get(self._thread.ident or 0) if self._thread is not None else None
        steps = traceback.extract_stack(frame)[-8:] if frame is not None else []
        return " > ".join(f"{Path(step.filename).name}:{step.lineno} {step.name}" for step in steps)

    def _is_there(self) -> bool:
        """Whether the thread runs. Python does not notice one that the kernel ended."""
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
        """One more, not started."""
        made = Worker(name, work)
        with self._lock:
            self._workers.append(made)
        return made

    def all(self) -> list[Worker]:
        """Every one that has begun, and was not told to end."""
        with self._lock:
            self._workers = [each for each in self._workers if not each._told_to_end]
            return [each for each in self._workers if each._due is not None]


def beat(allow: float = 0.0) -> None:
    """`Worker.beat` of the calling thread; nothing for a thread of no crew."""
    worker: Worker | None = getattr(_here, "worker", None)
    if worker is not None:
        worker.beat(allow)
