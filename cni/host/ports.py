"""A container's port: the veth, and what is configured at its end inside the container's namespace."""

from __future__ import annotations

import errno
from collections.abc import Sequence
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
    ("ipv6/conf/{}/accept_dad", "0"),
    ("ipv6/conf/{}/ndisc_notify", "1"),
)


@dataclass(frozen=True)
class Inside:
    """A container's end as found: its link (None: there is none), addresses and the namespace's routes."""

    link: links.Link | None
    addresses: tuple[links.Interface, ...] = ()
    routes: tuple[links.Route, ...] = ()


def has_interface(netns_fd: int, ifname: str) -> bool:
    """Whether the namespace has an interface of that name."""
    with _socket_inside(netns_fd) as inner:
        return links.find_link(inner, ifname) is not None


def inspect(netns_fd: int, ifname: str) -> Inside:
    """What the namespace holds under `ifname`. Reads only."""
    with _socket_inside(netns_fd) as inner:
        link = links.find_link(inner, ifname)
        if link is None:
            return Inside(None)
        addresses = tuple(address for _, address in addressing.list_addresses(inner, link.index))
        return Inside(link, addresses, tuple(addressing.list_routes(inner)))


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
        return Netlink()
