"""The container's end of a veth: what is configured and read inside the container's namespace."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from cni.host import addressing, link_settings, links, routed_ports, source_routes, sysctl
from cni.host.netlink import Message, Netlink, NetlinkError
from cni.host.netns import entered

# A container's interface must not accept autoconfiguration, must announce its address to its neighbours, and must not
# wait for duplicate address detection (1 to 2 s).
SETTINGS_IPV4 = (("arp_notify", "1"),)
SETTINGS_IPV6 = (
    ("accept_ra", "0"),
    ("autoconf", "0"),
    *((setting, "0") for setting in sysctl.NO_DAD),
    ("ndisc_notify", "1"),
)


MOST = {"addresses": 4096, "routes": 16384}
"""The most entries that one inspection reads in a container's namespace: addresses of the interface, and routes of each
family. A container may add any number: to read 200,000 routes took 2.6 s and 120 MB."""


@dataclass(frozen=True)
class Sought:
    """What an inspection searches for: addresses of the interface; routes by it as (destination, gateway), in the main
    table or in one to which a rule leads the packets from an address of the interface; routes of the namespace; and
    gateways as (own address, gateway) that the interface reaches directly; and permanent neighbour entries of the
    interface as (address, MAC)."""

    addresses: frozenset[links.Interface] = frozenset()
    routes: frozenset[tuple[links.Network, links.Address]] = frozenset()
    patterns: frozenset[links.RoutePattern] = frozenset()
    gateways: frozenset[tuple[links.Address, links.Address]] = frozenset()
    neighbours: frozenset[tuple[links.Address, str]] = frozenset()


@dataclass(frozen=True)
class GatewayEnd:
    """The gateways of a routed port, as the container's end needs them: their addresses, which are on no subnet of the
    container's, and the MAC of the host end."""

    addresses: tuple[links.Address, ...]
    mac: str

    def routes(self, index: int) -> list[links.Route]:
        """The routes by which the interface `index` reaches the gateways."""
        return [links.Route(ipaddress.ip_network(address), None, index) for address in self.addresses]


@dataclass(frozen=True)
class ContainerView:
    """The container's end as read: its link (None: there is none), and those of the sought addresses, routes, patterns,
    gateways and neighbours that exist.

    `unread` names the kinds that were not read to the end ("addresses", "routes"): there are more than MOST of them,
    and the first MOST did not hold everything that was sought.
    """

    link: links.Link | None
    addresses: tuple[links.Interface, ...] = ()
    routes: tuple[links.Route, ...] = ()
    unread: tuple[str, ...] = ()
    patterns: frozenset[links.RoutePattern] = frozenset()
    gateways: frozenset[tuple[links.Address, links.Address]] = frozenset()
    neighbours: frozenset[tuple[links.Address, str]] = frozenset()

    def bound(self, what: str) -> int:
        """How many of `what` were read, if there are more of them; else 0."""
        return MOST[what] if what in self.unread else 0


_EXISTS = frozenset({errno.EEXIST})
_ELSEWHERE = _EXISTS | {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL}
"""What the kernel answers if the gateway is behind another interface."""


class Crowded(OSError):
    """A container's namespace holds more entries than are read. `errno` is E2BIG."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.E2BIG, f"the namespace has more than {MOST[what]} {what}")


def has_interface(netns_fd: int, ifname: str) -> bool:
    """Whether the namespace has an interface of that name."""
    with _socket_inside(netns_fd) as inner:
        return links.find_link(inner, ifname) is not None


def inspect(netns_fd: int, ifname: str, sought: Sought) -> ContainerView:
    """The interface `ifname`, and those of the sought addresses, routes, patterns and gateways that exist. Reads
    only, and at most MOST entries of a kind."""
    families = (links.AF_INET, links.AF_INET6)
    with ExitStack() as stack:
        sockets = _Sockets(netns_fd, stack)
        link = links.find_link(sockets.usable(), ifname)
        if link is None:
            return ContainerView(None)
        addresses, whole = addressing.scan_addresses(sockets.usable(), link.index, sought.addresses, MOST["addresses"])
        unread = [] if whole else ["addresses"]
        routes: list[links.Route] = []
        patterns: list[links.RoutePattern] = []
        for family in families:
            left = {route for route in sought.routes if links.family_of(route[0]) == family}
            of_port, whole = addressing.scan_routes(sockets.usable(), family, link.index, left, MOST["routes"])
            left -= {(route.dst, route.gateway) for route in of_port if route.gateway is not None}
            if left and whole:
                sources = [address.ip for address in sought.addresses]
                further, whole = _by_source(netns_fd, family, link.index, left, sources)
                of_port += further
            anywhere = [pattern for pattern in sought.patterns if links.family_of(pattern.dst) == family]
            matched, all_read = addressing.find_patterns(sockets.usable(), family, anywhere, MOST["routes"])
            routes += of_port
            patterns += matched
            unread += [] if whole and all_read else ["routes"]
        gateways = frozenset(pair for pair in sought.gateways if _reaches(sockets.usable(), link.index, *pair))
        kinds = tuple(dict.fromkeys(unread))
        near = _neighbours(netns_fd, link.index, sought)
        return ContainerView(link, tuple(addresses), tuple(routes), kinds, frozenset(patterns), gateways, near)


def _neighbours(netns_fd: int, index: int, sought: Sought) -> frozenset[tuple[links.Address, str]]:
    """Those of the sought neighbour entries that the interface has."""
    if not sought.neighbours:
        return frozenset()
    with _socket_inside(netns_fd) as inner:
        return sought.neighbours & {(address, mac) for _, address, mac in routed_ports.list_neighbours(inner, index)}


class _Sockets:
    """Sockets of a container's namespace: another one when a scan has left the last one unusable."""

    def __init__(self, netns_fd: int, stack: ExitStack) -> None:
        """`stack` closes the sockets."""
        self._netns_fd, self._stack = netns_fd, stack
        self._last: Netlink | None = None

    def usable(self) -> Netlink:
        """A socket for one request or scan. Raises OSError."""
        if self._last is None or self._last.spent:
            self._last = self._stack.enter_context(_socket_inside(self._netns_fd))
        return self._last


def _reaches(socket: Netlink, index: int, own: links.Address, gateway: links.Address) -> bool:
    """Whether a packet from the address `own` to `gateway` leaves by the interface, without another gateway."""
    route = addressing.route_to(socket, gateway, own)
    return route is not None and (route.oif, route.gateway, route.type) == (index, None, links.RTN_UNICAST)


def _by_source(
    netns_fd: int,
    family: int,
    index: int,
    sought: Collection[tuple[links.Network, links.Address]],
    sources: Collection[links.Address],
) -> tuple[list[links.Route], bool]:
    """Those of the sought routes that are in tables to which rules lead packets from the interface's own addresses: the
    plugin `sbr` moves routes there. The second value is False if there are too many rules or routes."""
    with ExitStack() as stack:
        with entered(netns_fd):
            rules, routes = [stack.enter_context(Netlink(strict=True)) for _ in range(2)]
        tables, whole = source_routes.scan_tables(rules, family, sources, MOST["routes"])
        if not whole or not tables:
            return [], whole
        return addressing.scan_routes(routes, family, index, sought, MOST["routes"], tables=tables)


def read(netns_fd: int, ifname: str) -> ContainerView:
    """The interface `ifname` with all addresses, and all routes of the namespace. Raises Crowded beyond MOST."""
    with ExitStack() as stack:
        with entered(netns_fd):
            sockets = [stack.enter_context(Netlink(strict=True)) for _ in range(3)]
        link = links.find_link(sockets[0], ifname)
        if link is None:
            return ContainerView(None)
        addresses, whole = addressing.scan_addresses(sockets[0], link.index, None, MOST["addresses"])
        if not whole:
            raise Crowded("addresses")
        routes: list[links.Route] = []
        for family, socket in zip((links.AF_INET, links.AF_INET6), sockets[1:], strict=True):
            family_found, whole = addressing.scan_routes(socket, family, 0, None, MOST["routes"])
            if not whole:
                raise Crowded("routes")
            routes += family_found
        return ContainerView(link, tuple(addresses), tuple(routes))


def has_default_route(netns_fd: int, family: int) -> bool:
    """Whether the namespace has a default route of that family, by any link. Raises Crowded if there are more than MOST
    routes and none of those read is a default route."""
    with _socket_inside(netns_fd) as inner:
        return addressing.find_default(inner, family, MOST["routes"], Crowded("routes"))


def configure(
    netns_fd: int,
    index: int,
    ifname: str,
    addresses: Sequence[links.Interface],
    routes: Sequence[links.Route],
    *,
    gateway: GatewayEnd | None = None,
) -> list[links.Route]:
    """Bring up lo and the container's end, with its addresses and routes, in one send. `gateway`: of a routed port.

    Returns the routes that were not added because the container already has a route to that destination: a second
    network does not replace the default route of the first. Nor is a route added whose gateway another interface has
    as well: the kernel looks for the gateway behind that one. Raises OSError, NetlinkError.
    """
    with entered(netns_fd):
        inner = Netlink()
        if any(address.version == 6 for address in addresses):
            sysctl.put_all(f"ipv6/conf/{ifname}", (("disable_ipv6", "0"),))
        sysctl.put_all(f"ipv6/conf/{ifname}", SETTINGS_IPV6, needed=False)
    with inner:
        # The fence admits the link-local address that the MAC gives (EUI-64), whatever `default` says in the container.
        own = link_settings.gen_mode_message(index, link_settings.GEN_MODE_EUI64)
        four = link_settings.ipv4_message(index, SETTINGS_IPV4)
        first: list[Message] = [links.up_message(links.LOOPBACK), four, own, links.up_message(index)]
        first += [addressing.address_message(index, address) for address in addresses]
        near = gateway.routes(index) if gateway is not None else []
        if gateway is not None:
            first += [routed_ports.neighbour_message(index, address, gateway.mac) for address in gateway.addresses]
        batch = [addressing.route_message(route, _EXISTS) for route in near]
        batch += [addressing.route_message(route, _ELSEWHERE if near else _EXISTS) for route in routes]
        errors = inner.send(first + batch).errors[len(first) :]
    elsewhere = {route.dst.network_address for route, code in zip(near, errors, strict=False) if code}
    skipped = []
    for route, code in zip(routes, errors[len(near) :], strict=True):
        if code and code != errno.EEXIST and route.gateway not in elsewhere:
            raise NetlinkError(code, f"add route {route.dst} via {route.gateway}")
        skipped += [route] if code else []
    return skipped


def set_gateway(netns_fd: int, index: int, gateway: GatewayEnd) -> None:
    """Restore the neighbour entries of the gateways of a routed port. Idempotent. Raises OSError."""
    with _socket_inside(netns_fd) as inner:
        inner.send([routed_ports.neighbour_message(index, address, gateway.mac) for address in gateway.addresses])


def _socket_inside(netns_fd: int) -> Netlink:
    """A netlink socket of the namespace; it stays in that namespace whichever thread uses it."""
    with entered(netns_fd):
        return Netlink(strict=True)
