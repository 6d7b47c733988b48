"""Network namespaces: who they are, and how to work inside one for a moment.

A thread that enters a namespace is the only one inside it (setns is per thread). `entered` brings it home again; a
thread that cannot come home must not serve anybody else, so the process ends and is started anew.
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
    """What makes a namespace itself: device and inode of its nsfs file (unique while it exists)."""

    dev: int
    ino: int


def identify(fd: int) -> NetnsId:
    """The identity of the network namespace behind `fd`. Raises OSError(EINVAL) if it is none."""
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError as error:
        raise OSError(errno.EINVAL, "not a namespace") from error
    if kind != CLONE_NEWNET:
        raise OSError(errno.EINVAL, "a namespace of another kind")
    status = os.fstat(fd)
    return NetnsId(status.st_dev, status.st_ino)


def identify_sandbox(fd: int, path: str) -> NetnsId:
    """The same of a container's namespace, which the runtime names `path`. Raises InvalidNetns (8)."""
    try:
        return identify(fd)
    except OSError as error:
        raise InvalidNetns(f"CNI_NETNS: {path} is no network namespace: {error.strerror}") from error


def open_path(path: str) -> int:
    """A descriptor of the namespace at `path`, without ever hanging on a FIFO or poking a device.

    Raises OSError: what is wrong with the path, EINVAL if it is no network namespace.
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
    """Says, for as long as it lives, that a daemon of ours works in this network namespace.

    A lock in a directory of root's alone, in a file for each namespace: a name in the kernel, which any user may take,
    made a running daemon believe in a second one. One byte is this daemon's; safe to use from several threads.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Raises OSError where the lock's directory cannot be made, or is not root's alone."""
        here = own()
        self._name = f"netns-{here.dev}-{here.ino}"
        self._directory = directory
        self._at = int.from_bytes(os.urandom(7), "big")
        self._guard = threading.Lock()
        self._fd, self._path = locks.join(self._name, self._at, directory)

    def alone(self) -> bool:
        """Whether no other daemon of ours is here now."""
        with self._guard:
            if not locks.is_at(self._fd, self._path):  # the file was deleted: others look at a new one
                before = self._fd
                self._fd, self._path = locks.join(self._name, self._at, self._directory)
                os.close(before)
            return not locks.has_company(self._fd)

    def close(self) -> None:
        """Be gone; the last one takes the file along."""
        with self._guard:
            if locks.is_at(self._fd, self._path) and not locks.has_company(self._fd):
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
    """Run the block with the calling thread inside the namespace `fd`. Raises OSError if it cannot enter."""
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
    """Put the calling thread into a network namespace of its own, for good: a thread that ends soon. Raises OSError."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"no network namespace of its own: {os.strerror(code)}")


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")
