"""Peers, names and NAT (contract 6.11 and 6.13): kept, and told back; what is put on a device is read from here.

Peers of the global scope are remembered whether or not the overlay is up; those of a service need it to be dedicated.
"""

from __future__ import annotations

import time

from cni.daemon.books import keys
from cni.daemon.books.registry import Name, NatSeen
from cni.daemon.mesh import peer_book
from cni.daemon.operations.desk import Desk, Refusal
from cni.host import underlay
from cni.overlay import wire
from cni.overlay.address import join_host_port

PEERS = "peers"
"""The name of the lock of the book of peers."""
HOST_PRIORITY = 100


def add_peer(ask: wire.AddPeer, desk: Desk) -> wire.Ok:
    """A peer, in place of an earlier one of its key. `allowed_ips` may be a comma list. Raises InvalidConfig."""
    service = _scope(ask.scope, desk)
    peer = peer_book.of_request(ask, service)
    with desk.locks.holding(PEERS):
        desk.registry.peers.apply(peer_book.put(desk.registry.peers.all(), peer))
    desk.refresh()
    return wire.Ok()


def remove_peer(ask: wire.RemovePeer, desk: Desk) -> wire.Ok:
    """No such peer; an unknown key is fine, and so is what is no key at all: nobody has it."""
    service = _scope(ask.scope, desk)
    if _is_key(ask.pubkey):
        with desk.locks.holding(PEERS):
            desk.registry.peers.drop(peer_book.key_of(service, peer_book.public(ask.pubkey)))
        desk.refresh()
    return wire.Ok()


def add_allowed_ip(ask: wire.AddAllowedIp, desk: Desk) -> wire.Ok:
    """One more CIDR for a peer. Raises InvalidConfig for a bad CIDR, Refusal for a peer that is not there."""
    service = _scope(ask.scope, desk)
    peer_book.cidr(ask.cidr)
    with desk.locks.holding(PEERS):
        book = desk.registry.peers.all()
        if not _is_key(ask.pubkey) or peer_book.key_of(service, peer_book.public(ask.pubkey)) not in book:
            raise Refusal(
                "overlay engine error: add_allowed_ip failed: "
                f"cannot add allowed_ip {ask.cidr} to unknown peer {ask.pubkey}"
            )
        desk.registry.peers.apply(peer_book.allow(book, service, ask.pubkey, ask.cidr))
    desk.refresh()
    return wire.Ok()


def remove_allowed_ip(ask: wire.RemoveAllowedIp, desk: Desk) -> wire.Ok:
    """One CIDR less; an unknown peer is fine. Raises InvalidConfig for a bad CIDR."""
    service = _scope(ask.scope, desk)
    peer_book.cidr(ask.cidr)
    if _is_key(ask.pubkey):
        with desk.locks.holding(PEERS):
            desk.registry.peers.apply(peer_book.disallow(desk.registry.peers.all(), service, ask.pubkey, ask.cidr))
        desk.refresh()
    return wire.Ok()


def _is_key(text: str) -> bool:
    try:
        keys.decode(text)
    except ValueError:
        return False
    return True


def _scope(scope: wire.AnyScope, desk: Desk) -> str | None:
    """The service that the scope names, None for the global one. Raises Refusal where there is no such device."""
    if isinstance(scope, wire.GlobalScope):
        return None
    known = desk.state.services.get(scope.service)
    if known is None or known.mode != "dedicated":
        raise Refusal(f"no dedicated overlay for service {scope.service}")
    return scope.service


def register_dns(ask: wire.RegisterDns, desk: Desk) -> wire.Ok:
    """A name, for an address; the last one said counts."""
    desk.registry.names.put(ask.name, Name(ask.name, ask.ip))
    return wire.Ok()


def unregister_dns(ask: wire.UnregisterDns, desk: Desk) -> wire.Ok:
    """No such name."""
    desk.registry.names.drop(ask.name)
    return wire.Ok()


def nat_tick(_: wire.NatTick, desk: Desk) -> wire.Ok:
    """Look where this node can be reached, unless NAT is off. Asks nobody outside, and so never waits."""
    config = desk.registry.nat.get("nat")
    node = desk.state.node
    if node.set_up and (config is None or config.enabled):  # absent means on (contract 2.6)
        addresses = underlay.addresses()
        candidates = tuple(
            wire.Candidate("host", join_host_port(str(address), node.wg_port), HOST_PRIORITY) for address in addresses
        )
        peers = tuple(
            wire.NatPeer(peer.public_key, "direct", peer.endpoint)
            for peer in peer_book.of_device(desk.registry.peers.all(), None)
            if not peer.owner
        )
        desk.registry.nat_seen.put("seen", NatSeen(candidates, peers, int(time.time())))
    return wire.Ok()


def nat_status(_: wire.NatStatusRequest, desk: Desk) -> wire.NatStatus:
    """What the last tick found."""
    seen = desk.registry.nat_seen.get("seen") or NatSeen()
    return wire.NatStatus(seen.candidates, seen.peers, seen.last_refresh)
