"""Locks that only root can take, in a directory that only root can open; and the check of such directories.

An unprivileged user can block the daemon by holding a lock on a file that the user may open, a name in the kernel that
any user may bind (abstract Unix sockets), or a file in a directory to which the user may write.
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
    """The directory of the locks: outside the run directories, which may be removed. Each user but root has its own."""
    user = os.geteuid()
    return Path("/run/zlayer-cni.locks" if user == 0 else f"/tmp/zlayer-cni.locks-{user}")


def trusted_users() -> frozenset[int]:
    """The user ids whose files and processes this process trusts: root, its own, and the owner of / (which is not 0
    inside a user namespace)."""
    return frozenset({0, os.geteuid(), Path("/").stat().st_uid})


def others_may_write(path: Path, groups: frozenset[int] = frozenset()) -> str:
    """Which directory lets a user other than root replace the entry at `path`, and why; "" if there is none.

    Checks `path`, a directory, and all its parents. A sticky directory (/tmp) is accepted: only the owner of an entry
    can replace it. Members of root's group and of `groups` count as root.
    """
    users, groups = trusted_users(), groups | {0, os.getegid()}
    real = path.resolve()
    for directory in (real, *real.parents):
        status = directory.stat()
        if status.st_uid not in users:
            return f"{directory} belongs to user {status.st_uid}"
        if not status.st_mode & stat.S_ISVTX:
            if status.st_mode & stat.S_IWOTH:
                return f"{directory} can be written to by every user"
            if status.st_mode & stat.S_IWGRP and status.st_gid not in groups:
                return f"{directory} can be written to by group {status.st_gid}"
    return ""


def is_shared(directory: Path) -> bool:
    """Whether every user may make files in the directory."""
    return bool(directory.stat().st_mode & stat.S_IWOTH)


def hold(name: str, directory: Path | None = None, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock `name`; None if another process holds it. With `wait` the call waits instead.

    Raises OSError if the directory cannot be created, or if other users can open it.
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
        os.close(fd)  # the previous holder has removed the file


def release(fd: int, name: str, directory: Path | None = None) -> None:
    """Release the lock, and remove its file."""
    path = (directory or default_directory()) / name
    if is_at(fd, path):
        path.unlink(missing_ok=True)
    os.close(fd)


def join(name: str, at: int, directory: Path | None = None) -> tuple[int, Path]:
    """A descriptor of the file `name`, and its path; the byte `at` is locked as long as the descriptor is open."""
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


def has_other_holder(fd: int) -> bool:
    """Whether another open file has a byte of the same file locked."""
    answer = fcntl.fcntl(fd, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def sweep(directory: Path | None = None) -> bool:
    """Remove the files that no process has locked, and then the directory if it is empty; returns whether the directory
    is gone."""
    locks_dir = directory or default_directory()
    if not locks_dir.is_dir():
        return False
    for path in locks_dir.iterdir():
        fd = lock_files.opened(str(path))
        try:
            if lock_files.take(fd) and not has_other_holder(fd):
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)
    with contextlib.suppress(OSError):  # another daemon's lock is in it
        locks_dir.rmdir()
    return not locks_dir.exists()


def is_at(fd: int, path: Path) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _place(directory: Path | None) -> Path:
    path = directory or default_directory()
    path.mkdir(0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in trusted_users() or status.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "not a directory of this user's alone (mode 0700)", str(path))
    return path
