"""Where peers come from besides the cluster, and what the fence and containers' bridges must know of who is far."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable

from cni import defaults, naming
from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.cluster.store_records import GLOBAL
from cni.daemon.cluster.view import Fleet
from cni.daemon.fence.controller import RemoteView
from cni.daemon.fence.model import FenceEdge, RemoteMember
from cni.daemon.mesh.joined_peers import Invitation, JoinedPeers
from cni.daemon.model import peer_table, wireguard
from cni.daemon.model.endpoints import is_name, split_endpoint
from cni.daemon.model.usable import usable
from cni.daemon.model.wireguard import Target
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import Settings
from cni.daemon.state.tables import Edge as EdgeRecord
from cni.daemon.state.tables import Guest, Tables
from cni.host.tunnels import Tunnels

log = logging.getLogger(__name__)

EDGE = "\0"  # before the name of an edge's fence, so that no container's network is called so


class PeerSources:
    """The YAML, joined nodes, and what agents said, guests and edges among it."""

    def __init__(
        self,
        settings: Settings,
        registry: Tables,
        joined: JoinedPeers,
        clusters: Callable[[], tuple[str, ...]],
        board: ProblemBoard,
    ) -> None:
        """`clusters` tells the cluster's ranges."""
        self._settings, self._registry, self._joined, self._board = settings, registry, joined, board
        self._clusters = clusters
        self._faults: dict[str, dict[str, str]] = {}  # by service and key

    @property
    def complete(self) -> bool:
        """Whether all of them could be read the last time."""
        return not self._board.subjects("joined-unreadable")

    def note_faults(self, services: Iterable[str]) -> None:
        """What of the peers of these devices was left out, and nothing else, is a problem."""
        found = [fault for service in services for fault in self._faults.get(service, {}).items()]
        self._board.set_all("peer-refused", dict(found))

    def of(self, service: str, fleet: Fleet | None) -> list[list[Target]]:
        """The books of one device's peers, with what cannot be used left out; what a later one says counts."""
        books, faults = [], {}
        for book in self._books(service, fleet):
            judged = [usable(target) for target in book]
            books.append([target for target, _ in judged])
            for target, bad in judged:
                if bad:
                    who, what = target.name or target.public_key, ", ".join(bad)
                    faults[target.public_key] = f"of the peer {who} this cannot be used, and is left out: {what}"
        self._faults[service] = faults
        return books

    def _books(self, service: str, fleet: Fleet | None) -> list[Iterable[Target]]:
        """The books of one device's peers; what a later one says counts.

        What a node has behind it the cluster knows better than the YAML; where it is called, the YAML may.
        """
        scope = None if service == GLOBAL else service
        told = [_of_book(peer) for peer in peer_table.of_device(self._registry.peers.all(), scope)]
        nodes = fleet.peers.get(service, ()) if fleet is not None else ()
        if service != GLOBAL:
            return [self._led(nodes), self._led(told)]
        static = [*self._static(), *self._led(self._invited())]
        return [static, self._led(wireguard.called_as(nodes, static)), self._led(told)]

    def _led(self, targets: Iterable[Target]) -> list[Target]:
        """The targets, routed to no further than the cluster's ranges and what the YAML allows besides: what the YAML
        says of its own peers is the operator's word, and all else is not."""
        return wireguard.held_to(targets, (*self._clusters(), *self._settings.extra_routes))

    def _invited(self) -> list[Target]:
        found: list[Target] = []
        with self._board.step("joined-unreadable", "", "the nodes that were joined by token are left out"):
            found += map(_of_invitation, self._joined.all())
        return found

    def _static(self) -> list[Target]:
        found = []
        for peer in self._settings.peers:
            endpoints = (peer.endpoint,) if peer.endpoint else ()
            allowed = tuple(peer_table.cidr(each) for each in peer.allowed_ips)
            found.append(Target(peer_table.public(peer.public_key), endpoints, allowed, peer.keepalive, name=peer.name))
        return found


def _of_invitation(invitation: Invitation) -> Target:
    return Target(
        invitation.public_key,
        invitation.endpoints,
        tuple(peer_table.cidr(each) for each in invitation.allowed_ips),
        defaults.KEEPALIVE,
        name=invitation.name,
        published=True,
    )


def _of_book(peer: peer_table.Peer) -> Target:
    """A peer as an agent described it; a guest or an edge calls first."""
    try:
        host, port = split_endpoint(peer.endpoint) if peer.endpoint else ("", 0)
        nowhere = port == 0 or (not is_name(host) and ipaddress.ip_address(host).is_unspecified)
    except ValueError:
        nowhere = False  # `usable` leaves it out, and says so
    return Target(
        peer.public_key,
        () if nowhere else (peer.endpoint,),
        peer.allowed_ips,
        peer.keepalive,
        name=peer.name,
        owner=peer.owner,
    )


def beyond(
    wired: tuple[tuple[str, ...], tuple[str, ...]],
    fleet: Fleet | None,
    edges: Iterable[EdgeRecord],
    guests: Iterable[Guest],
) -> RemoteView:
    """What the fence must know. `wired`: the devices, and the overlay's CIDRs behind them.

    A guest that is a member of a network is to the fence what a member on another node is: an address behind a tunnel.
    """
    members = dict(fleet.members) if fleet is not None else {}
    for guest in guests:
        if guest.isolation is not None:
            members[guest.isolation] = members.get(guest.isolation, frozenset()) | {guest.held.ip}
    remotes = tuple(RemoteMember(name, found) for name, found in sorted(members.items()) if found)
    fenced = tuple(
        FenceEdge(EDGE + naming.edge_fence(edge.name), edge.held.ip, edge.allowed) for edge in edges if edge.allowed
    )
    return RemoteView(*wired, remotes, fenced)


class ProxyNeighbours:
    """Containers look for a guest on their bridge, since it has an address of their subnet: the node answers."""

    def __init__(self, service: OverlayService, registry: Tables, tunnels: Tunnels) -> None:
        self._service, self._registry, self._tunnels = service, registry, tunnels
        self._proxies: set[tuple[str, str]] = set()

    def sync(self) -> None:
        """For every guest, and for nobody who was one. Never raises OSError."""
        services, wanted = self._service.state.services, set()
        for guest in self._registry.guests.all().values():
            service = services.get(guest.service)
            bridge = service.bridge if service is not None else ""
            if bridge:
                wanted.add((bridge, guest.held.ip))
        try:
            for bridge, ip in self._proxies - wanted:
                self._tunnels.proxy(bridge, ipaddress.ip_address(ip), on=False)
            for bridge, ip in wanted:
                self._tunnels.proxy(bridge, ipaddress.ip_address(ip))
        except OSError as error:
            log.warning("the node cannot answer for its guests: %s", error)
        self._proxies = wanted
