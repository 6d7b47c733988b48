"""Routes into tunnels, the MTU of paths in the underlay, and proxy entries for addresses behind tunnels."""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cni.host import addressing, links
from cni.host import netlink as nl

RTA_METRICS, RTAX_MTU, RTA_CACHEINFO = 8, 2, 12
NTF_PROXY, NUD_PERMANENT = 0x08, 0x80
_EXPIRES = slice(8, 12)  # of struct rta_cacheinfo
BATCH = 200  # messages in one send
_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ESRCH})
# Errors of one route: the destination has a route, its family is off on the link, its source address does not exist.
_OF_ONE_ROUTE = frozenset(
    {
        errno.EEXIST,
        errno.EACCES,
        errno.EPERM,
        errno.EINVAL,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EOPNOTSUPP,
    }
)


@dataclass(frozen=True)
class TunnelRoute:
    """A destination behind a tunnel. `mtu`: the MTU of its path in bytes, 0 for that of the device; `source`: the
    source address of the host's own packets."""

    dst: links.Network
    mtu: int = 0
    source: links.Address | None = None


@dataclass
class RoutesInForce:
    """The routes ensured last for a device, with the fingerprint of all routes at that time."""

    desired: Mapping[links.Network, TunnelRoute]
    index: int
    mark: bytes
    refused: dict[links.Network, int] = field(default_factory=dict)

    def same(self, other: RoutesInForce) -> bool:
        """Whether both stand for one object of desired routes, one device, and unchanged routes of the namespace."""
        return self.desired is other.desired and (self.index, self.mark) == (other.index, other.mark)


def ensure_routes(
    socket: nl.Netlink, index: int, desired: Mapping[links.Network, TunnelRoute]
) -> tuple[bool, dict[links.Network, int]]:
    """Add, replace and remove the routes into a device; returns whether nothing had to change, and the destinations
    that the kernel refused with the error number."""
    have = list_routes(socket, index)
    changed = [have[dst] for dst in have.keys() & desired.keys() if have[dst] != desired[dst]]
    remove_routes(socket, index, changed)
    missing = [route for route in desired.values() if have.get(route.dst) != route]
    refused = add_routes(socket, index, missing)
    stale = [have[dst] for dst in have.keys() - desired.keys()]
    remove_routes(socket, index, stale)
    was_right = not (changed or stale) and len(refused) == len(missing)
    return was_right, refused


def list_routes(socket: nl.Netlink, index: int) -> dict[links.Network, TunnelRoute]:
    """The routes into one device, without link-local and multicast ones."""
    routes = {}
    body = addressing.ROUTE.pack(*[0] * 9) + nl.u32(addressing.RTA_OIF, index)
    for answer in socket.dump(nl.Message(nl.RTM_GETROUTE, 0, body, "list routes")):
        family, prefix, _, _, table, _, _, kind, _ = addressing.ROUTE.unpack_from(answer.body)
        raw = nl.attributes(answer.body[12:])
        relevant = (
            family in (links.AF_INET, links.AF_INET6) and kind == links.RTN_UNICAST and table == addressing.RT_MAIN
        )
        if not relevant or links.number(raw.get(addressing.RTA_OIF)) != index:
            continue
        zero = bytes(4 if family == links.AF_INET else 16)
        dst = ipaddress.ip_network((raw.get(addressing.RTA_DST, zero), prefix))
        if not (dst.is_link_local or dst.is_multicast):
            source = raw.get(addressing.RTA_PREFSRC)
            routes[dst] = TunnelRoute(dst, _mtu(raw), ipaddress.ip_address(source) if source else None)
    return routes


def fingerprint(socket: nl.Netlink) -> bytes:
    """A hash of all routes of the namespace, which changes with any route: much cheaper than decoding the routes."""
    digest = hashlib.blake2b(digest_size=16)
    for answer in socket.dump(nl.Message(nl.RTM_GETROUTE, 0, addressing.ROUTE.pack(*[0] * 9), "list routes")):
        if answer.body[0] == links.AF_INET6:  # they include the time of their last use
            digest.update(repr(sorted(_lasting(answer.body).items())).encode())
        digest.update(answer.body if answer.body[0] != links.AF_INET6 else answer.body[:12])
    return digest.digest()


def _lasting(body: bytes) -> dict[int, bytes]:
    attrs = nl.attributes(body[12:])
    attrs.pop(RTA_CACHEINFO, None)
    return attrs


def _mtu(attributes: dict[int, bytes]) -> int:
    return links.number(nl.attributes(attributes.get(RTA_METRICS, b"")).get(RTAX_MTU))


def _body(index: int, route: TunnelRoute) -> bytes:
    body = addressing.ROUTE.pack(
        links.family_of(route.dst),
        route.dst.prefixlen,
        0,
        0,
        addressing.RT_MAIN,
        addressing.RTPROT_STATIC,
        addressing.RT_LINK if route.dst.version == 4 else addressing.RT_UNIVERSE,
        links.RTN_UNICAST,
        0,
    )
    if route.dst.prefixlen:
        body += nl.attribute(addressing.RTA_DST, route.dst.network_address.packed)
    if route.source is not None and route.source.version == route.dst.version:
        body += nl.attribute(addressing.RTA_PREFSRC, route.source.packed)
    if route.mtu:
        body += nl.attribute(RTA_METRICS, nl.u32(RTAX_MTU, route.mtu))
    return body + nl.u32(addressing.RTA_OIF, index)


def add_routes(socket: nl.Netlink, index: int, routes: Iterable[TunnelRoute]) -> dict[links.Network, int]:
    """Add routes into the device; returns the destinations that the kernel refused, with the error number: EEXIST if
    another device already has a route to the destination."""
    refused: dict[links.Network, int] = {}
    for batch in _batches(list(routes)):
        done = socket.send(
            nl.Message(
                nl.RTM_NEWROUTE,
                nl.F_CREATE | nl.F_EXCL,
                _body(index, route),
                f"route {route.dst} to link {index}",
                _OF_ONE_ROUTE,
            )
            for route in batch
        )
        refused |= {route.dst: code for route, code in zip(batch, done.errors, strict=True) if code}
    return refused


def remove_routes(socket: nl.Netlink, index: int, routes: Iterable[TunnelRoute]) -> None:
    """Remove routes into the device; no error if a route does not exist."""
    for batch in _batches(list(routes)):
        socket.send(
            nl.Message(nl.RTM_DELROUTE, 0, _body(index, TunnelRoute(route.dst)), f"unroute {route.dst}", _GONE)
            for route in batch
        )


def _batches(routes: list[TunnelRoute]) -> Iterable[list[TunnelRoute]]:
    return (routes[at : at + BATCH] for at in range(0, len(routes), BATCH))


@dataclass(frozen=True)
class UnderlayRoute:
    """The route to an address of the underlay: the index of the link, and the MTU of the path in bytes as known to the
    kernel. `learned`: the MTU is below the link's because of an ICMP message, which may be forged."""

    link: int
    mtu: int
    learned: bool = False
    widest: int = 0  # bytes: the MTU of the link


def way_to(socket: nl.Netlink, address: links.Address) -> UnderlayRoute | None:
    """The kernel's route to an address; None if there is none."""
    return ways_to(socket, [address])[address]


def ways_to(socket: nl.Netlink, addresses: Iterable[links.Address]) -> dict[links.Address, UnderlayRoute | None]:
    """The kernel's routes to many addresses, with few system calls; None for an address without a route."""
    asked = list(addresses)
    routes: dict[links.Address, UnderlayRoute | None] = dict.fromkeys(asked)
    links_by_index: dict[int, links.Link | None] = {}
    outcome = socket.send(_ask_way(address) for address in asked)
    reachable = (address for address, code in zip(asked, outcome.errors, strict=True) if code == 0)
    for address, answer in zip(reachable, outcome.answers, strict=True):
        attrs = nl.attributes(answer.body[12:])
        index = links.number(attrs.get(addressing.RTA_OIF))
        if index not in links_by_index:
            links_by_index[index] = links.find_link(socket, index=index)
        link = links_by_index[index]
        if link is not None:
            mtu = min(_mtu(attrs) or link.mtu, link.mtu)
            routes[address] = UnderlayRoute(link.index, mtu, mtu < link.mtu and _expires(attrs), link.mtu)
    return routes


def _expires(attributes: dict[int, bytes]) -> bool:
    """Whether a route is an entry of the path cache: only those expire (rta_cacheinfo.rta_expires)."""
    cached = attributes.get(RTA_CACHEINFO, b"")
    return len(cached) >= _EXPIRES.stop and any(cached[_EXPIRES])


def _ask_way(address: links.Address) -> nl.Message:
    body = addressing.ROUTE.pack(links.family_of(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body += nl.attribute(addressing.RTA_DST, address.packed)
    no_way = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})
    return nl.Message(nl.RTM_GETROUTE, 0, body, f"look for the way to {address}", no_way)


def ensure_proxy(socket: nl.Netlink, index: int, address: links.Address) -> None:
    """Let the node answer on a link for an address behind a tunnel."""
    socket.send([nl.Message(nl.RTM_NEWNEIGH, nl.F_CREATE | nl.F_REPLACE, _proxy(index, address), f"proxy {address}")])


def remove_proxy(socket: nl.Netlink, index: int, address: links.Address) -> None:
    """Stop answering on a link for an address behind a tunnel."""
    gone = _GONE | {errno.ENOENT}
    socket.send([nl.Message(nl.RTM_DELNEIGH, 0, _proxy(index, address), f"no proxy for {address}", gone)])


def _proxy(index: int, address: links.Address) -> bytes:
    head = struct.pack("=BBHIHBB", links.family_of(address), 0, 0, index, NUD_PERMANENT, NTF_PROXY, 0)
    return head + nl.attribute(addressing.NDA_DST, address.packed)
