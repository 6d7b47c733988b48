"""How other processes end: told once, as soon as the kernel knows.

A runtime that gives up kills the process it started, and that may be after the process has written its result: only how
it ended says whether the runtime has accepted it. A pidfd tells that it ended (pidfd_open(2)), and how: while it is a
zombie in /proc, and after that by PIDFD_GET_INFO (Linux 6.15). Where neither can be had nothing is told.
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

MOST = 4096  # processes at a time; of more nothing is told
_INFO = struct.Struct("=QQ11Ii")  # struct pidfd_info (linux/pidfd.h), its first version: 64 bytes
_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
_INFO_EXIT = 1 << 3


class ExitWatcher:
    """Watches processes, in a thread of its own."""

    def __init__(self, crew: Crew | None = None) -> None:
        self._epoll = select.epoll()
        self._waiting: dict[int, tuple[int, Callable[[], None]]] = {}
        self._guard = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._worker = (crew or Crew()).worker("ends", self._run)
        self._worker.start()

    def watch(self, pid: int, started: int, failed: Callable[[], None]) -> bool:
        """Call `failed` if that very process ends other than by exiting with 0. False if it cannot be watched.

        `started` is its start time (`proc.start_time`): a number alone could be another's.
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
            # The first event is the end; the hang-up comes when its parent has asked how it ended (poll(2) on a pidfd).
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        return True

    def close(self) -> None:
        """Watch nobody any more."""
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
                    log.exception("the end of a process could not be looked into")

    def _ended(self, fd: int, gone: bool) -> None:
        pid, failed = self._waiting[fd]
        status = _status_of_zombie(pid) if not gone else None
        if status is None:
            status = _status_of_dead(fd)
        if status is None and not gone and Path(f"/proc/{pid}").exists():
            return  # the hang-up is still to come
        with self._guard:
            del self._waiting[fd]
            self._epoll.unregister(fd)
            os.close(fd)
        if status:
            failed()


def _status_of_zombie(pid: int) -> int | None:
    """The wait status (wait(2)) of a process that its parent has not asked about yet; None if it cannot be told."""
    try:
        found = proc.stat(pid)
    except OSError:
        return None
    return found.exit_code if found.is_zombie else None


def _status_of_dead(fd: int) -> int | None:
    """The wait status of a process whose parent has asked; None where the kernel does not say."""
    info = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(fd, _GET_INFO, info)
    except OSError:
        return None
    mask, *_, status = _INFO.unpack(info)
    return int(status) if mask & _INFO_EXIT else None
