"""What networks this host is on, as it says itself: its addresses, the routes of every table, its resolvers.

Reads only. The cost grows with the routes of the namespace, so nothing of this is on the path of a plugin's call.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from pathlib import Path

from cni.host import addressing, links
from cni.host import netlink as nl

RESOLV_CONF = Path("/etc/resolv.conf")
UPSTREAM_CONF = Path("/run/systemd/resolve/resolv.conf")  # what systemd-resolved asks, where resolv.conf names only it
RTA_MULTIPATH, RTA_VIA = 9, 18
RTM_F_CLONED = 0x200  # an entry of the path cache, which IPv4 dumps beside the routes
_NEXT_HOP = struct.Struct("=HBBI")
"""struct rtnexthop: length, flags, hops, link index; attributes follow."""


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """An address of the host: the link's name, the address, and the other end's network on a point-to-point link.

    `proto` is IFA_PROTO, 0 where the kernel keeps none (before Linux 5.18)."""

    link: str
    address: links.Interface
    peer: links.Network | None = None
    proto: int = 0


@dataclass(frozen=True, slots=True)
class RouteSeen:
    """A route of any table: the names of its links, its gateways, its type (RTN_*), its table."""

    dst: links.Network
    by: tuple[str, ...]
    gateways: tuple[links.Address, ...] = ()
    type: int = links.RTN_UNICAST
    table: int = addressing.RT_MAIN


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All of it, at one moment."""

    addresses: tuple[HeldAddress, ...] = ()
    routes: tuple[RouteSeen, ...] = ()
    resolvers: tuple[links.Address, ...] = ()


def read() -> Surroundings:
    """The host of the calling thread's network namespace. Raises OSError."""
    with nl.Netlink() as socket:
        names = {link.index: link.name for link in links.list_links(socket)}
        return Surroundings(tuple(_addresses(socket, names)), tuple(_routes(socket, names)), tuple(resolvers()))


def held_addresses() -> tuple[HeldAddress, ...]:
    """The addresses alone. Raises OSError."""
    with nl.Netlink() as socket:
        names = {link.index: link.name for link in links.list_links(socket)}
        return tuple(_addresses(socket, names))


def _addresses(socket: nl.Netlink, names: dict[int, str]) -> list[HeldAddress]:
    found = []
    ask = nl.Message(nl.RTM_GETADDR, 0, addressing.ADDRESS.pack(0, 0, 0, 0, 0), "list addresses")
    for answer in socket.dump(ask):
        family, prefix, _, _, index = addressing.ADDRESS.unpack_from(answer.body)
        raw = nl.attributes(answer.body[8:])
        there = raw.get(addressing.IFA_ADDRESS)
        own = raw.get(addressing.IFA_LOCAL) or there
        if family not in (links.AF_INET, links.AF_INET6) or own is None or there is None:
            continue
        peer = None if there == own else ipaddress.ip_interface((there, prefix)).network
        address = ipaddress.ip_interface((own, 8 * len(own) if peer else prefix))
        proto = raw.get(addressing.IFA_PROTO, b"\0")[0]
        found.append(HeldAddress(names.get(index, ""), address, peer, proto))
    return found


def _routes(socket: nl.Netlink, names: dict[int, str]) -> list[RouteSeen]:
    ask = nl.Message(nl.RTM_GETROUTE, 0, addressing.ROUTE.pack(*[0] * 9), "list routes")
    return [seen for answer in socket.dump(ask) if (seen := _route(answer.body, names)) is not None]


def _route(body: bytes, names: dict[int, str]) -> RouteSeen | None:
    family, prefix, _, _, table, _, _, kind, flags = addressing.ROUTE.unpack_from(body)
    if family not in (links.AF_INET, links.AF_INET6) or flags & RTM_F_CLONED:
        return None
    raw = nl.attributes(body[12:])
    hops = [raw, *_next_hops(raw.get(RTA_MULTIPATH, b""))]
    indices = dict.fromkeys(links.number(hop.get(addressing.RTA_OIF)) for hop in hops)
    return RouteSeen(
        ipaddress.ip_network((raw.get(addressing.RTA_DST, bytes(4 if family == links.AF_INET else 16)), prefix)),
        tuple(names.get(index, f"link {index}") for index in indices if index),
        tuple(dict.fromkeys(gateway for hop in hops if (gateway := _gateway(hop)) is not None)),
        kind,
        links.number(raw.get(addressing.RTA_TABLE)) or table,
    )


def _gateway(hop: dict[int, bytes]) -> links.Address | None:
    """A next hop's gateway; RTA_VIA is of another family than the route, and begins with that."""
    packed = hop.get(addressing.RTA_GATEWAY) or hop.get(RTA_VIA, b"")[2:]
    return ipaddress.ip_address(packed) if len(packed) in (4, 16) else None


def _next_hops(data: bytes) -> list[dict[int, bytes]]:
    found, at = [], 0
    while at + _NEXT_HOP.size <= len(data):
        size, _, _, index = _NEXT_HOP.unpack_from(data, at)
        if size < _NEXT_HOP.size:
            break
        hop = nl.attributes(data[at + _NEXT_HOP.size : at + size])
        found.append({**hop, addressing.RTA_OIF: index.to_bytes(4, nl.BYTE_ORDER)})
        at += size + (-size & 3)
    return found


def resolvers() -> list[links.Address]:
    """The name servers that the host asks: /etc/resolv.conf's, and those behind systemd-resolved's own address."""
    found = _name_servers(RESOLV_CONF)
    if any(address.is_loopback for address in found):
        found += _name_servers(UPSTREAM_CONF)
    return list(dict.fromkeys(found))


def _name_servers(path: Path) -> list[links.Address]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for words in (line.split() for line in lines):
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(ipaddress.ip_address(words[1].partition("%")[0]))
            except ValueError:
                continue
    return found
