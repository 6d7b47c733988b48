"""Waits for changes of the files in one directory: inotify, or a look once a second while the directory is missing."""

from __future__ import annotations

import ctypes
import os
import select
import sys
from pathlib import Path

# <sys/inotify.h>: close after writing, moves, creation and deletion, and the end of the directory itself. IN_CREATE is
# for links, which no program closes. Without IN_MODIFY: a file is read when its writer has closed it.
_EVENTS = 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
_ONLY_DIRECTORY = 0x0100_0000
_ENDED = 0x400 | 0x800 | 0x8000  # IN_DELETE_SELF, IN_MOVE_SELF, IN_IGNORED
_MISSING = 1.0  # seconds between two looks for a directory that does not exist


class DirectoryWatch:
    """One directory, which may not exist yet. `wake` may be called from any thread, the rest from one."""

    def __init__(self, directory: str) -> None:
        """Raises OSError."""
        self._directory = directory
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._end, self._stop = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watching = False

    def begin(self) -> None:
        """Watches the directory if it exists; changes after this are noticed. Idempotent."""
        if not self._watching:
            path = os.fsencode(self._directory)
            self._watching = self._libc.inotify_add_watch(self._fd, path, _EVENTS | _ONLY_DIRECTORY) >= 0

    def wait(self, seconds: float) -> bool:
        """Waits for a change, at most `seconds`; True if something may have changed, or `wake` was called."""
        if not self._watching:
            self._wait(min(seconds, _MISSING))
            return Path(self._directory).is_dir()
        return self._wait(seconds)

    def wake(self) -> None:
        """Ends the present or the next `wait`."""
        os.write(self._stop, b"!")

    def close(self) -> None:
        """Frees the descriptors; no call may follow."""
        for fd in (self._fd, self._end, self._stop):
            os.close(fd)

    def _wait(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        found = [fd for fd, _ in poll.poll(1000 * seconds)]
        if self._end in found:
            os.read(self._end, 64)
        if self._fd in found:
            self._read()
        return bool(found)

    def _read(self) -> None:
        """Takes all events; the end of the directory is noted."""
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                mask = int.from_bytes(data[at + 4 : at + 8], sys.byteorder)
                self._watching = self._watching and not mask & _ENDED
                at += 16 + int.from_bytes(data[at + 12 : at + 16], sys.byteorder)
