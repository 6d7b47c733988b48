"""Locks on files (flock(2)): held while the descriptor is open; the kernel gives them back when the process dies.

For every process of the product, the plugin too. What a user without privileges must not be able to hold is locked by
cni/host/locks.py, in a directory of root's alone.
"""

import errno
import fcntl
import os
import time

_STEP = 0.01  # seconds between two tries


def opened(path: str) -> int:
    """A descriptor of the lock file, made where it is missing; nothing is locked yet. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def take(fd: int, *, shared: bool = False, patience: float = 0.0) -> bool:
    """Lock the open file; False where another one has it and keeps it for `patience` seconds. Raises OSError."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise
            if time.monotonic() >= until:
                return False
            time.sleep(_STEP)
        else:
            return True


def wait(fd: int) -> None:
    """Lock the open file, however long another one has it. Raises OSError."""
    fcntl.flock(fd, fcntl.LOCK_EX)
