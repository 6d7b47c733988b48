"""Ports that are routed without a bridge: the host end of the veth, with its gateways, routes and neighbours.

The host end has the gateway of each of the container's addresses, as a single address. Each address of the container
has a host route to it, and a permanent neighbour entry, so that no packet waits for ARP or neighbour discovery, and a
container cannot change the entry. The subnets of such a service are unreachable on the node except for these routes:
a packet for an unused address does not follow the default route.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from cni.host import addressing, link_settings, links, sysctl
from cni.host import netlink as nl

NDA_DST, NDA_LLADDR, NDA_IFINDEX = 1, 2, 8
NUD_PERMANENT = 0x80
RTN_UNREACHABLE = 7
RTM_GETNEIGH = 30
_NEIGHBOUR = struct.Struct("=BBHIHBB")
"""struct ndmsg: family, padding, link index, state, flags, type."""
_EXISTS, _NO_ROUTE = frozenset({errno.EEXIST}), frozenset({errno.ESRCH, errno.ENOENT})

# ARP is answered for the gateway alone, and a sender that the host would not route back to by this link is ignored
# (rp_filter 1): its request would otherwise add an entry to the host's neighbour table.
_IPV4 = (("arp_ignore", "1"), ("send_redirects", "0"), ("rp_filter", "1"), ("forwarding", "1"))
_IPV6 = (("disable_ipv6", "0"), ("accept_ra", "0"), ("autoconf", "0"))
_IPV6_FORWARDING = (("forwarding", "1"),)
"""IPv6 forwards by the setting of `all`; that of the link decides only whether proxied neighbours are answered for."""


@dataclass(frozen=True)
class RoutedEnd:
    """The host end of a routed port. `addresses`: the container's; `gateways`: one for each address family; `mac`: the
    container's."""

    index: int
    name: str
    addresses: tuple[links.Address, ...]
    gateways: tuple[links.Address, ...]
    mac: str


@dataclass
class HostSide:
    """What the node has for one host end: its addresses, the destinations of its routes, and the MAC of each permanent
    neighbour."""

    addresses: set[links.Address] = field(default_factory=set)
    routes: set[links.Network] = field(default_factory=set)
    neighbours: dict[links.Address, str] = field(default_factory=dict)

    def lacks(self, end: RoutedEnd) -> list[str]:
        """What is missing for `end`, one line each. Pure."""
        hosts = [address for address in end.addresses if ipaddress.ip_network(address) not in self.routes]
        strange = [address for address in end.addresses if self.neighbours.get(address) != end.mac]
        return [
            *(f"the host interface {end.name} lacks the gateway {g}" for g in end.gateways if g not in self.addresses),
            *(f"the node has no route to {address} by {end.name}" for address in hosts),
            *(f"the node has no neighbour entry of {address} with {end.mac} on {end.name}" for address in strange),
        ]


# --- one port -------------------------------------------------------------------------------------------------------


def configure(end: RoutedEnd) -> None:
    """The kernel's IPv6 settings of the host end, before it comes up. Idempotent. Raises OSError."""
    if any(address.version == 6 for address in end.addresses):
        sysctl.put_all(f"ipv6/conf/{end.name}", _IPV6)
        sysctl.put_all(f"ipv6/conf/{end.name}", _IPV6_FORWARDING, needed=False)


def raise_port(socket: nl.Netlink, end: RoutedEnd, owner: str = "") -> None:
    """Bring the host end up with its IPv4 settings, gateways, routes and neighbours, in one send. Idempotent.

    `owner` becomes the link's alias ("": the alias stays). The host end gets no link-local address: the gateway is the
    only address of the host that a container needs there. Raises NetlinkError.
    """
    body = nl.ifinfo(end.index, links.IFF_UP, links.IFF_UP)
    body += nl.text(links.IFLA_IFALIAS, owner) if owner else b""
    up = nl.Message(nl.RTM_NEWLINK, 0, body, f"bring up link {end.index}")
    gateways = [
        addressing.address_message(end.index, ipaddress.ip_interface(gateway), exclusive=False, alone=True)
        for gateway in end.gateways
    ]
    routes = [_host_route(address, end.index) for address in end.addresses]
    socket.send(
        [
            link_settings.ipv4_message(end.index, _IPV4),
            link_settings.gen_mode_message(end.index, link_settings.GEN_MODE_NONE),
            up,
            *gateways,
            *(addressing.replace_route_message(route) for route in routes),
            *(neighbour_message(end.index, address, end.mac) for address in end.addresses),
        ]
    )


def _host_route(address: links.Address, index: int) -> links.Route:
    return links.Route(ipaddress.ip_network(address), None, index)


def neighbour_message(index: int, address: links.Address, mac: str) -> nl.Message:
    """Add or replace the permanent neighbour entry of `address` on a link."""
    body = _NEIGHBOUR.pack(links.family_of(address), 0, 0, index, NUD_PERMANENT, 0, 0)
    body += nl.attribute(NDA_DST, address.packed) + nl.attribute(NDA_LLADDR, links.mac_bytes(mac))
    return nl.Message(nl.RTM_NEWNEIGH, nl.F_CREATE | nl.F_REPLACE, body, f"set neighbour {address} on link {index}")


def set_neighbours(socket: nl.Netlink, index: int, addresses: Iterable[links.Address], mac: str) -> None:
    """Give the container's addresses another MAC on the host end. Idempotent. Raises NetlinkError."""
    socket.send([neighbour_message(index, address, mac) for address in addresses])


def views(index: int = 0) -> dict[int, HostSide]:
    """What the node has for the link of that index, or for each link (0), by link index. Raises OSError."""
    found: dict[int, HostSide] = {}
    with nl.Netlink(strict=True) as socket:
        for at, address in addressing.list_addresses(socket, index):
            found.setdefault(at, HostSide()).addresses.add(address.ip)
        for family in (links.AF_INET, links.AF_INET6):
            for route in _routes(socket, family, index):
                found.setdefault(route.oif, HostSide()).routes.add(route.dst)
        for at, neighbour, mac in list_neighbours(socket, index):
            found.setdefault(at, HostSide()).neighbours[neighbour] = mac
    return found


def _routes(socket: nl.Netlink, family: int, index: int) -> Iterable[links.Route]:
    body = addressing.ROUTE.pack(family, *[0] * 8) + nl.u32(addressing.RTA_TABLE, addressing.RT_MAIN)
    body += nl.u32(addressing.RTA_OIF, index) if index else b""
    none = links.GONE | {errno.ENOENT}  # the kernel creates the table with its first route
    for answer in socket.dump(nl.Message(nl.RTM_GETROUTE, 0, body, "list routes", none)):
        route = addressing.main_route(answer.body)
        if route is not None and route.gateway is None:
            yield route


def list_neighbours(socket: nl.Netlink, index: int = 0) -> Iterable[tuple[int, links.Address, str]]:
    """The permanent neighbour entries with a MAC: (link index, address, MAC); with `index` not 0, of that link only.
    The socket must be a strict one."""
    body = _NEIGHBOUR.pack(0, 0, 0, 0, 0, 0, 0) + (nl.u32(NDA_IFINDEX, index) if index else b"")
    for answer in socket.dump(nl.Message(RTM_GETNEIGH, 0, body, "list neighbours", links.GONE)):
        family, _, _, at, state, _, _ = _NEIGHBOUR.unpack_from(answer.body)
        if family not in (links.AF_INET, links.AF_INET6) or not state & NUD_PERMANENT:
            continue
        raw = nl.attributes(answer.body[_NEIGHBOUR.size :])
        if NDA_DST in raw and NDA_LLADDR in raw:
            yield at, ipaddress.ip_address(raw[NDA_DST]), links.mac_text(raw[NDA_LLADDR])


# --- the subnets of a service -----------------------------------------------------------------------------------------


def close_subnets(socket: nl.Netlink, subnets: Collection[links.Network]) -> None:
    """Make the subnets unreachable on the node, except for the routes of ports. Idempotent. Raises NetlinkError."""
    socket.send([addressing.route_message(_unreachable(subnet), _EXISTS) for subnet in subnets])


def open_subnets(socket: nl.Netlink, subnets: Collection[links.Network]) -> None:
    """Remove the routes of `close_subnets`. Idempotent. Raises NetlinkError."""
    socket.send([addressing.removal_message(_unreachable(subnet), _NO_ROUTE) for subnet in subnets])


def closed_subnets() -> set[links.Network]:
    """The networks that a route of the main table makes unreachable. Raises OSError."""
    with nl.Netlink(strict=True) as socket:
        bodies = [
            answer.body
            for family in (links.AF_INET, links.AF_INET6)
            for answer in socket.dump(
                nl.Message(nl.RTM_GETROUTE, 0, addressing.ROUTE.pack(family, *[0] * 8), "list routes")
            )
            if answer.body[7] == RTN_UNREACHABLE
        ]
    return {route.dst for body in bodies if (route := addressing.main_route(body)) is not None}


def _unreachable(subnet: links.Network) -> links.Route:
    return links.Route(subnet, None, 0, RTN_UNREACHABLE)


def lacking(ends: Iterable[RoutedEnd], seen: Mapping[int, HostSide]) -> dict[str, list[str]]:
    """What is missing for each of `ends` that is not whole, by the name of the host end. Pure."""
    lacks = {end.name: seen.get(end.index, HostSide()).lacks(end) for end in ends}
    return {name: texts for name, texts in lacks.items() if texts}
