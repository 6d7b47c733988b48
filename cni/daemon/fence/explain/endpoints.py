"""The endpoints that a packet may come from or go to, as this node knows them.

Pure. A view is a snapshot: containers, the host's addresses, members on other nodes, published ports.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network

from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.model import FencePort, link_local
from cni.daemon.policy.decide import Decision
from cni.host.nat_rules import Base

NODE, OUTSIDE = "node", "outside"
"""The arguments that stand for the node address, and for any address outside the overlay."""


class Ambiguous(Exception):
    """An argument that names no endpoint, or several; the text says which."""


class EndpointKind(enum.Enum):
    """What an endpoint is to the fence. REMOTE is a container of another node, or that node. CALLER is a machine behind
    this node's own tunnel: a guest, or an edge peer without a list, which belongs to the flat mesh. EDGE is an edge
    peer with a list.
    """

    CONTAINER = "container"
    REMOTE = "remote"
    CALLER = "caller"
    EDGE = "edge"
    HOST = "host"
    LOOPBACK = "loopback"
    OUTSIDE = "outside"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class GuestEndpoint:
    """One attachment of a container: its port in the fence, its addresses with prefix, its container id and pod
    name.
    """

    container: str
    pod: str
    port: FencePort
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint. `address` is empty for the outside as a whole. `network` is set for containers, remote members,
    guests and edge peers.

    `listed`: a remote or a guest whose address the fence has as a member's, and not only as one behind a tunnel.
    `allowed`: the CIDRs that an edge peer may reach.
    `certain`: whether the node knows which network the endpoint is in. It is not known of what is behind a node that
    publishes no members to this one: a peer by token, of the YAML, or of an agent.
    """

    kind: EndpointKind
    address: str
    label: str
    network: str | None = None
    guest: GuestEndpoint | None = None
    family: int = 0  # 4 or 6 for the outside as a whole, once one IP version is selected; else 0
    listed: bool = False
    allowed: tuple[str, ...] = ()
    certain: bool = True

    @property
    def is_far(self) -> bool:
        """Whether the endpoint is behind a tunnel."""
        return self.kind in (EndpointKind.REMOTE, EndpointKind.CALLER, EndpointKind.EDGE)

    @property
    def version(self) -> int:
        """The IP version, 4 or 6; 0 for the outside as a whole before one is selected."""
        return ip_address(self.address).version if self.address else self.family

    def known(self) -> GuestEndpoint:
        """The attachment of an endpoint that is a container."""
        assert self.guest is not None
        return self.guest

    def speaks(self, version: int) -> bool:
        """Whether the endpoint has that IP version; the outside as a whole has both."""
        return not self.address or self.version == version

    def of_version(self, version: int) -> Endpoint:
        """The same endpoint, for one IP version."""
        return self if self.address else replace(self, family=version)


@dataclass(frozen=True, slots=True)
class Balanced:
    """A real server of an IPVS service at a port of the host's. `translated`: the packet arrives with the real server's
    address; else the virtual address stays in it, or is inside a tunnel packet.
    """

    protocol: str
    host_port: int
    address: str
    port: int
    host_address: str
    translated: bool = True


@dataclass(frozen=True, slots=True)
class TunnelRoute:
    """A CIDR that is routed into a tunnel, and a label of the peer there. `name`: the name of a guest or an edge peer;
    empty for a node. `node`: the name of a node, if it has one. `peer`: the peer's public key. `certain`: as in
    `Endpoint`.
    """

    cidr: str
    label: str
    name: str = ""
    node: str = ""
    peer: str = ""
    certain: bool = True


@dataclass(frozen=True, slots=True)
class FenceView:
    """What the node knows. `node_name`: the host's name. `host`: pairs of link and the link's own address with prefix.
    `translating`: the rules of other programs that translate destinations or drop what is forwarded. `tracks_bridged`:
    the IP versions of which connection tracking sees bridged packets (bridge-nf-call).
    `ways`: by address, the device by which a packet to it leaves now, empty for none; only for the addresses that were
    looked up. `subnets`: those of the routed services. `judge`: what network policies say of a flow between two
    addresses, by protocol and port; None where they are not asked.
    """

    desired: DesiredState
    guests: tuple[GuestEndpoint, ...] = ()
    host: tuple[tuple[str, str], ...] = ()
    leases: Mapping[str, str] | None = None
    translating: tuple[Base, ...] = ()
    tracks_bridged: frozenset[int] = frozenset()
    behind: tuple[TunnelRoute, ...] = ()
    ways: Mapping[str, str] = field(default_factory=dict)
    balanced: tuple[Balanced, ...] = ()
    node_name: str = ""
    subnets: tuple[str, ...] = ()
    judge: Callable[[str, str, str, int], Decision] | None = None

    def segments(self) -> Iterator[IPv4Network | IPv6Network]:
        """The subnets on the overlay's bridges, from their gateways, and those of routed services."""
        yield from map(ip_network, self.subnets)
        bridges = {bridge.name for bridge in self.desired.bridges}
        for link, address in self.host:
            if link in bridges:
                yield ip_interface(address).network

    def place_of(self, text: str) -> Endpoint:
        """The endpoint that has an address. Raises Ambiguous for a group address, or another link's link-local
        address.
        """
        value = ip_address(text.partition("%")[0])
        text = str(value)
        if value.is_multicast or value.is_unspecified or text == "255.255.255.255":
            raise Ambiguous(
                f"{text} is not the address of one endpoint: it stays on its bridge, and in its network there"
            )
        if value.is_loopback:
            return Endpoint(EndpointKind.LOOPBACK, text, "the host's loopback")
        for guest in self.guests:
            own = {str(ip_interface(a).ip) for a in guest.addresses} | {str(link_local(guest.port.mac))}
            if text in own:
                return of_guest(guest, text)
        for link, address in self.host:
            if str(ip_interface(address).ip) == text:
                return Endpoint(EndpointKind.HOST, text, self._host_label(text, link))
        return self._far(value)

    def _far(self, value: IPv4Address | IPv6Address) -> Endpoint:
        """The endpoint of an address that is not this node's."""
        text, tunnel = str(value), self._tunnel(value)
        label = tunnel.label if tunnel is not None else ""
        for edge in self.desired.edges:
            if edge.address == text:
                return Endpoint(EndpointKind.EDGE, text, label or "an edge peer", edge.network, allowed=edge.allowed)
        for remote in self.desired.remotes:
            if text in remote.addresses:
                label = label or "a member on another node"
                kind = EndpointKind.CALLER if tunnel is not None and tunnel.name else EndpointKind.REMOTE
                return Endpoint(kind, text, label, remote.network, listed=True)
        if value.is_link_local:
            raise Ambiguous(f"{text} is a link-local address of no endpoint on this node")
        if not any(value in ip_network(cluster) for cluster in self.desired.node.clusters):
            return Endpoint(EndpointKind.OUTSIDE, text, label or "outside the overlay")
        if tunnel is not None:
            kind = EndpointKind.CALLER if tunnel.name else EndpointKind.REMOTE
            return Endpoint(kind, text, label, certain=tunnel.certain)
        label = (self.leases or {}).get(text, "an overlay address not in use on this node")
        return Endpoint(EndpointKind.UNKNOWN, text, label)

    def _tunnel(self, value: IPv4Address | IPv6Address) -> TunnelRoute | None:
        """The route of a packet to the address, by the longest prefix; None if it leads to a bridge, or to no
        tunnel.
        """
        routes = [(net.prefixlen, route) for route in self.behind if value in (net := ip_network(route.cidr))]
        length, tunnel = max(routes, key=lambda pair: pair[0], default=(-1, None))
        own = (segment.prefixlen for segment in self.segments() if value in segment)
        return tunnel if length > max(own, default=-1) else None

    def _host_label(self, address: str, link: str) -> str:
        if address in self.desired.node.addresses:
            return "the node address"
        names = {bridge.name for bridge in self.desired.bridges}
        is_gateway = link in names or any(port.name == link and port.bridge is None for port in self.desired.ports)
        return f"{'gateway on' if is_gateway else 'on'} {link}"


def of_guest(guest: GuestEndpoint, address: str) -> Endpoint:
    """The endpoint of one address of a container."""
    return Endpoint(EndpointKind.CONTAINER, address, guest.pod or guest.container, guest.port.network, guest)
