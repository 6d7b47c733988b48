"""The sources of peers besides the cluster, the fence's view of remote addresses, and neighbour proxies for guests."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable

from cni import defaults, naming
from cni.daemon.fence.from_records import RemoteView
from cni.daemon.fence.model import FenceEdge, RemoteMember
from cni.daemon.mesh.joined_peers import Invitation, JoinedPeers
from cni.daemon.model import peer_table, wireguard
from cni.daemon.model.endpoints import address_of, is_name, split_endpoint
from cni.daemon.model.fleet import GLOBAL, Fleet
from cni.daemon.model.usable import usable
from cni.daemon.model.wireguard import Target
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.daemon.state.tables import Edge as EdgeRecord
from cni.daemon.state.tables import Guest, Tables
from cni.host.tunnels import Tunnels

log = logging.getLogger(__name__)

EDGE = "\0"  # prefix of the network name of an edge's fence, which no container's network can have


class PeerSources:
    """The peers of the YAML, of joined tokens and of agents; guests and edges are among the latter."""

    def __init__(
        self,
        settings: Settings,
        registry: Tables,
        joined: JoinedPeers,
        clusters: Callable[[], tuple[str, ...]],
        board: ProblemBoard,
    ) -> None:
        """`clusters` returns the overlay's ranges."""
        self._settings, self._registry, self._joined, self._board = settings, registry, joined, board
        self._clusters = clusters
        self._faults: dict[str, dict[str, str]] = {}  # by service and key

    def configured(self) -> bool:
        """Whether the YAML names peers or a cluster, or a node was joined by token. Raises InputOutput,
        StateUnusable."""
        return bool(self._settings.peers or self._settings.cluster or self._joined.all())

    @property
    def complete(self) -> bool:
        """Whether all sources could be read in the last pass."""
        return not self._board.subjects("joined-unreadable")

    def note_faults(self, services: Iterable[str]) -> None:
        """Set the problems of the peers of these devices to what was left out of them in the last pass."""
        faults = [fault for service in services for fault in self._faults.get(service, {}).items()]
        self._board.set_all("peer-refused", dict(faults))

    def of(self, service: str, fleet: Fleet | None) -> list[list[Target]]:
        """The lists of one device's peers without the unusable parts; a later list overrides an earlier one."""
        books, faults = [], {}
        for book in self._books(service, fleet):
            judged = [usable(target) for target in book]
            books.append([target for target, _ in judged])
            for target, unusable in judged:
                if unusable:
                    peer, parts = target.name or target.public_key, ", ".join(unusable)
                    faults[target.public_key] = f"of the peer {peer} this cannot be used, and is left out: {parts}"
        self._faults[service] = faults
        return books

    def _books(self, service: str, fleet: Fleet | None) -> list[Iterable[Target]]:
        """The lists of one device's peers; a later list overrides an earlier one.

        The CIDRs behind a node of the cluster are those of its document; an endpoint in the YAML is preferred.
        """
        scope = None if service == GLOBAL else service
        told = [_of_record(peer) for peer in peer_table.of_device(self._registry.peers.all(), scope)]
        nodes = fleet.peers.get(service, ()) if fleet is not None else ()
        if service != GLOBAL:
            return [self._within_ranges(nodes), self._within_ranges(told)]
        static = [*self._static(), *self._within_ranges(self._invited())]
        return [static, self._within_ranges(wireguard.called_as(nodes, static)), self._within_ranges(told)]

    def _within_ranges(self, targets: Iterable[Target]) -> list[Target]:
        """The targets, with routes only inside the overlay's ranges and the YAML's `extra_routes`. Only peers of the
        YAML itself, which the operator wrote, are not limited."""
        return wireguard.held_to(targets, (*self._clusters(), *self._settings.extra_routes))

    def _invited(self) -> list[Target]:
        targets: list[Target] = []
        with self._board.step("joined-unreadable", "", "the nodes that were joined by token are left out"):
            targets += map(_of_invitation, self._joined.all())
        return targets

    def _static(self) -> list[Target]:
        targets = []
        for peer in self._settings.peers:
            endpoints = tuple(dict.fromkeys((*((peer.endpoint,) if peer.endpoint else ()), *peer.endpoints)))
            allowed = tuple(peer_table.cidr(cidr) for cidr in peer.allowed_ips)
            key = peer_table.public(peer.public_key)
            targets.append(Target(key, endpoints, allowed, peer.keepalive, name=peer.name, relay=peer.relay))
        return targets


def _of_invitation(invitation: Invitation) -> Target:
    return Target(
        invitation.public_key,
        invitation.endpoints,
        tuple(peer_table.cidr(cidr) for cidr in invitation.allowed_ips),
        defaults.KEEPALIVE,
        name=invitation.name,
        published=True,
    )


def _of_record(peer: peer_table.Peer) -> Target:
    """A peer as an agent described it. A guest or an edge has no endpoint: it initiates."""
    try:
        host, port = split_endpoint(peer.endpoint) if peer.endpoint else ("", 0)
        nowhere = port == 0 or (not is_name(host) and ipaddress.ip_address(host).is_unspecified)
    except ValueError:
        nowhere = False  # `usable` leaves the endpoint out and reports it
    return Target(
        peer.public_key,
        tuple(dict.fromkeys((*(() if nowhere else (peer.endpoint,)), *_candidates(peer)))),
        peer.allowed_ips,
        peer.keepalive,
        name=peer.name,
        owner=peer.owner,
    )


def _candidates(peer: peer_table.Peer) -> list[str]:
    """The further endpoints that an agent named, the best first. A relay's is left out, which speaks another protocol,
    and what is no other machine's unicast address."""
    named = [candidate for candidate in peer.candidates if candidate.candidate_type != "relay"]
    named.sort(key=lambda candidate: -candidate.priority)
    addresses = [(address_of(candidate.address), candidate.address) for candidate in named]
    return [
        text
        for address, text in addresses
        if not (address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local)
    ]


def remote_view(
    wired: tuple[tuple[str, ...], tuple[str, ...]],
    fleet: Fleet | None,
    edges: Iterable[EdgeRecord],
    guests: Iterable[Guest],
) -> RemoteView:
    """The fence's view of remote addresses. `wired`: the devices, and the overlay's CIDRs behind them.

    The fence treats a guest that is a member of a network like a member on another node: an address behind a tunnel.
    """
    members = dict(fleet.members) if fleet is not None else {}
    for guest in guests:
        if guest.isolation is not None:
            members[guest.isolation] = members.get(guest.isolation, frozenset()) | {guest.held.ip}
    remotes = tuple(RemoteMember(name, addresses) for name, addresses in sorted(members.items()) if addresses)
    fenced = tuple(
        FenceEdge(EDGE + naming.edge_fence(edge.name), edge.held.ip, edge.allowed) for edge in edges if edge.allowed
    )
    services = tuple(sorted(fleet.services.items())) if fleet is not None else ()
    return RemoteView(*wired, remotes, fenced, services, fleet.nodes if fleet is not None else frozenset())


class ProxyNeighbours:
    """Makes the node answer neighbour requests for guests. A guest has an address of its service's subnet, so
    containers look for it on their bridge."""

    def __init__(self, state: State, registry: Tables, tunnels: Tunnels) -> None:
        self._state, self._registry, self._tunnels = state, registry, tunnels
        self._proxies: set[tuple[str, str]] = set()

    def sync(self) -> None:
        """Bring the proxy entries in line with the present guests. Never raises OSError."""
        services, proxies = self._state.services, set()
        for guest in self._registry.guests.all().values():
            service = services.get(guest.service)
            bridge = service.bridge if service is not None and not service.is_routed else ""
            if bridge:
                proxies.add((bridge, guest.held.ip))
        try:
            for bridge, ip in self._proxies - proxies:
                self._tunnels.proxy(bridge, ipaddress.ip_address(ip), on=False)
            for bridge, ip in proxies:
                self._tunnels.proxy(bridge, ipaddress.ip_address(ip))
        except OSError as error:
            log.warning("cannot set the neighbour proxies of guests: %s", error)
        self._proxies = proxies
