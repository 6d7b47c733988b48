"""Keeps the host's links receptive to router advertisements while the node forwards IPv6.

With forwarding on, the kernel ignores router advertisements on a link unless the link's accept_ra is 2. A host whose
default route comes from them would lose IPv6 on the links that it has, and never get it on a network card that is added
later.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable

from cni.host import links, sysctl

_ALL_ROUTERS = "ff02::2"
_SOLICITATION = struct.pack("!BBHI", 133, 0, 0, 0)  # RFC 4861, section 4.1; the kernel fills in the checksum
_INNER = frozenset({"bridge", "dummy", "tun", "wireguard"})  # the kinds of links behind which is no router of the host
_CONTAINERS = frozenset({"veth", "tun"})  # the kinds of a bridge's ports that lead to containers and machines


def uplinks(all_links: Iterable[links.Link], ours: tuple[str, ...]) -> list[links.Link]:
    """Those of a namespace's links that may lead to a router of the host: no port of a bridge, no bridge of containers,
    and no link whose name begins as one of the overlay's. A container's end of a link that another program made has
    accept_ra 0, or is the port of a bridge."""
    seen = [link for link in all_links if not link.name.startswith(ours)]
    wired = {link.master for link in seen if link.master and link.kind not in _CONTAINERS}
    return [
        link
        for link in seen
        if link.index != links.LOOPBACK and not link.master and (link.kind not in _INNER or link.index in wired)
    ]


def accepts(name: str) -> str | None:
    """The link's accept_ra; None if it has none."""
    return sysctl.read(f"ipv6/conf/{name}/accept_ra")


def keep(link: links.Link) -> bool:
    """Let a link that accepts router advertisements only without forwarding accept them in any case; returns whether
    that was changed. Raises OSError."""
    return accepts(link.name) == "1" and sysctl.ensure(f"ipv6/conf/{link.name}/accept_ra", "2")


def solicit(link: links.Link) -> None:
    """Ask the routers on the link for an advertisement. A link that is not ready is left to the kernel, which asks when
    the link is."""
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6) as sock,
    ):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.sendto(_SOLICITATION, (_ALL_ROUTERS, 0, 0, link.index))
