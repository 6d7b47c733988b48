"""Kernel settings below /proc/sys/net, of the calling thread's network namespace."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/proc/sys/net")
NO_DAD = ("accept_dad", "dad_transmits", "router_solicitation_delay")
"""The settings of a link that are set to 0 so that its addresses do not wait for duplicate address detection.
accept_dad alone is not enough: the kernel detects if it is on for the link or for `all`. Without a probe to send and
without a delay before the first, the detection ends at once."""


def read(path: str) -> str | None:
    """The value of `path` (with slashes: ipv4/ip_forward); None if this kernel has no such setting."""
    try:
        return (ROOT / path).read_text().strip()
    except FileNotFoundError:
        return None


def put(path: str, value: str) -> None:
    """Set `path` to `value` without reading it first: for settings of a new link.

    No error if the kernel has no such setting, or if /proc/sys is read-only and holds the value already. Raises
    OSError.
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
    """Set `path` to `value`; True if the value was changed, False if it was equal or there is no such setting.

    Written only if the value differs: a read-only /proc/sys with the right value is no error. Raises OSError.
    """
    current = read(path)
    if current is None or current == value:
        return False
    (ROOT / path).write_text(value)
    return True


def forward(link: str) -> None:
    """Let the kernel forward packets that come in by a link, in both families. Raises OSError.

    A new link has the setting of `default`, which may be 0 on a host whose ip_forward is 1. IPv4 reads the setting of
    the link; IPv6 reads that of `all`, but answers for proxied neighbours (proxy_ndp) only if the link's own is on.
    """
    ensure(f"ipv4/conf/{link}/forwarding", "1")
    if read(f"ipv6/conf/{link}/disable_ipv6") == "0":
        ensure(f"ipv6/conf/{link}/forwarding", "1")
