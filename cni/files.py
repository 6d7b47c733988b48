"""Atomic writes: a reader finds the old content or the new content, never a part of it.

Used by every process of the product, the plugin included. Uses `os` only: importing pathlib would take most of the time
of a plugin call.
"""

import os


def write(path: str, content: bytes, mode: int = 0o600, *, durable: bool = True, alone: bool = True) -> None:
    """Replace `path` by a file with `content` and permission bits `mode`. The directory must exist.

    `durable`: the new content also survives a power failure. `alone`: no other process writes this file at the same
    time, so the temporary file has a fixed name, and the temporary file of a killed writer is overwritten. Raises
    OSError; then `path` is unchanged and the temporary file is removed.
    """
    directory, name = os.path.split(path)
    fresh = os.path.join(directory, f".{name}.new" if alone else f".{name}.{os.getpid()}.new")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            os.fchmod(fd, mode)
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(fd, rest) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(fresh, path)
    except BaseException:
        try:
            os.unlink(fresh)
        except OSError:
            pass  # The file was not created, or the file system has become read-only.
        raise
    if durable:
        sync(directory)


def sync(path: str) -> None:
    """Flush a file's content, or a directory's entries, to disk, so that they survive a power failure. Raises
    OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(directory: str) -> None:
    """`sync` every file and directory below `directory`, itself included. A symbolic link is flushed as an entry of its
    directory. Raises OSError."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                sync(path)
        sync(parent)
