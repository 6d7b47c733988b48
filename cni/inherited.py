"""Resets what this process inherits from its parent and must not depend on: closed standard descriptors, blocked or
ignored signals, a umask that keeps the owner out.

The daemon and the tool call this first. A plugin call, which starts in milliseconds, does the same by itself, as far as
it needs to (cni/plugin/main.py, cni/plugin/autostart.py).
"""

import os
import signal
import sys

WITHOUT_OWNER = 0o700  # the bits of a umask that would keep the owner out of the files that the process creates


def reset() -> None:
    """Open closed standard descriptors on /dev/null, unblock every signal, let the exit codes of children be read, and
    let the owner access new files. Idempotent."""
    if not _are_open():
        _open_closed()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.umask(os.umask(0o077) & ~WITHOUT_OWNER)


def _are_open() -> bool:
    return None not in (sys.stdin, sys.stdout, sys.stderr)


def _open_closed() -> None:
    """A closed descriptor would be taken by the next file or socket, and whatever is printed would go there."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number is the one that is closed
            os.set_inheritable(null, True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", buffering=1, closefd=False)
