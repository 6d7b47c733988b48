"""Bounds log files: the file and one earlier file, of at most `MOST` bytes each."""

import os
import stat

from cni import files

MOST = 1 << 20  # bytes
EARLIER = ".1"  # the suffix of the earlier file


def bound(path: str, most: int = MOST) -> bool:
    """If the file at `path` has more than `most` bytes, move its last `most` bytes to the earlier file, and empty it;
    returns whether it did.

    The file is emptied in place, because the processes that append to it keep it open. On a full disk the earlier file
    is given up first. Raises OSError if the file cannot be read or emptied.
    """
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        # Blocks: a file that was emptied under a writer without O_APPEND has its old size again, and a hole.
        if not stat.S_ISREG(status.st_mode) or min(status.st_size, status.st_blocks * 512) <= most:
            return False
        tail = os.pread(fd, most, max(status.st_size - most, 0)).lstrip(b"\0")
        kept = tail if len(tail) < most else tail.partition(b"\n")[2]
        written = _write(path + EARLIER, kept)
        os.ftruncate(fd, 0)
        if not written:
            _write(path + EARLIER, kept)  # the disk was full; if it is so again, the bound is kept and the text lost
        return True
    finally:
        os.close(fd)


def bound_all(directory: str, most: int = MOST) -> None:
    """Bound every log file of a directory. Never raises: a file that cannot be bounded is left to the next call."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        if name.endswith(".log"):
            try:
                bound(os.path.join(directory, name), most)
            except OSError:
                continue


def _write(path: str, content: bytes) -> bool:
    """Replace the earlier file; False if it cannot be written. Its predecessor goes first: the disk may not hold
    both."""
    try:
        if os.path.lexists(path):
            os.unlink(path)
        files.write(path, content, durable=False, alone=False)
    except OSError:
        return False
    return True
