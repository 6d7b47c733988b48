"""Network namespaces: their identity, and code that runs inside one.

setns(2) affects only the calling thread. `entered` returns the thread to its own namespace. A thread that cannot return
must not serve another call, so the process ends and is started again.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cni.errors import InvalidNetns
from cni.host import locks

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703
LOST_THREAD = 70  # exit code (EX_SOFTWARE): a thread could not leave a container's namespace

_libc = ctypes.CDLL(None, use_errno=True)


class NetnsId(NamedTuple):
    """The identity of a namespace: device and inode of its nsfs file (unique while the namespace exists)."""

    dev: int
    ino: int


def identify(fd: int) -> NetnsId:
    """The identity of the network namespace behind `fd`. Raises OSError(EINVAL) if `fd` is not a network namespace."""
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError as error:
        raise OSError(errno.EINVAL, "not a namespace") from error
    if kind != CLONE_NEWNET:
        raise OSError(errno.EINVAL, "a namespace of another kind")
    status = os.fstat(fd)
    return NetnsId(status.st_dev, status.st_ino)


def identify_sandbox(fd: int, path: str) -> NetnsId:
    """The identity of a container's namespace, which the runtime calls `path`. Raises InvalidNetns (8)."""
    try:
        return identify(fd)
    except OSError as error:
        raise InvalidNetns(f"CNI_NETNS: {path} is no network namespace: {error.strerror}") from error


def open_path(path: str) -> int:
    """A descriptor of the namespace at `path`. Never blocks on a FIFO, and opens no device.

    Raises OSError: the error of the path, or EINVAL if it is not a network namespace.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError(errno.EINVAL, "not a namespace", path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        identify(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


class Presence:
    """Records, as long as it is open, that a daemon of ours works in this network namespace.

    It is a lock on one byte of a file for each namespace, in a directory that only root can open. A name in the kernel
    would not do: any user can bind it and so make a daemon report a second daemon. Safe from several threads.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Raises OSError if the directory of the lock cannot be created, or if other users can open it."""
        namespace = own()
        self._name = f"netns-{namespace.dev}-{namespace.ino}"
        self._directory = directory
        self._at = int.from_bytes(os.urandom(7), "big")
        self._guard = threading.Lock()
        self._fd, self._path = locks.join(self._name, self._at, directory)

    def alone(self) -> bool:
        """Whether no other daemon of ours works in the namespace now."""
        with self._guard:
            if not locks.is_at(self._fd, self._path):  # the file was deleted: other daemons use a new one
                before = self._fd
                self._fd, self._path = locks.join(self._name, self._at, self._directory)
                os.close(before)
            return not locks.has_other_holder(self._fd)

    def close(self) -> None:
        """Release the lock; the last daemon of the namespace removes the file."""
        with self._guard:
            if locks.is_at(self._fd, self._path) and not locks.has_other_holder(self._fd):
                self._path.unlink(missing_ok=True)
            os.close(self._fd)


def own() -> NetnsId:
    """The calling thread's namespace."""
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return identify(fd)
    finally:
        os.close(fd)


@contextmanager
def entered(fd: int) -> Iterator[None]:
    """Run the block with the calling thread inside the namespace `fd`. Raises OSError if the thread cannot enter."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(fd)
        try:
            yield
        finally:
            try:
                _setns(home)
            except OSError:
                os._exit(LOST_THREAD)
    finally:
        os.close(home)


def leave() -> None:
    """Move the calling thread into a new network namespace, permanently; for a short-lived thread. Raises OSError."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"no network namespace of its own: {os.strerror(code)}")


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")
