"""Locks on files (flock(2)): held while the descriptor is open; the kernel releases them when the process ends.

Used by every process of the product, the plugin included. Locks that an unprivileged user must not be able to take are
in cni/host/locks.py, in a directory that only root can open.
"""

import errno
import fcntl
import os
import time

_STEP = 0.01  # seconds between two attempts


def opened(path: str) -> int:
    """A descriptor of the lock file, which is created if it is missing. Takes no lock. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def take(fd: int, *, shared: bool = False, patience: float = 0.0) -> bool:
    """Lock the open file; False if another descriptor keeps the lock for `patience` seconds. Raises OSError."""
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
    """Lock the open file; waits without limit for another holder. Raises OSError."""
    fcntl.flock(fd, fcntl.LOCK_EX)
