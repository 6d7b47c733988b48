"""The lock on the run directory: one daemon holds it exclusively, and restores the directory when it is deleted.

Two locks keep a second daemon out. The first is on a file in the run directory: it works in every mount namespace that
shows the directory, and is lost when the directory is deleted. The second is in a directory that only root may write,
and survives that deletion: a daemon that is started meanwhile waits until the first daemon has restored its directory.
A user without privileges can take neither.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from pathlib import Path

from cni import lock_files, plugin_protocol, proc
from cni.errors import StateUnusable
from cni.host import locks, process
from cni.plugin import delete_queue

log = logging.getLogger(__name__)

AUTOSTART_NAME = "autostart.lock"  # cni/plugin/autostart.py documents its contents
DEPUTY = "--deputy-of"  # option: pid of the daemon that this process replaces if that daemon does not come back
COMING_BACK = 5.0  # seconds that the daemon has to come back
REPLACED = "ZLAYER_CNI_REPLACED"  # environment: why the previous daemon replaced itself
LOCK_NAME, PID_NAME, LOG_NAME = "overlayd.lock", "overlayd.pid", "overlayd.log"
DYING = 2.0  # seconds that the kernel may take to end a killed daemon
RETURNING = 5.0  # seconds that a running daemon may take to restore a run directory that was deleted
ENDING = 10.0  # seconds that a daemon has to end by itself when another one takes over
STEP = 0.01  # seconds between two attempts

Ident = tuple[int, int]


class Occupied(StateUnusable):
    """Another daemon holds the run directory and serves."""


class RunDirLock:
    """One daemon's lock on one run directory. Not thread-safe."""

    def __init__(self, run_dir: Path, take_over: bool = False, locks_dir: Path | None = None) -> None:
        """Create the run directory if it is missing, and take its locks. With `take_over`, end the daemon that holds
        them.

        `locks_dir`: the directory of the second lock, None for the default. Raises Occupied if another daemon holds
        the run directory, StateUnusable if a user other than root may replace its contents; OSError.
        """
        self.run_dir = run_dir
        self._locks_dir = locks_dir
        self._may_take_over = take_over
        run_dir.mkdir(0o755, parents=True, exist_ok=True)
        _refuse_others(run_dir)
        self._name: tuple[int, str] | None = None  # the second lock's descriptor and name
        self._lock = -1
        self._ident: Ident = (0, 0)
        try:
            self._take()
        except BaseException:
            self.release()
            raise

    def _take(self) -> None:
        begun = time.monotonic()
        pid = self.run_dir / PID_NAME
        while not self._take_name() or not self._take_lock():
            waited = time.monotonic() - begun
            # No cni.sock: the other daemon is either shutting down or recreating a run directory that was deleted.
            # Wait; do not fail yet.
            serving = not process.is_ending(_holder(pid)) and (self.run_dir / plugin_protocol.SOCKET_NAME).exists()
            if (serving or waited > DYING) and self._may_take_over:
                self._end(_holder(pid))
                begun = time.monotonic()
            elif serving or waited > (DYING if self._name is not None else RETURNING):
                raise Occupied(f"another overlay daemon runs on {self.run_dir}", f"process {_holder(pid)}")
            time.sleep(STEP)
            self.run_dir.mkdir(0o755, parents=True, exist_ok=True)
        pid.write_text(f"{os.getpid()}\n")

    def _end(self, holder: int) -> None:
        """End the daemon that holds the run directory, once: a daemon that holds it afterwards was started on
        purpose."""
        self._may_take_over = not holder  # 0: that daemon may not have written its pid yet, so try again
        if holder and process.end_daemon(holder, ENDING):
            log.info("took %s over from process %d, which has ended", self.run_dir, holder)

    def _take_name(self) -> bool:
        """Take the second lock. Its name derives from the parent directory's inode and the run directory's name, which
        are still valid when the run directory is deleted."""
        if self._name is not None:
            return True
        status = self.run_dir.parent.stat()
        lock_name = f"run-dir-{delete_queue.key((str(status.st_dev), str(status.st_ino), self.run_dir.name))}"
        fd = locks.hold(lock_name, self._locks_dir)
        if fd is None:
            return False
        self._name = fd, lock_name
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
        """Whether the lock file and the pid file in the run directory are still this daemon's."""
        return (
            file_identity(self.run_dir / LOCK_NAME) == self._ident and _holder(self.run_dir / PID_NAME) == os.getpid()
        )

    def retake(self) -> None:
        """Recreate the run directory and take its lock again. Raises StateUnusable if another daemon took it first,
        OSError."""
        self.run_dir.mkdir(0o755, parents=True, exist_ok=True)
        _refuse_others(self.run_dir)
        if file_identity(self.run_dir / LOCK_NAME) != self._ident and not self._take_lock():
            raise StateUnusable(f"another overlay daemon has taken {self.run_dir} over", "this one ends")
        (self.run_dir / PID_NAME).write_text(f"{os.getpid()}\n")
        _reopen_log(self.run_dir / LOG_NAME)

    def replace_daemon(self, reason: str) -> None:
        """Execute the daemon's program again in this process; the new daemon takes over what this one leaves. Does not
        return.

        The kernel closes locks and sockets when the program is executed. Meanwhile plugins find no socket and wait for
        this process: the autostart note written here is the one that a plugin writes when it starts a daemon.
        """
        log.critical("%s: the daemon replaces itself, containers stay connected", reason)
        with contextlib.suppress(OSError, ValueError):
            started = proc.start_time(os.getpid())
            (self.run_dir / AUTOSTART_NAME).write_text(f"started {os.getpid()} {started}")
        with contextlib.suppress(OSError):
            (self.run_dir / plugin_protocol.SOCKET_NAME).unlink()
        process.execute_again({REPLACED: reason}, DEPUTY)

    def release(self) -> None:
        """Release both locks. Idempotent."""
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                if _holder(self.run_dir / PID_NAME) == os.getpid():
                    (self.run_dir / PID_NAME).unlink()
            os.close(self._lock)
            self._lock = -1
        if self._name is not None:
            locks.release(*self._name, self._locks_dir)
            self._name = None

    def __enter__(self) -> RunDirLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def _refuse_others(run_dir: Path) -> None:
    why = locks.others_may_write(run_dir)
    if why:
        raise StateUnusable(f"the run directory {run_dir} is not root's alone", why)


def file_identity(path: Path) -> Ident | None:
    """Device and inode of the file at `path`; None if there is none."""
    try:
        return _ident(path.stat())
    except OSError:
        return None


def _ident(status: os.stat_result) -> Ident:
    return status.st_dev, status.st_ino


def _holder(pid: Path) -> int:
    """The pid in the file, 0 if there is none."""
    try:
        return int(pid.read_text())
    except (OSError, ValueError):
        return 0


def _reopen_log(path: Path) -> None:
    """Redirect stdout and stderr to a new log file if the open one was deleted."""
    status = os.fstat(2)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink:
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        for number in (1, 2):
            os.dup2(fd, number)
    finally:
        os.close(fd)
