"""The networks of this host: its addresses, the routes of every table, its resolvers.

Reads only. The cost grows with the number of routes in the namespace, so no plugin call uses this module.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from socket import if_indextoname

from cni.host import addressing, links
from cni.host import netlink as nl

RESOLV_CONF = Path("/etc/resolv.conf")
UPSTREAM_CONF = Path(
    "/run/systemd/resolve/resolv.conf"
)  # the servers of systemd-resolved, if resolv.conf names only its stub
RTA_MULTIPATH, RTA_VIA = 9, 18
RTM_F_CLONED = 0x200  # an entry of the path cache, which an IPv4 dump includes
_TO_MANY = frozenset({3, 4, 5})  # RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST: no networks; IPv6 has one for each link
_NEXT_HOP = struct.Struct("=HBBI")
"""struct rtnexthop: length, flags, hops, link index; attributes follow."""


def is_own(address: str) -> bool:
    """Whether an address is one of this host's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return _can_bind(family, (address, 0))


def has_own_address(connection: socket.socket) -> bool:
    """Whether the address that a connection has at this end is still one of this host's. Nothing is heard any more on
    a connection of a former address, and nothing says so for as long as TCP repeats."""
    address, _, *scope = connection.getsockname()
    return _can_bind(connection.family, (address, 0, *scope))


def _can_bind(family: int, place: tuple[object, ...]) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(place)
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """An address of the host: the link's name, the address, and the other end's network on a point-to-point link.

    `proto` is IFA_PROTO, 0 if the kernel does not store it (before Linux 5.18)."""

    link: str
    address: links.Interface
    peer: links.Network | None = None
    proto: int = 0


@dataclass(frozen=True, slots=True)
class RouteSeen:
    """A route of any table: the names of its links, its gateways, its type (RTN_*), its table. Routes to broadcast,
    anycast and multicast addresses are left out."""

    dst: links.Network
    by: tuple[str, ...]
    gateways: tuple[links.Address, ...] = ()
    type: int = links.RTN_UNICAST
    table: int = addressing.RT_MAIN


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The host's addresses, routes and resolvers, read together."""

    addresses: tuple[HeldAddress, ...] = ()
    routes: tuple[RouteSeen, ...] = ()
    resolvers: tuple[links.Address, ...] = ()


def read() -> Surroundings:
    """Read the host's networks in the calling thread's network namespace. Raises OSError."""
    with nl.Netlink() as socket:
        names = _Names()
        return Surroundings(tuple(_addresses(socket, names)), tuple(_routes(socket, names)), tuple(resolvers()))


class _Names(dict[int, str]):
    """The names of links by index, each looked up when it is first needed, without a wait for the kernel's lock of
    links: of the links of a full node most have neither an address nor a route that counts. A link that is gone has the
    name ""."""

    def __missing__(self, index: int) -> str:
        try:
            self[index] = if_indextoname(index) if index else ""
        except OSError:
            self[index] = ""
        return self[index]


def _addresses(socket: nl.Netlink, names: _Names) -> list[HeldAddress]:
    on_links = []
    ask = nl.Message(nl.RTM_GETADDR, 0, addressing.ADDRESS.pack(0, 0, 0, 0, 0), "list addresses")
    for answer in socket.dump(ask):
        family, prefix, _, _, index = addressing.ADDRESS.unpack_from(answer.body)
        raw = nl.attributes(answer.body[8:])
        peer_address = raw.get(addressing.IFA_ADDRESS)
        own = raw.get(addressing.IFA_LOCAL) or peer_address
        if family not in (links.AF_INET, links.AF_INET6) or own is None or peer_address is None:
            continue
        peer = None if peer_address == own else ipaddress.ip_interface((peer_address, prefix)).network
        address = ipaddress.ip_interface((own, 8 * len(own) if peer else prefix))
        proto = raw.get(addressing.IFA_PROTO, b"\0")[0]
        on_links.append(HeldAddress(names[index], address, peer, proto))
    return on_links


def _routes(socket: nl.Netlink, names: _Names) -> list[RouteSeen]:
    ask = nl.Message(nl.RTM_GETROUTE, 0, addressing.ROUTE.pack(*[0] * 9), "list routes")
    return [seen for answer in socket.dump(ask) if (seen := _route(answer.body, names)) is not None]


def _route(body: bytes, names: _Names) -> RouteSeen | None:
    family, prefix, _, _, table, _, _, kind, flags = addressing.ROUTE.unpack_from(body)
    if family not in (links.AF_INET, links.AF_INET6) or flags & RTM_F_CLONED or kind in _TO_MANY:
        return None
    raw = nl.attributes(body[12:])
    hops = [raw, *next_hops(raw.get(RTA_MULTIPATH, b""))]
    indices = dict.fromkeys(links.number(hop.get(addressing.RTA_OIF)) for hop in hops)
    return RouteSeen(
        ipaddress.ip_network((raw.get(addressing.RTA_DST, bytes(4 if family == links.AF_INET else 16)), prefix)),
        tuple(names[index] or f"link {index}" for index in indices if index),
        tuple(dict.fromkeys(gateway for hop in hops if (gateway := _gateway(hop)) is not None)),
        kind,
        links.number(raw.get(addressing.RTA_TABLE)) or table,
    )


def _gateway(hop: dict[int, bytes]) -> links.Address | None:
    """A next hop's gateway. RTA_VIA holds an address of another family than the route, after two bytes of family."""
    packed = hop.get(addressing.RTA_GATEWAY) or hop.get(RTA_VIA, b"")[2:]
    return ipaddress.ip_address(packed) if len(packed) in (4, 16) else None


def next_hops(data: bytes) -> list[dict[int, bytes]]:
    """The next hops of a route with several (RTA_MULTIPATH), as attributes."""
    hops, at = [], 0
    while at + _NEXT_HOP.size <= len(data):
        size, _, _, index = _NEXT_HOP.unpack_from(data, at)
        if size < _NEXT_HOP.size:
            break
        hop = nl.attributes(data[at + _NEXT_HOP.size : at + size])
        hops.append({**hop, addressing.RTA_OIF: index.to_bytes(4, nl.BYTE_ORDER)})
        at += size + (-size & 3)
    return hops


def resolvers() -> list[links.Address]:
    """The host's name servers: those in /etc/resolv.conf, and those of systemd-resolved if resolv.conf names its
    stub."""
    servers = _name_servers(RESOLV_CONF)
    if any(address.is_loopback for address in servers):
        servers += _name_servers(UPSTREAM_CONF)
    return list(dict.fromkeys(servers))


def _name_servers(path: Path) -> list[links.Address]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    servers = []
    for fields in (line.split() for line in lines):
        if len(fields) >= 2 and fields[0] == "nameserver":
            try:
                servers.append(ipaddress.ip_address(fields[1].partition("%")[0]))
            except ValueError:
                continue
    return servers
