"""The router of this host's IPv4 default route."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

_ROUTES = Path("/proc/self/net/route")
_GATEWAY = 0x2  # RTF_GATEWAY (linux/route.h)


def default_gateway() -> ipaddress.IPv4Address | None:
    """The router, of the route with the smallest metric; None without one. In the process's network namespace."""
    route = _default_route()
    return ipaddress.IPv4Address(route[1].to_bytes(4, sys.byteorder)) if route is not None else None


def default_device() -> str:
    """The device of the same route, "" without one."""
    route = _default_route()
    return route[2] if route is not None else ""


def _default_route() -> tuple[int, int, str] | None:
    """Metric, router and device."""
    found = []
    try:
        lines = _ROUTES.read_text().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        device, destination, gateway, flags, _, _, metric, mask, *_ = line.split()
        if destination == mask == "00000000" and int(flags, 16) & _GATEWAY:
            found.append((int(metric), int(gateway, 16), device))
    return min(found) if found else None
