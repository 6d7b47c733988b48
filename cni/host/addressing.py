"""Addresses, routes and neighbours: ensure, remove and read them. The conventions are those of links.py."""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Collection

from cni.host import netlink as nl
from cni.host.links import (
    AF_INET,
    AF_INET6,
    GONE,
    RTN_UNICAST,
    Address,
    Interface,
    Network,
    Route,
    RoutePattern,
    family_of,
    number,
)

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS, IFA_PROTO = 1, 2, 4, 8, 11
RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE = 1, 2, 4, 5, 6, 7, 8, 15
RTA_MULTIPATH, RTAX_MTU, RTAX_ADVMSS = 9, 2, 8
NDA_DST = 1
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
RT_MAIN, RT_LOCAL, RTPROT_STATIC, RT_UNIVERSE, RT_LINK = 254, 255, 4, 0, 253
RT_UNSPECIFIED = 256  # the numbers of tables from here on do not fit the header

ADDRESS = struct.Struct("=BBBBI")
"""struct ifaddrmsg: family, prefix length, flags, scope, index."""
NEXT_HOP = struct.Struct("=HBBi")
"""struct rtnexthop: length, flags, hops, link index; attributes follow."""
ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, destination's and source's length, tos, table, protocol, scope, type, flags."""


def address_message(
    index: int, address: Interface, exclusive: bool = True, proto: int = 0, *, alone: bool = False
) -> nl.Message:
    """Add an address that is usable at once: IPv6 without duplicate address detection. `proto` records which program
    added it (IFA_PROTO); kernels before 5.18 do not store it. `alone`: without a route to its prefix."""
    raw = address.ip.packed
    body = ADDRESS.pack(family_of(address), address.network.prefixlen, 0, RT_UNIVERSE, index)
    body += nl.attribute(IFA_LOCAL, raw) + nl.attribute(IFA_ADDRESS, raw)
    if address.version == 6:
        body += nl.u32(IFA_FLAGS, IFA_F_NODAD | (IFA_F_NOPREFIXROUTE if alone else 0))
    elif address.network.prefixlen < 31:
        body += nl.attribute(IFA_BROADCAST, address.network.broadcast_address.packed)
    if proto:
        body += nl.u8(IFA_PROTO, proto)
    flags = nl.F_CREATE | (nl.F_EXCL if exclusive else nl.F_REPLACE)
    return nl.Message(nl.RTM_NEWADDR, flags, body, f"add address {address} to link {index}")


def ensure_address(socket: nl.Netlink, index: int, address: Interface, proto: int = 0) -> None:
    socket.send([address_message(index, address, exclusive=False, proto=proto)])


def remove_address(socket: nl.Netlink, index: int, address: Interface) -> None:
    body = ADDRESS.pack(family_of(address), address.network.prefixlen, 0, 0, index)
    body += nl.attribute(IFA_LOCAL, address.ip.packed) + nl.attribute(IFA_ADDRESS, address.ip.packed)
    gone = GONE | {errno.EADDRNOTAVAIL}
    socket.send([nl.Message(nl.RTM_DELADDR, 0, body, f"remove address {address} from link {index}", gone)])


def list_addresses(socket: nl.Netlink, index: int = 0) -> list[tuple[int, Interface]]:
    """(link index, address) of every address of the namespace; with `index` not 0, of that link only. A strict socket
    makes the kernel read that link alone."""
    addresses = []
    body = ADDRESS.pack(0, 0, 0, 0, index)
    for answer in socket.dump(nl.Message(nl.RTM_GETADDR, 0, body, "list addresses", GONE)):
        family, prefix, _, _, at = ADDRESS.unpack_from(answer.body)
        raw = nl.attributes(answer.body[8:])
        value = raw.get(IFA_LOCAL) or raw.get(IFA_ADDRESS)
        if family in (AF_INET, AF_INET6) and value and index in (0, at):
            addresses.append((at, _interface(value, prefix)))
    return addresses


def scan_addresses(
    socket: nl.Netlink, index: int, sought: Collection[Interface] | None, most: int
) -> tuple[list[Interface], bool]:
    """The addresses of one link of a container's namespace: those of `sought` that exist, or all (None).

    Reads at most `most` addresses, and stops when all of `sought` are found; the second value is False if the bound was
    reached before. The socket must be a strict one, and cannot serve another request afterwards. Raises NetlinkError.
    """
    addresses: dict[Interface, None] = {}
    left = None if sought is None else {(family_of(a), a.network.prefixlen, a.ip.packed): a for a in sought}

    def take(body: bytes) -> bool:
        family, prefix, _, _, at = ADDRESS.unpack_from(body)
        if at == index and family in (AF_INET, AF_INET6):
            raw = nl.attributes(body[8:])
            value = raw.get(IFA_LOCAL) or raw.get(IFA_ADDRESS)
            if left is None and value:
                addresses[_interface(value, prefix)] = None
            elif left is not None and value and (family, prefix, value) in left:
                addresses[left.pop((family, prefix, value))] = None
        return left is not None and not left

    if left is not None and not left:
        return [], True
    body = ADDRESS.pack(0, 0, 0, 0, index)
    whole = socket.scan(nl.Message(nl.RTM_GETADDR, 0, body, f"list addresses of link {index}", GONE), most, take)
    return list(addresses), whole


def _interface(raw: bytes, prefix: int) -> Interface:
    return ipaddress.ip_interface((raw, prefix))


# --- routes -------------------------------------------------------------------------------------------------------


def _route_body(route: Route, table: int) -> bytes:
    scope = RT_LINK if route.gateway is None and route.dst.version == 4 and route.oif else RT_UNIVERSE
    low = table if table < RT_UNSPECIFIED else 0
    body = ROUTE.pack(family_of(route.dst), route.dst.prefixlen, 0, 0, low, RTPROT_STATIC, scope, route.type, 0)
    body += b"" if low else nl.u32(RTA_TABLE, table)
    if route.dst.prefixlen:
        body += nl.attribute(RTA_DST, route.dst.network_address.packed)
    if route.gateway is not None:
        body += nl.attribute(RTA_GATEWAY, route.gateway.packed)
    return body + (nl.u32(RTA_OIF, route.oif) if route.oif else b"")


def route_message(route: Route, forgive: frozenset[int] = frozenset(), table: int = RT_MAIN) -> nl.Message:
    """Add a route to a table. The kernel answers EEXIST if the destination already has a route there."""
    what = f"add route {route.dst} via {route.gateway or f'link {route.oif}'}"
    return nl.Message(nl.RTM_NEWROUTE, nl.F_CREATE | nl.F_EXCL, _route_body(route, table), what, forgive)


def replace_route_message(route: Route) -> nl.Message:
    """Add a route to the main table, in place of one to the same destination."""
    what = f"set route {route.dst} by link {route.oif}"
    return nl.Message(nl.RTM_NEWROUTE, nl.F_CREATE | nl.F_REPLACE, _route_body(route, RT_MAIN), what)


def removal_message(route: Route, forgive: frozenset[int]) -> nl.Message:
    """Remove a route from the main table."""
    what = f"remove route {route.dst}"
    return nl.Message(nl.RTM_DELROUTE, 0, _route_body(route, RT_MAIN), what, forgive)


def list_routes(socket: nl.Netlink) -> list[Route]:
    """The routes of the main table, of both families."""
    ask = nl.Message(nl.RTM_GETROUTE, 0, ROUTE.pack(*[0] * 9), "list routes")
    bodies = (answer.body for answer in socket.dump(ask))
    ours = (main_route(body) for body in bodies if body[0] in (AF_INET, AF_INET6))
    return [route for route in ours if route is not None]


def scan_routes(
    socket: nl.Netlink,
    family: int,
    oif: int,
    sought: Collection[tuple[Network, Address]] | None,
    most: int,
    *,
    tables: Collection[int] = (RT_MAIN,),
) -> tuple[list[Route], bool]:
    """The routes of one family in these tables of a container's namespace, by link `oif` (0: any link): those of
    `sought`, as (destination, gateway), that exist, or all (None). Bound, result and socket as in `scan_addresses`.
    """
    routes: dict[Route, None] = {}
    left = None if sought is None else {(d.prefixlen, d.network_address.packed, g.packed) for d, g in sought}
    prefixes = None if left is None else {prefix for prefix, _, _ in left}

    def take(body: bytes) -> bool:
        if body[0] != family or (prefixes is not None and body[1] not in prefixes):
            return False
        route = _route_in(body, tables)
        if route is not None and oif in (0, route.oif):
            if left is None:
                routes[route] = None
            elif route.gateway is not None and route.type == RTN_UNICAST:
                key = (route.dst.prefixlen, route.dst.network_address.packed, route.gateway.packed)
                if key in left:
                    left.remove(key)
                    routes[route] = None
        return left is not None and not left

    if left is not None and not left:
        return [], True
    body = ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    body += b"".join(nl.u32(RTA_TABLE, table) for table in tables if len(tables) == 1)
    body += nl.u32(RTA_OIF, oif) if oif else b""
    none = GONE | {errno.ENOENT}  # the kernel creates the table with its first route
    whole = socket.scan(nl.Message(nl.RTM_GETROUTE, 0, body, "list routes", none), most, take)
    return list(routes), whole


def find_patterns(
    socket: nl.Netlink, family: int, patterns: Collection[RoutePattern], most: int
) -> tuple[list[RoutePattern], bool]:
    """Those of `patterns`, all of one family, of which a container's namespace has a route, by any link and in any
    table but `local`. Bound, result and socket as in `scan_addresses`."""
    left: dict[tuple[int, bytes], list[RoutePattern]] = {}
    for pattern in patterns:
        left.setdefault((pattern.dst.prefixlen, pattern.dst.network_address.packed), []).append(pattern)
    matched: list[RoutePattern] = []

    def take(body: bytes) -> bool:
        if body[0] == family:
            raw = nl.attributes(body[12:])
            key = (body[1], raw.get(RTA_DST, bytes(4 if family == AF_INET else 16)))
            for pattern in [pattern for pattern in left.get(key, ()) if _matches(pattern, body, raw)]:
                matched.append(pattern)
                left[key].remove(pattern)
                if not left[key]:
                    del left[key]
        return not left

    if not left:
        return [], True
    body = ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    whole = socket.scan(nl.Message(nl.RTM_GETROUTE, 0, body, "list routes", frozenset({errno.ENOENT})), most, take)
    return matched, whole


def _matches(pattern: RoutePattern, body: bytes, raw: dict[int, bytes]) -> bool:
    """Whether the route in the body of an RTM_NEWROUTE message, with these attributes, fits the pattern."""
    family, _, _, _, table, _, scope, kind, _ = ROUTE.unpack_from(body)
    table = number(raw.get(RTA_TABLE)) or table
    if kind != RTN_UNICAST or table == RT_LOCAL or pattern.table not in (None, table):
        return False
    metrics = nl.attributes(raw.get(RTA_METRICS, b""))
    return (
        (pattern.gateway is None or pattern.gateway.packed in _gateways(raw))
        and pattern.priority in (0, number(raw.get(RTA_PRIORITY)))
        and pattern.mtu in (0, number(metrics.get(RTAX_MTU)))
        and pattern.advmss in (0, number(metrics.get(RTAX_ADVMSS)))
        and (family == AF_INET6 or pattern.scope in (None, scope))  # the kernel keeps no scope of an IPv6 route
    )


def _gateways(raw: dict[int, bytes]) -> list[bytes]:
    """The gateway of each next hop of a route; empty for a next hop without one."""
    gateways = [raw.get(RTA_GATEWAY, b"")]
    several = raw.get(RTA_MULTIPATH, b"")
    while len(several) >= NEXT_HOP.size:
        size, _, _, _ = NEXT_HOP.unpack_from(several)
        if size < NEXT_HOP.size:
            break
        gateways.append(nl.attributes(several[NEXT_HOP.size : size]).get(RTA_GATEWAY, b""))
        several = several[(size + 3) & ~3 :]
    return gateways


def find_default(socket: nl.Netlink, family: int, most: int, otherwise: OSError) -> bool:
    """Whether the main table has a default route of that family. Raises `otherwise` if there are more than `most`
    routes and the first `most` hold no default route. The socket cannot serve another request afterwards."""
    is_unicast = False

    def take(body: bytes) -> bool:
        nonlocal is_unicast
        route = main_route(body) if body[0] == family and body[1] == 0 else None
        is_unicast = route is not None and route.type == RTN_UNICAST
        return is_unicast

    body = ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + nl.u32(RTA_TABLE, RT_MAIN)
    none = frozenset({errno.ENOENT})
    if not socket.scan(nl.Message(nl.RTM_GETROUTE, 0, body, "look for a default route", none), most, take):
        raise otherwise
    return is_unicast


def main_route(body: bytes) -> Route | None:
    """The route in the body of an RTM_NEWROUTE message; None if it is not in the main table."""
    return _route_in(body, (RT_MAIN,))


def _route_in(body: bytes, tables: Collection[int]) -> Route | None:
    """The route in the body of an RTM_NEWROUTE message; None if it is in no table of these."""
    family, prefix, _, _, table, _, _, kind, _ = ROUTE.unpack_from(body)
    raw = nl.attributes(body[12:])
    if (number(raw.get(RTA_TABLE)) or table) not in tables:
        return None
    gateway = raw.get(RTA_GATEWAY)
    return Route(
        ipaddress.ip_network((raw.get(RTA_DST, bytes(4 if family == AF_INET else 16)), prefix)),
        ipaddress.ip_address(gateway) if gateway else None,
        number(raw.get(RTA_OIF)),
        kind,
    )


def route_to(socket: nl.Netlink, address: Address, source: Address | None = None) -> Route | None:
    """The route that a packet to `address`, from the own address `source` if given, would take now, or None. The cost
    is independent of the number of routes."""
    bits = 8 * len(address.packed)
    source_bits = bits if source is not None else 0
    body = ROUTE.pack(family_of(address), bits, source_bits, 0, 0, 0, 0, 0, 0) + nl.attribute(RTA_DST, address.packed)
    body += nl.attribute(RTA_SRC, source.packed) if source is not None else b""
    nowhere = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})
    answers = socket.send([nl.Message(nl.RTM_GETROUTE, 0, body, f"look for a route to {address}", nowhere)]).answers
    if not answers:
        return None
    raw = nl.attributes(answers[0].body[12:])
    gateway = raw.get(RTA_GATEWAY)
    return Route(
        ipaddress.ip_network((address.packed, bits)),
        ipaddress.ip_address(gateway) if gateway else None,
        number(raw.get(RTA_OIF)),
        answers[0].body[7],
    )


def source_to(socket: nl.Netlink, address: Address) -> Address | None:
    """The source address that the kernel gives to a packet to `address` now; None without a route."""
    bits = 8 * len(address.packed)
    body = ROUTE.pack(family_of(address), bits, 0, 0, 0, 0, 0, 0, 0) + nl.attribute(RTA_DST, address.packed)
    nowhere = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})
    answers = socket.send([nl.Message(nl.RTM_GETROUTE, 0, body, f"look for a route to {address}", nowhere)]).answers
    source = nl.attributes(answers[0].body[12:]).get(RTA_PREFSRC) if answers else None
    return ipaddress.ip_address(source) if source else None


def remove_neighbour(socket: nl.Netlink, index: int, address: Address) -> None:
    """Remove the neighbour entry of `address` on a link."""
    body = struct.pack("=BBHIHBB", family_of(address), 0, 0, index, 0, 0, 0)
    body += nl.attribute(NDA_DST, address.packed)
    gone = GONE | {errno.ENOENT, errno.ESRCH}
    socket.send([nl.Message(nl.RTM_DELNEIGH, 0, body, f"forget neighbour {address}", gone)])
