"""The run directory, for as long as a daemon has it: nobody else's, and put back when somebody takes it away.

Two locks keep a second daemon out. One on a file in the directory does wherever the directory can be seen; it goes when
the directory is deleted. One in a directory of root's alone outlives that: a daemon that is started meanwhile waits
until this one is back in its place. Neither can be taken by a user without privileges.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from pathlib import Path

from cni import lock_files, proc
from cni.errors import StateUnusable
from cni.host import locks, process
from cni.plugin import delete_queue

log = logging.getLogger(__name__)

AUTOSTART_NAME = "autostart.lock"  # cni/plugin/autostart.py says what it holds
DEPUTY = "--deputy-of"  # option: the daemon that this process replaces if it does not come back
COMING_BACK = 5.0  # seconds that it has for that
REPLACED = "ZLAYER_CNI_REPLACED"  # environment: why the daemon before this one replaced itself
LOCK_NAME, PID_NAME, LOG_NAME, SOCKET_NAME = "overlayd.lock", "overlayd.pid", "overlayd.log", "cni.sock"
DYING = 2.0  # seconds that a killed daemon may take to come out of the kernel
RETURNING = 5.0  # seconds that a living one may take to be back in a directory that was taken from it
ENDING = 10.0  # seconds that one whose place is taken over may take to end by itself
STEP = 0.01  # seconds between two looks

Ident = tuple[int, int]


class Occupied(StateUnusable):
    """Another daemon has the run directory, and serves."""


class RunDirLock:
    """One daemon's hold on one run directory. Not for use from several threads at once."""

    def __init__(self, run_dir: Path, take_over: bool = False, locks_dir: Path | None = None) -> None:
        """Take it, made where it is missing; if `take_over`, from a daemon that has it, which is ended.

        `locks_dir` is where the second lock is, None for the usual place. Raises StateUnusable if another daemon has
        it, or if a user other than root may replace what is in it; OSError.
        """
        self.run_dir = run_dir
        self._locks_dir = locks_dir
        self._may_end = take_over
        run_dir.mkdir(0o755, parents=True, exist_ok=True)
        _refuse_others(run_dir)
        self._name: tuple[int, str] | None = None  # the second lock's descriptor, and what it is called
        self._lock = -1
        self._ident: Ident = (0, 0)
        try:
            self._take()
        except BaseException:
            self.leave()
            raise

    def _take(self) -> None:
        begun = time.monotonic()
        pid = self.run_dir / PID_NAME
        while not self._take_name() or not self._take_lock():
            waited = time.monotonic() - begun
            # Whoever has no door is on his way out, or on his way back into a directory that was taken from him.
            serving = not process.is_ending(_holder(pid)) and (self.run_dir / SOCKET_NAME).exists()
            if (serving or waited > DYING) and self._may_end:
                self._end(_holder(pid))
                begun = time.monotonic()
            elif serving or waited > (DYING if self._name is not None else RETURNING):
                raise Occupied(f"another overlay daemon runs on {self.run_dir}", f"process {_holder(pid)}")
            time.sleep(STEP)
            self.run_dir.mkdir(0o755, parents=True, exist_ok=True)
        pid.write_text(f"{os.getpid()}\n")

    def _end(self, holder: int) -> None:
        """End the daemon that has the place, once: whoever is there afterwards was started on purpose."""
        self._may_end = not holder  # he may not have written his number yet
        if holder and process.end_daemon(holder, ENDING):
            log.info("took %s over from process %d, which has ended", self.run_dir, holder)

    def _take_name(self) -> bool:
        """The lock for the place: by its parent, which is still there when the directory is not."""
        if self._name is not None:
            return True
        status = self.run_dir.parent.stat()
        called = f"run-dir-{delete_queue.key((str(status.st_dev), str(status.st_ino), self.run_dir.name))}"
        fd = locks.hold(called, self._locks_dir)
        if fd is None:
            return False
        self._name = fd, called
        return True

    def _take_lock(self) -> bool:
        lock = lock_files.opened(str(self.run_dir / LOCK_NAME))
        if not lock_files.take(lock):
            os.close(lock)
            return False
        if self._lock >= 0:
            os.close(self._lock)
        self._lock, self._ident = lock, _ident(os.fstat(lock))
        return True

    def held(self) -> bool:
        """Whether the lock and the number at our path are ours still."""
        return (
            file_identity(self.run_dir / LOCK_NAME) == self._ident and _holder(self.run_dir / PID_NAME) == os.getpid()
        )

    def retake(self) -> None:
        """Make the directory ours again. Raises StateUnusable if another daemon was faster, OSError."""
        self.run_dir.mkdir(0o755, parents=True, exist_ok=True)
        _refuse_others(self.run_dir)
        if file_identity(self.run_dir / LOCK_NAME) != self._ident and not self._take_lock():
            raise StateUnusable(f"another overlay daemon has taken {self.run_dir} over", "this one ends")
        (self.run_dir / PID_NAME).write_text(f"{os.getpid()}\n")
        _reopen_log(self.run_dir / LOG_NAME)

    def replace_daemon(self, reason: str) -> None:
        """Another daemon in this process's place, which finds everything as this one leaves it. Does not return.

        Locks and sockets are closed by the kernel when the program is executed. Plugins that find the door closed
        meanwhile wait for this process, by the note that one of them would have left when it started a daemon.
        """
        log.critical("%s: the daemon replaces itself, containers stay connected", reason)
        with contextlib.suppress(OSError, ValueError):
            started = proc.start_time(os.getpid())
            (self.run_dir / AUTOSTART_NAME).write_text(f"started {os.getpid()} {started}")
        with contextlib.suppress(OSError):
            (self.run_dir / SOCKET_NAME).unlink()
        process.execute_again({REPLACED: reason}, DEPUTY)

    def leave(self) -> None:
        """Let go of it. Safe to repeat."""
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                if _holder(self.run_dir / PID_NAME) == os.getpid():
                    (self.run_dir / PID_NAME).unlink()
            os.close(self._lock)
            self._lock = -1
        if self._name is not None:
            locks.let_go(*self._name, self._locks_dir)
            self._name = None

    def __enter__(self) -> RunDirLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.leave()


def _refuse_others(run_dir: Path) -> None:
    why = locks.others_may_write(run_dir)
    if why:
        raise StateUnusable(f"the run directory {run_dir} is not root's alone", why)


def file_identity(path: Path) -> Ident | None:
    """Which file is at `path`; None if there is none."""
    try:
        return _ident(path.stat())
    except OSError:
        return None


def _ident(status: os.stat_result) -> Ident:
    return status.st_dev, status.st_ino


def _holder(pid: Path) -> int:
    """The process that wrote its number into the file, 0 if nobody did."""
    try:
        return int(pid.read_text())
    except (OSError, ValueError):
        return 0


def _reopen_log(path: Path) -> None:
    """What we say goes to the log that can be read, where it went to one that was deleted."""
    status = os.fstat(2)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink:
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        for number in (1, 2):
            os.dup2(fd, number)
    finally:
        os.close(fd)
