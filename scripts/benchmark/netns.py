"""Named network namespaces below /run/netns of this mount namespace, made without a process each."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
PLACE = Path("/run/netns")
libc = ctypes.CDLL(None, use_errno=True)


def enter_private() -> None:
    """Enter a network and a mount namespace of this process's own, with an empty /run. Raises OSError."""
    check(libc.unshare(CLONE_NEWNET | CLONE_NEWNS))
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    check(libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, None))
    PLACE.mkdir()


def add(name: str) -> None:
    """Make a network namespace. Raises OSError."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        check(libc.unshare(CLONE_NEWNET))
        (PLACE / name).touch()
        check(libc.mount(b"/proc/self/ns/net", os.fsencode(PLACE / name), None, MS_BIND, None))
    finally:
        check(libc.setns(own, CLONE_NEWNET))
        os.close(own)


def enter(fd: int) -> None:
    """Enter the network namespace of a descriptor, with the calling thread. Raises OSError."""
    check(libc.setns(fd, CLONE_NEWNET))


def delete(name: str) -> None:
    """Remove a network namespace. Raises OSError."""
    check(libc.umount2(os.fsencode(PLACE / name), MNT_DETACH))
    (PLACE / name).unlink()


def check(result: int) -> None:
    """Raise OSError if a call of libc failed."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
