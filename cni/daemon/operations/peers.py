"""Peers, names and NAT (contract 6.11 and 6.13): recorded and reported; the mesh reads its devices' peers from here.

Peers of the global scope are recorded whether or not the overlay is up; peers of a service need a dedicated service.
"""

from __future__ import annotations

import time

from cni.daemon.events import NamesRegistered
from cni.daemon.model import keys, peer_table
from cni.daemon.operations.context import OperationContext, OperationRefused
from cni.daemon.state.tables import NatSeen, RegisteredName
from cni.host import underlay
from cni.host.wg_types import PeerSeen
from cni.overlay import wire
from cni.overlay.address import join_host_port

PEERS = "peers"
"""The name of the lock on the table of peers."""
NAMES = "names"
"""The name of the lock on the table of registered names."""
MOST_ADDRESSES = 255  # of one registered name, beside the latest
HOST_PRIORITY, OUTSIDE_PRIORITY, RELAY_PRIORITY = 100, 50, 10  # as upstream's


def add_peer(ask: wire.AddPeer, context: OperationContext) -> wire.Ok:
    """Add a peer, or replace the one with the same key. `allowed_ips` may be a comma-separated list. Raises
    InvalidConfig."""
    service = _scope(ask.scope, context)
    peer = peer_table.of_request(ask, service)
    with context.locks.holding(PEERS):
        context.registry.peers.apply(peer_table.put(context.registry.peers.all(), peer))
    context.refresh()
    return wire.Ok()


def remove_peer(ask: wire.RemovePeer, context: OperationContext) -> wire.Ok:
    """Remove the peer; an unknown key, or a text that is no key, is no error."""
    service = _scope(ask.scope, context)
    if _is_key(ask.pubkey):
        with context.locks.holding(PEERS):
            context.registry.peers.drop(peer_table.key_of(service, peer_table.public(ask.pubkey)))
        context.refresh()
    return wire.Ok()


def add_allowed_ip(ask: wire.AddAllowedIp, context: OperationContext) -> wire.Ok:
    """Add a CIDR to a peer. Raises InvalidConfig for an invalid CIDR, OperationRefused for an unknown peer."""
    service = _scope(ask.scope, context)
    peer_table.cidr(ask.cidr)
    with context.locks.holding(PEERS):
        peers = context.registry.peers.all()
        if not _is_key(ask.pubkey) or peer_table.key_of(service, peer_table.public(ask.pubkey)) not in peers:
            raise OperationRefused(
                "overlay engine error: add_allowed_ip failed: "
                f"cannot add allowed_ip {ask.cidr} to unknown peer {ask.pubkey}"
            )
        context.registry.peers.apply(peer_table.allow(peers, service, ask.pubkey, ask.cidr))
    context.refresh()
    return wire.Ok()


def remove_allowed_ip(ask: wire.RemoveAllowedIp, context: OperationContext) -> wire.Ok:
    """Remove a CIDR from a peer; an unknown peer is no error. Raises InvalidConfig for an invalid CIDR."""
    service = _scope(ask.scope, context)
    peer_table.cidr(ask.cidr)
    if _is_key(ask.pubkey):
        with context.locks.holding(PEERS):
            context.registry.peers.apply(
                peer_table.disallow(context.registry.peers.all(), service, ask.pubkey, ask.cidr)
            )
        context.refresh()
    return wire.Ok()


def _is_key(text: str) -> bool:
    try:
        keys.decode(text)
    except ValueError:
        return False
    return True


def _scope(scope: wire.AnyScope, context: OperationContext) -> str | None:
    """The service that the scope names, None for the global scope. Raises OperationRefused if the service has no
    device."""
    if isinstance(scope, wire.GlobalScope):
        return None
    record = context.state.service(scope.service)
    if record is None or record.mode != "dedicated":
        raise OperationRefused(f"no dedicated overlay for service {scope.service}")
    return scope.service


def register_dns(ask: wire.RegisterDns, context: OperationContext) -> wire.Ok:
    """Record a DNS name and one more address of it. The DNS server serves a name that is registered for several
    addresses with all of them."""
    with context.locks.holding(NAMES):
        before = context.registry.names.get(ask.name)
        others = tuple(ip for ip in before.addresses if ip != ask.ip) if before is not None else ()
        context.registry.names.put(ask.name, RegisteredName(ask.name, ask.ip, others[-MOST_ADDRESSES:]))
    context.events.publish(NamesRegistered())
    return wire.Ok()


def unregister_dns(ask: wire.UnregisterDns, context: OperationContext) -> wire.Ok:
    """Remove a DNS name with all its addresses; an unknown one is no error."""
    with context.locks.holding(NAMES):
        context.registry.names.drop(ask.name)
    context.events.publish(NamesRegistered())
    return wire.Ok()


def nat_tick(_: wire.NatTick, context: OperationContext) -> wire.Ok:
    """Read the addresses at which this node can be reached, unless NAT is off, and wake NAT traversal, which has a
    thread of its own. Contacts no other machine itself, and so never waits."""
    config = context.registry.nat.get("nat")
    node = context.state.node
    if node.set_up and (config is None or config.enabled):  # absent means on (contract 2.6)
        addresses = underlay.addresses(node.cidrs)
        candidates = tuple(
            wire.Candidate("host", join_host_port(str(address), node.wg_port), HOST_PRIORITY) for address in addresses
        )
        device = context.mesh.device()
        seen = device.peers if device is not None else {}
        peers = tuple(
            wire.NatPeer(peer.public_key, "direct", _called_from(seen.get(peer.public_key)) or peer.endpoint)
            for peer in peer_table.of_device(context.registry.peers.all(), None)
            if not peer.owner
        )
        context.traversal.start()
        context.traversal.wake()
        context.registry.nat_seen.put("seen", NatSeen(candidates, peers, int(time.time())))
    return wire.Ok()


def _called_from(seen: PeerSeen | None) -> str:
    """The endpoint at which the device has a peer now, which may be another one than the agent named: a roaming peer,
    or one that is tried at a further endpoint; "" if it has none."""
    return seen.endpoint if seen is not None else ""


def nat_status(_: wire.NatStatusRequest, context: OperationContext) -> wire.NatStatus:
    """The results of the last NAT tick. With NAT traversal, also from where this node is seen, and of the peers those
    that are reached now, each with its path as upstream names it: none before the search has begun."""
    seen = context.registry.nat_seen.get("seen") or NatSeen()
    word, views = context.traversal.word(), context.traversal.views()
    if word is None:
        called = () if context.traversal.is_on() else seen.peers
        return wire.NatStatus(seen.candidates, called, seen.last_refresh)
    outside = tuple(wire.Candidate("server-reflexive", endpoint, OUTSIDE_PRIORITY) for endpoint in word.outside)
    relayed = tuple(wire.Candidate("relay", endpoint, RELAY_PRIORITY) for endpoint in word.relayed)
    reached = tuple(wire.NatPeer(key, view.path, view.endpoint) for key, view in views.items() if view.kind)
    return wire.NatStatus((*seen.candidates, *outside, *relayed), reached, seen.last_refresh)
