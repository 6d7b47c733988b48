"""A container's port: the veth, and what is configured at its end inside the container's namespace."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from cni.host import addressing, links, sysctl
from cni.host.netlink import Message, Netlink
from cni.host.netns import entered

# What a container's interface must not do by itself (accept autoconfiguration), must do (tell neighbours that the
# address is here now), and must not wait for (duplicate address detection: 1 to 2 s).
SETTINGS = (
    ("ipv4/conf/{}/arp_notify", "1"),
    ("ipv6/conf/{}/disable_ipv6", "0"),
    ("ipv6/conf/{}/accept_ra", "0"),
    ("ipv6/conf/{}/autoconf", "0"),
    *(("ipv6/conf/{}/" + setting, "0") for setting in sysctl.NO_DAD),
    ("ipv6/conf/{}/ndisc_notify", "1"),
)


MOST = {"addresses": 4096, "routes": 16384}
"""What one look reads in a container's namespace, of the interface's addresses and of each family's routes: a container
adds as many as it likes, and 200,000 routes cost a look 2.6 s and 120 MB when all of them were read."""


@dataclass(frozen=True)
class Sought:
    """What a look is for: addresses of the interface, and routes by it as (destination, gateway)."""

    addresses: frozenset[links.Interface] = frozenset()
    routes: frozenset[tuple[links.Network, links.Address]] = frozenset()


@dataclass(frozen=True)
class ContainerView:
    """A container's end as found: its link (None: there is none), its addresses and routes, of those sought.

    `unread` names what was not read to its end ("addresses", "routes"): there are more than MOST of them, and
    something of what was sought was not among those.
    """

    link: links.Link | None
    addresses: tuple[links.Interface, ...] = ()
    routes: tuple[links.Route, ...] = ()
    unread: tuple[str, ...] = ()

    def bound(self, what: str) -> int:
        """How many of `what` were read, where there are more of them; else 0."""
        return MOST[what] if what in self.unread else 0


class Crowded(OSError):
    """A container's namespace holds more than is read of it."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.E2BIG, f"the namespace has more than {MOST[what]} {what}")


def has_interface(netns_fd: int, ifname: str) -> bool:
    """Whether the namespace has an interface of that name."""
    with _socket_inside(netns_fd) as inner:
        return links.find_link(inner, ifname) is not None


def inspect(netns_fd: int, ifname: str, sought: Sought) -> ContainerView:
    """What the namespace holds under `ifname` of what is sought. Reads only, and no more than MOST of a kind."""
    families = sorted({links.family_of(dst) for dst, _ in sought.routes})
    with ExitStack() as stack:
        with entered(netns_fd):  # a scan may leave its socket unusable
            first, *others = [stack.enter_context(Netlink(strict=True)) for _ in range(2 + len(families))]
        link = links.find_link(first, ifname)
        if link is None:
            return ContainerView(None)
        addresses, whole = addressing.scan_addresses(first, link.index, sought.addresses, MOST["addresses"])
        unread = [] if whole else ["addresses"]
        routes: list[links.Route] = []
        for family, socket in zip(families, others, strict=False):
            wanted = {route for route in sought.routes if links.family_of(route[0]) == family}
            found, whole = addressing.scan_routes(socket, family, link.index, wanted, MOST["routes"])
            routes += found
            unread += [] if whole else ["routes"]
        return ContainerView(link, tuple(addresses), tuple(routes), tuple(dict.fromkeys(unread)))


def read(netns_fd: int, ifname: str) -> ContainerView:
    """Everything the namespace holds under `ifname`: its link, addresses and routes. Raises Crowded past MOST."""
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
            found, whole = addressing.scan_routes(socket, family, 0, None, MOST["routes"])
            if not whole:
                raise Crowded("routes")
            routes += found
        return ContainerView(link, tuple(addresses), tuple(routes))


def has_default_route(netns_fd: int, family: int) -> bool:
    """Whether packets of a family have a default route in the namespace, by any link. Raises Crowded past MOST routes,
    if there is none among those that were read."""
    with _socket_inside(netns_fd) as inner:
        return addressing.find_default(inner, family, MOST["routes"], Crowded("routes"))


def configure(
    netns_fd: int,
    index: int,
    ifname: str,
    addresses: Sequence[links.Interface],
    routes: Sequence[links.Route],
) -> list[links.Route]:
    """Bring lo and the container's end up with its addresses and routes, in one send.

    Returns the routes that were not added because the container has one to that destination already: a second network
    does not take the default route of the first. Raises OSError, NetlinkError.
    """
    with entered(netns_fd):
        inner = Netlink()
        for path, value in SETTINGS:
            sysctl.put(path.format(ifname), value)
    with inner:
        first: list[Message] = [links.up_message(links.LOOPBACK), links.up_message(index)]
        first += [addressing.address_message(index, address) for address in addresses]
        exists = frozenset({errno.EEXIST})
        batch = first + [addressing.route_message(route, exists) for route in routes]
        outcome = inner.send(batch)
        return [route for route, code in zip(routes, outcome.errors[len(first) :], strict=True) if code == errno.EEXIST]


def _socket_inside(netns_fd: int) -> Netlink:
    """A netlink socket that stays in the namespace, whoever uses it."""
    with entered(netns_fd):
        return Netlink(strict=True)
