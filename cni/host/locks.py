"""Locks that only root can take, in a directory of root's alone; and which directories those are.

A lock on a file that others may open, a name in the kernel that others may take (abstract Unix sockets) and a file in a
directory that others may write to can each be held by a user without privileges, who keeps the daemon out with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

from cni import lock_files

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of a 64-bit kernel: type, whence, start, length, pid."""
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37  # linux/fcntl.h; the first is not in Python's fcntl


def default_directory() -> Path:
    """Where the locks are: beside the run directories, for these come and go. Another user than root has its own."""
    user = os.geteuid()
    return Path("/run/zlayer-cni.locks" if user == 0 else f"/tmp/zlayer-cni.locks-{user}")


def trusted_users() -> frozenset[int]:
    """The users whose files and processes this one believes: root, itself, and the owner of / (another number than
    root's inside a user namespace)."""
    return frozenset({0, os.geteuid(), Path("/").stat().st_uid})


def others_may_write(path: Path, groups: frozenset[int] = frozenset()) -> str:
    """Which directory lets a user other than root replace what is at `path`, and why; "" if none does.

    Looks at `path`, a directory, and at all above it. A sticky directory (/tmp) is no such one: what is in it is its
    owner's. Members of root's group and of `groups` count as root.
    """
    users, groups = trusted_users(), groups | {0, os.getegid()}
    real = path.resolve()
    for each in (real, *real.parents):
        status = each.stat()
        if status.st_uid not in users:
            return f"{each} belongs to user {status.st_uid}"
        if not status.st_mode & stat.S_ISVTX:
            if status.st_mode & stat.S_IWOTH:
                return f"{each} can be written to by every user"
            if status.st_mode & stat.S_IWGRP and status.st_gid not in groups:
                return f"{each} can be written to by group {status.st_gid}"
    return ""


def is_shared(directory: Path) -> bool:
    """Whether every user may make files in the directory."""
    return bool(directory.stat().st_mode & stat.S_IWOTH)


def hold(name: str, directory: Path | None = None, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock `name`; None where another process has it, unless this is to `wait` for it.

    Raises OSError where the directory cannot be made, or is not this user's alone.
    """
    path = _place(directory) / name
    while True:
        fd = lock_files.opened(str(path))
        try:
            if wait:
                lock_files.wait(fd)
            elif not lock_files.take(fd):
                os.close(fd)
                return None
            if is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the one that had it has taken the file away


def let_go(fd: int, name: str, directory: Path | None = None) -> None:
    """Give the lock back, and take its file away."""
    path = (directory or default_directory()) / name
    if is_at(fd, path):
        path.unlink(missing_ok=True)
    os.close(fd)


def join(name: str, at: int, directory: Path | None = None) -> tuple[int, Path]:
    """A descriptor of the file `name` and its path, with the byte `at` locked for as long as it is open."""
    path = _place(directory) / name
    while True:
        fd = lock_files.opened(str(path))
        try:
            fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0))
            if is_at(fd, path):
                return fd, path
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def has_company(fd: int) -> bool:
    """Whether another open file has a byte of the same file locked."""
    answer = fcntl.fcntl(fd, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def sweep(directory: Path | None = None) -> bool:
    """Take away the files that no process has locked, and the directory if nothing is left; whether it is gone."""
    place = directory or default_directory()
    if not place.is_dir():
        return False
    for path in place.iterdir():
        fd = lock_files.opened(str(path))
        try:
            if lock_files.take(fd) and not has_company(fd):
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)
    with contextlib.suppress(OSError):  # another daemon's lock is in it
        place.rmdir()
    return not place.exists()


def is_at(fd: int, path: Path) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _place(directory: Path | None) -> Path:
    place = directory or default_directory()
    place.mkdir(0o700, parents=True, exist_ok=True)
    status = place.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in trusted_users() or status.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "not a directory of this user's alone (mode 0700)", str(place))
    return place
