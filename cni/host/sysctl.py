"""Kernel settings below /proc/sys/net, of the namespace the calling thread is in."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/proc/sys/net")


def read(path: str) -> str | None:
    """The value of `path` (with slashes: ipv4/ip_forward), or None where this kernel has no such setting."""
    try:
        return (ROOT / path).read_text().strip()
    except FileNotFoundError:
        return None


def put(path: str, value: str) -> None:
    """`path` holds `value` afterwards, written without a look: for settings of a link that was just made.

    A kernel without the setting, and a read-only /proc/sys in which it is so already, are fine. Raises OSError.
    """
    try:
        fd = os.open(f"/proc/sys/net/{path}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError:
        if read(path) != value:
            raise
        return
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def ensure(path: str, value: str) -> bool:
    """`path` holds `value` afterwards; True if that had to be changed, False if it was so or there is no such setting.

    Written only when it differs: a read-only /proc/sys with the right value is no error. Raises OSError.
    """
    current = read(path)
    if current is None or current == value:
        return False
    (ROOT / path).write_text(value)
    return True
