"""Kernel settings below /proc/sys/net, of the namespace the calling thread is in."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/proc/sys/net")
NO_DAD = ("accept_dad", "dad_transmits", "router_solicitation_delay")
"""The settings of a link that are 0 where no address of it waits for duplicate address detection. accept_dad alone is
not enough: the kernel detects while it is on for the link or for `all`. With no probe to send and no delay before the
first, the detection is over at once."""


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


def forward(link: str) -> None:
    """The kernel forwards what comes in by a link, in both families. Raises OSError.

    A new link has the setting of `default`, which may be 0 on a host whose ip_forward is 1. IPv4 asks the link itself;
    IPv6 asks `all`, but answers for a neighbour elsewhere (proxy_ndp) only where the link's own is on.
    """
    ensure(f"ipv4/conf/{link}/forwarding", "1")
    if read(f"ipv6/conf/{link}/disable_ipv6") == "0":
        ensure(f"ipv6/conf/{link}/forwarding", "1")
