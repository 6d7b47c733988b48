"""Abstract Unix sockets as names that say somebody is here: who else has them. Any user may take any such name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

LISTING = "/proc/thread-self/net/unix"
_INODE, _PATH = 6, 7  # columns of the listing (unix_seq_show)


def is_squatted(name: str) -> bool:
    """Whether the abstract socket `name`, without its NUL, is had by others alone: neither root's nor our user's."""
    home = os.open(LISTING, os.O_RDONLY | os.O_CLOEXEC)
    try:
        inodes = {inode for found, inode in listed(home) if found == f"@{name}".encode()}
    finally:
        os.close(home)
    return bool(inodes) and inodes <= had_by_others(inodes)


def listed(home: int) -> Iterator[tuple[bytes, int]]:
    """Name and inode of every named Unix socket in the namespace whose listing the descriptor `home` is."""
    listing = b""
    while chunk := os.pread(home, 1 << 16, len(listing)):  # the kernel gives a page at a time
        listing += chunk
    for line in listing.splitlines()[1:]:
        columns = line.split(maxsplit=_PATH)
        if len(columns) > _PATH:
            yield columns[_PATH], int(columns[_INODE])


def had_by_others(inodes: set[int]) -> set[int]:
    """Those of the sockets that a process of another user has. Looks at every such process: not for a busy path.

    By the real user: a program with the setuid bit keeps what its caller left open, and is still its caller's.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found = set()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is no process
            if process.name.isdigit() and _user(process) not in (0, os.geteuid()):
                for each in (process / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        found.add(wanted.get(str(each.readlink()), 0))
    return found & inodes


def _user(process: Path) -> int:
    lines = (process / "status").read_text(errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Uid:"))
