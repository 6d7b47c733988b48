"""Which links of the node forward packets, as the kernel decides it: link by link for IPv4."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

from cni import naming
from cni.host import addressing, links, netconf
from cni.host.netlink import Netlink

OURS = ("zl-", "veth-")  # prefixes of the names of our bridges, devices and ports
ROUTED = ("bridge", "tun", "wireguard")  # the kinds of our links whose incoming packets the node routes
# Documentation addresses (RFC 5737, RFC 3849): only a default route covers them.
OUTSIDE = (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1"))


def is_routed(link: links.Link) -> bool:
    """Whether the node routes the packets that come in by this link of the overlay: a bridge, a tunnel, or a port that
    is on no bridge."""
    is_port = link.kind == "veth" and not link.master and link.alias.startswith(naming.OWNER)
    return link.name.startswith(OURS) and (link.kind in ROUTED or is_port)


def not_forwarding(socket: Netlink, all_links: Callable[[], Iterable[links.Link]]) -> list[str]:
    """The links from which the kernel forwards no IPv4 packet and should: the overlay's, and those by which the host
    reaches other networks. `all_links` is called only if a link is closed. The cost grows with the number of links, and
    of routes only if another link is closed."""
    off = netconf.not_forwarding(socket)
    closed = [link for link in all_links() if link.index in off] if off else []
    ours = [link.name for link in closed if is_routed(link)]
    others = [link for link in closed if not link.name.startswith(OURS) and link.index != links.LOOPBACK]
    ways = _ways_out(socket) if others else set()
    return [*ours, *(link.name for link in others if link.index in ways)]


def _ways_out(socket: Netlink) -> set[int]:
    """The indices of the links by which the host reaches networks that it is not on."""
    route = addressing.route_to(socket, OUTSIDE[0])
    routes = addressing.list_routes(socket)
    far = {route.oif for route in routes if route.dst.version == 4 and (route.gateway or not route.dst.prefixlen)}
    return far | ({route.oif} if route is not None else set())
