"""Reports how other processes end, once, as soon as the kernel reports it.

A runtime that gives up kills the process that it started, possibly after the process has written its result: only the
exit status shows whether the runtime has accepted the result. A pidfd reports the end (pidfd_open(2)). The exit status
comes from /proc while the process is a zombie, and from PIDFD_GET_INFO afterwards (Linux 6.15). If neither is
available, nothing is reported.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from cni import proc
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

MOST = 4096  # processes watched at a time; further ones are not watched
_INFO = struct.Struct("=QQ11Ii")  # struct pidfd_info (linux/pidfd.h), its first version: 64 bytes
_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
_INFO_EXIT = 1 << 3


class ExitWatcher:
    """Watches processes for their end, in its own thread."""

    def __init__(self, crew: Crew | None = None) -> None:
        self._epoll = select.epoll()
        self._waiting: dict[int, tuple[int, Callable[[], None]]] = {}
        self._guard = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._worker = (crew or Crew()).worker("ends", self._run)
        self._worker.start()

    def watch(self, pid: int, started: int, failed: Callable[[], None]) -> bool:
        """Call `failed` if the process ends in any way but exit code 0. False if it cannot be watched.

        `started` is its start time (`proc.start_time`), because the PID may have been reused.
        """
        with self._guard:
            if len(self._waiting) >= MOST:
                return False
            try:
                fd = os.pidfd_open(pid)
            except OSError:
                return False
            if not proc.is_same(pid, started):
                os.close(fd)
                return False
            self._waiting[fd] = (pid, failed)
            # The first event is the end of the process; the hang-up follows when the parent has reaped it
            # (pidfd_open(2)).
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        return True

    def close(self) -> None:
        """End the thread, and watch no process any more."""
        self._worker.retire()
        os.eventfd_write(self._wake, 1)
        self._worker.join(5.0)
        with self._guard:
            for fd in self._waiting:
                os.close(fd)
            self._waiting.clear()
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            beat(IDLE)
            for fd, events in self._epoll.poll(IDLE):
                beat()
                if fd == self._wake:
                    return
                try:
                    self._ended(fd, bool(events & select.EPOLLHUP))
                except Exception:
                    log.exception("cannot handle the end of a process")

    def _ended(self, fd: int, gone: bool) -> None:
        pid, failed = self._waiting[fd]
        status = _status_of_zombie(pid) if not gone else None
        if status is None:
            status = _status_of_dead(fd)
        if status is None and not gone and Path(f"/proc/{pid}").exists():
            return  # the hang-up has not happened yet
        with self._guard:
            del self._waiting[fd]
            self._epoll.unregister(fd)
            os.close(fd)
        if status:
            failed()


def _status_of_zombie(pid: int) -> int | None:
    """The wait status (wait(2)) of a process that its parent has not reaped yet; None if it is unknown."""
    try:
        stat = proc.stat(pid)
    except OSError:
        return None
    return stat.exit_code if stat.is_zombie else None


def _status_of_dead(fd: int) -> int | None:
    """The wait status of a process that was reaped; None if the kernel does not report it."""
    info = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(fd, _GET_INFO, info)
    except OSError:
        return None
    mask, *_, status = _INFO.unpack(info)
    return int(status) if mask & _INFO_EXIT else None
