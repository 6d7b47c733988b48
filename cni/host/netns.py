"""Network namespaces: who they are, and how to work inside one for a moment.

A thread that enters a namespace is the only one inside it (setns is per thread). `entered` brings it home again; a
thread that cannot come home must not serve anybody else, so the process ends and is started anew.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cni.host import names

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
    """Says, for as long as it lives, that somebody of the kind `name` works in this network namespace.

    An abstract Unix socket: the kernel keeps such names for each network namespace, and frees one with its owner.
    """

    def __init__(self, name: str) -> None:
        self._prefix = f"@{name}/".encode()
        self._home = os.open(names.LISTING, os.O_RDONLY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(f"\0{name}/{os.getpid()}")

    def alone(self) -> bool:
        """Whether nobody else of the kind is here now; other users, who are none, do not count."""
        here = {inode for name, inode in names.listed(self._home) if name.startswith(self._prefix)}
        return len(here) <= 1 or len(here - names.had_by_others(here)) <= 1

    def close(self) -> None:
        """Be gone."""
        self._socket.close()
        os.close(self._home)


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


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")
