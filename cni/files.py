"""Files put in place at once: what is found under the name is the old content or the new one, never a part.

For every process of the product, the plugin too: with `os` alone, for pathlib would cost most of a plugin call.
"""

import os


def write(path: str, content: bytes, mode: int = 0o600, *, durable: bool = True, alone: bool = True) -> None:
    """`path` holds `content` afterwards, or is as it was. The directory is there.

    `durable`: not after a power cut either. `alone`: no other process writes this file at the same time, so that one
    name serves for the new content, and what a killed writer left is overwritten. Raises OSError; then the new content
    is gone.
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
            pass  # It was never made, or the file system takes no changes any more.
        raise
    if durable:
        sync(directory)


def sync(path: str) -> None:
    """A file's content, or a directory's entries, survive a power cut. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(directory: str) -> None:
    """`sync` of everything below the directory; symbolic links are entries of theirs. Raises OSError."""
    for here, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(here, name)
            if not os.path.islink(path):
                sync(path)
        sync(here)
