"""Guests that bring up WireGuard themselves, and processes in the host's own namespace (contract 6.10)."""

from __future__ import annotations

import ipaddress
import logging

from cni import defaults
from cni.daemon.books import keys
from cni.daemon.books.registry import Guest, HostProcess, owner_of
from cni.daemon.mesh import peer_book
from cni.daemon.operations.desk import Desk, Refusal
from cni.errors import CniError, FenceFailed
from cni.overlay import wire
from cni.overlay.address import join_host_port

log = logging.getLogger(__name__)

NOWHERE = "0.0.0.0:0"
"""The endpoint of a peer that calls first."""


def attach_guest(handle: wire.GuestManaged, ask: wire.AttachContainer, desk: Desk) -> wire.GuestConfig:
    """Key, address and peer for a guest; the same for the same guest, service and isolation network until detached.

    Its address is a member of the isolation network, behind the tunnel: whatever comes by its key comes from there.
    Raises Refusal without a global overlay, FenceFailed if it asks for isolation and the fence is not in force.
    """
    _need_overlay(desk, "guest-managed attach")
    with desk.locks.holding(("guest", handle.id)):
        guest = desk.registry.guests.get(handle.id)
        if guest is not None and (guest.service, guest.isolation) != (ask.service, ask.isolation_network):
            _drop_guest(guest, desk)
            guest = None
        if guest is None:
            guest = _new_guest(handle.id, ask, desk)
        else:
            _need_fence(guest, desk)
        return guest_config(guest, ask, desk)


def _new_guest(name: str, ask: wire.AttachContainer, desk: Desk) -> Guest:
    owner = owner_of("guest", name)
    held = desk.lease(ask.service, owner)
    try:
        private = keys.generate()
        guest = Guest(
            id=name,
            service=ask.service,
            held=held,
            private_key=private,
            public_key=keys.public_of(private),
            isolation=ask.isolation_network,
        )
    except BaseException:
        desk.release(held.ip, owner)
        raise
    try:
        desk.registry.guests.put(name, guest)  # before its peer: the fence has to know whose that is
        add_own_peer(guest.public_key, held.ip, owner, desk)
        _need_fence(guest, desk)
    except BaseException:
        _drop_guest(guest, desk)
        raise
    if guest.isolation is not None:
        desk.state.changed()
    return guest


def _need_fence(guest: Guest, desk: Desk) -> None:
    if guest.isolation is not None and desk.service.barrier.trouble():
        raise FenceFailed(
            f"guest {guest.id} cannot be held to isolation network {guest.isolation!r}", desk.service.barrier.trouble()
        )


def add_own_peer(public_key: str, ip: str, owner: str, desk: Desk) -> None:
    """The peer of the global device that a guest or an edge machine is: its address alone, and it calls first."""
    network = str(ipaddress.ip_network(ip))
    peer = peer_book.Peer(public_key=public_key, endpoint=NOWHERE, allowed_ips=(network,), owner=owner)
    with desk.locks.holding("peers"):
        desk.registry.peers.apply(peer_book.put(desk.registry.peers.all(), peer))
    desk.refresh()


def guest_config(guest: Guest, ask: wire.AttachContainer, desk: Desk) -> wire.GuestConfig:
    """What the guest is told: its one peer is this node. DNS is what this very request says."""
    node = desk.state.node
    own = str(node.address(ipaddress.ip_network(node.cluster_cidr).version))
    peer = wire.Peer(
        desk.identity.public_key(), join_host_port(own, node.wg_port), node.cluster_cidr, defaults.KEEPALIVE
    )
    return wire.GuestConfig(
        overlay_ip=guest.held.ip,
        prefix_len=ipaddress.ip_interface(guest.held.address).network.prefixlen,
        private_key=guest.private_key,
        public_key=guest.public_key,
        listen_port=node.wg_port,
        peers=(peer,),
        dns_server=ask.dns_server,
        dns_domain=ask.dns_domain,
    )


def detach_guest(handle: wire.GuestManaged, desk: Desk) -> wire.Ok:
    """No key, peer or address of the guest. Idempotent."""
    with desk.locks.holding(("guest", handle.id)):
        guest = desk.registry.guests.get(handle.id)
        if guest is not None:
            _drop_guest(guest, desk)
    return wire.Ok()


def _drop_guest(guest: Guest, desk: Desk) -> None:
    drop_own_peer(guest.public_key, desk)
    desk.registry.guests.drop(guest.id)
    if guest.isolation is not None:
        desk.refresh()  # now that nothing comes from there: no network has that address, when the next one gets it
        desk.state.changed()
    desk.release(guest.held.ip, owner_of("guest", guest.id))


def drop_own_peer(public_key: str, desk: Desk) -> None:
    """The global device without that peer."""
    with desk.locks.holding("peers"):
        desk.registry.peers.drop(peer_book.key_of(None, public_key))
    desk.refresh()


def attach_host(handle: wire.HostShared, ask: wire.AttachContainer, desk: Desk) -> wire.Attached:
    """An address of the node's slice for a process of the host; the same for the same id until it is detached.

    It is put on lo, where it answers whether or not there is a device. Raises Refusal without a global overlay, and
    FenceFailed for a process that asks for isolation. Such a process may send from any address of the host and listen
    at any, and the host reaches every container: no rule could tell its packets from the node's own.
    """
    _need_overlay(desk, "host-shared attach")
    _need_no_fence(ask)
    with desk.locks.holding(("host", handle.id)):
        known = desk.registry.hosts.get(handle.id)
        if known is None:
            owner = owner_of("host", handle.id)
            ip = desk.lease_home(owner).ip
            known = HostProcess(id=handle.id, service=ask.service, ip=ip)
            try:
                desk.registry.hosts.put(handle.id, known)
            except CniError:
                desk.release(ip, owner)
                raise
        _put_on_lo(known, desk)
    return wire.Attached(known.ip)


def _put_on_lo(known: HostProcess, desk: Desk) -> None:
    try:
        desk.service.kernel.ensure_node_address(ipaddress.ip_address(known.ip))
    except OSError as error:
        _drop_host(known, desk)
        raise Refusal(f"overlay engine error: cannot give the host {known.ip}: {error}") from error


def detach_host(handle: wire.HostShared, desk: Desk) -> wire.Ok:
    """The host has that address no more. Idempotent."""
    with desk.locks.holding(("host", handle.id)):
        known = desk.registry.hosts.get(handle.id)
        if known is not None:
            _drop_host(known, desk)
    return wire.Ok()


def _drop_host(known: HostProcess, desk: Desk) -> None:
    try:
        desk.service.kernel.remove_node_address(ipaddress.ip_address(known.ip))
    except OSError as error:
        raise Refusal(f"overlay engine error: cannot take {known.ip} from the host: {error}") from error
    desk.registry.hosts.drop(known.id)
    desk.release(known.ip, owner_of("host", known.id))


def detach_all(desk: Desk) -> None:
    """Every guest and every process of the host."""
    for guest in desk.registry.guests.all():
        detach_guest(wire.GuestManaged(guest), desk)
    for known in desk.registry.hosts.all():
        detach_host(wire.HostShared(known), desk)


def restore(desk: Desk) -> None:
    """The host has the addresses it was given, whoever took them away meanwhile."""
    for name in desk.registry.hosts.all():
        with desk.locks.holding(("host", name)):
            known = desk.registry.hosts.get(name)
            if known is not None:
                try:
                    desk.service.kernel.ensure_node_address(ipaddress.ip_address(known.ip))
                except OSError as error:
                    log.warning("cannot give the host %s: %s", known.ip, error)


def _need_overlay(desk: Desk, what: str) -> None:
    desk.service.ranges.refuse()
    if not desk.is_up():
        raise Refusal(f"{what} requires the global overlay to be set up first (setup_global_overlay)")


def _need_no_fence(ask: wire.AttachContainer) -> None:
    if ask.isolation_network is not None:
        raise FenceFailed(
            f"isolation network {ask.isolation_network!r} cannot be put in force for a process of the host: it may "
            "use any of the host's addresses"
        )
