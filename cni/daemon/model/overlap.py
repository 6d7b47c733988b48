"""Finds overlaps of the overlay's ranges with networks of the host. Pure: readings in, overlaps out.

Counted are the networks that the host would lose: the network of each of its addresses, each route to a link without a
gateway, in any table or VRF, each gateway, and each resolver. Not counted are devices and addresses of the overlay
itself; routes by a gateway, which an operator may use to carry the range; blackhole, unreachable and prohibit routes,
which are set for the range on purpose; and routes as short as a default route.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni import defaults
from cni.host.links import OUR_PROTO, RTN_LOCAL, RTN_UNICAST, Address, Network

if TYPE_CHECKING:
    from cni.host.own_networks import HeldAddress, RouteSeen, Surroundings

LOOPBACK = "lo"
SLOT = defaults.SLOT_PREFIX  # a node address is the first of a range with a slot's prefix length, or a shorter one
# A VPN for all traffic installs halves or quarters of the address space in place of a default route.
DEFAULT_LIKE = {4: 7, 6: 6}  # the longest prefix that counts as a default route; 10.0.0.0/8 and fc00::/7 do not
OURS = re.compile(r"zl-.+|veth-[0-9]{1,10}-[sg]")
"""Links of an overlay daemon: bridges, WireGuard devices, host ends of containers (docs/architecture.md)."""
RESERVED = tuple(
    (ipaddress.ip_network(cidr), what)
    for cidr, what in (
        ("0.0.0.0/8", "this network"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast"),
        ("::/127", "loopback"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast"),
    )
)


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """A network that the host is on or needs. `what`: where it was found, for messages."""

    network: Network
    what: str


@dataclass(frozen=True, slots=True)
class Overlap:
    """A range of the overlay that overlaps a network of the host."""

    range: Network
    host: HostNetwork

    def __str__(self) -> str:
        return f"the overlay's range {self.range} overlaps {self.host.network} ({self.host.what})"


def is_ours(link: str) -> bool:
    """Whether the name of a link is one that an overlay daemon gives."""
    return OURS.fullmatch(link) is not None


def host_networks(seen: Surroundings, own: Collection[Address]) -> tuple[HostNetwork, ...]:
    """The networks of the host, each once. `own`: the addresses on lo that belong to the overlay."""
    networks: dict[Network, HostNetwork] = {}
    all_addresses = {address.address.ip for address in seen.addresses}
    resolvers = [_single(address, "a resolver of the host") for address in seen.resolvers if address not in own]
    for host_network in (
        *(network for address in seen.addresses for network in _of_address(address, own)),
        *(network for route in seen.routes for network in _of_route(route, all_addresses)),
        *resolvers,
    ):
        if not _is_reserved(host_network.network):
            networks.setdefault(host_network.network, host_network)
    return tuple(networks.values())


def _of_address(address: HeldAddress, own: Collection[Address]) -> list[HostNetwork]:
    if is_ours(address.link) or (address.link == LOOPBACK and address.address.ip in own):
        return []
    what = f"address {address.address} on {address.link}"
    if address.peer is None:
        return [HostNetwork(address.address.network, what)]
    return [HostNetwork(address.peer, what), _single(address.address.ip, what)]


def _of_route(route: RouteSeen, own: Collection[Address]) -> list[HostNetwork]:
    foreign = [link for link in route.by if not is_ours(link)]
    if route.by and not foreign:
        return []
    by = f" by {', '.join(foreign)}" if foreign else ""
    if route.type == RTN_LOCAL:
        whole = route.dst.prefixlen == route.dst.max_prefixlen and route.dst.network_address in own
        return [] if whole else [HostNetwork(route.dst, f"local route{by}")]
    if route.type != RTN_UNICAST:
        return []
    if route.gateways:
        return [_single(gateway, f"the gateway {gateway}{by}") for gateway in route.gateways]
    if not foreign or foreign == [LOOPBACK] or route.dst.prefixlen <= DEFAULT_LIKE[route.dst.version]:
        return []
    return [HostNetwork(route.dst, f"connected route{by}")]


def _single(address: Address, what: str) -> HostNetwork:
    return HostNetwork(ipaddress.ip_network(address), what)


def _is_reserved(network: Network) -> bool:
    return any(network.version == block.version and network.subnet_of(block) for block, _ in RESERVED)  # type: ignore[arg-type]


def overlaps(ranges: Iterable[str], networks: Iterable[HostNetwork]) -> list[Overlap]:
    """Every overlap, in the order of the ranges."""
    hosts = list(networks)
    return [
        Overlap(range_, host)
        for range_ in map(ipaddress.ip_network, ranges)
        for host in hosts
        if range_.version == host.network.version and range_.overlaps(host.network)
    ]


def reserved(ranges: Iterable[str]) -> list[Overlap]:
    """The overlaps of the ranges with reserved addresses, which no container can have: loopback, link-local,
    multicast."""
    return overlaps(ranges, (HostNetwork(network, what) for network, what in RESERVED))


def told(overlapping: Iterable[Overlap], most: int = 5) -> str:
    """The overlaps in one line."""
    texts = [str(overlap) for overlap in overlapping]
    more = f", and {len(texts) - most} more" if len(texts) > most else ""
    return "; ".join(texts[:most]) + more


def of_ours(
    on_links: Iterable[HeldAddress], noted: Collection[Address], marked: bool, by_shape: Collection[str] = ()
) -> set[Address]:
    """The addresses on lo that this daemon, or an earlier one, has set. `noted`: the recorded ones; `marked`: IFA_PROTO
    counts; `by_shape`: the ranges in which an address of the shape of a node address counts too."""
    ranges = [ipaddress.ip_network(cidr) for cidr in by_shape]
    ours = set()
    for held_address in on_links:
        address = held_address.address
        if held_address.link != LOOPBACK or address.network.prefixlen != address.max_prefixlen:
            continue
        shaped = any(_is_first(address.ip, range_) for range_ in ranges)
        if shaped or address.ip in noted or (marked and held_address.proto == OUR_PROTO):
            ours.add(address.ip)
    return ours


def _is_first(address: Address, range_: Network) -> bool:
    size = 1 << (address.max_prefixlen - SLOT[address.version])
    return address.version == range_.version and address in range_ and int(address) % size == 1
