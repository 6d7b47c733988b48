"""Guests with a WireGuard device of their own, and processes in the host's network namespace (contract 6.10)."""

from __future__ import annotations

import ipaddress
import logging

from cni import defaults
from cni.daemon import public_keys
from cni.daemon.events import GuestsChanged, NodeFactsChanged
from cni.daemon.model import keys, peer_table
from cni.daemon.operations.context import OperationContext, OperationRefused
from cni.daemon.state.tables import Guest, HostProcess, owner_of
from cni.errors import CniError, FenceFailed
from cni.overlay import wire
from cni.overlay.address import join_host_port

log = logging.getLogger(__name__)

NOWHERE = "0.0.0.0:0"
"""The endpoint of a peer that sends the first handshake."""


def attach_guest(handle: wire.GuestManaged, ask: wire.AttachContainer, context: OperationContext) -> wire.GuestConfig:
    """The WireGuard configuration of a guest: key, address and peer. The same guest, service and isolation network get
    the same answer until the guest is detached.

    The guest's address is a member of the isolation network, behind the tunnel: WireGuard admits only that address by
    the guest's key. Raises OperationRefused without a global overlay, FenceFailed if isolation is requested and the
    fence is not in force.
    """
    _need_overlay(context, "guest-managed attach")
    with context.locks.holding(("guest", handle.id)):
        guest = context.registry.guests.get(handle.id)
        if guest is not None and (guest.service, guest.isolation) != (ask.service, ask.isolation_network):
            _drop_guest(guest, context)
            guest = None
        if guest is None:
            guest = _new_guest(handle.id, ask, context)
        else:
            _need_fence(guest, context)
        return guest_config(guest, ask, context)


def _new_guest(name: str, ask: wire.AttachContainer, context: OperationContext) -> Guest:
    owner = owner_of("guest", name)
    lease = context.lease(ask.service, owner)
    try:
        private = keys.generate()
        guest = Guest(
            id=name,
            service=ask.service,
            held=lease,
            private_key=private,
            public_key=public_keys.public_of(private),
            isolation=ask.isolation_network,
        )
    except BaseException:
        context.release(lease.ip, owner)
        raise
    try:
        context.registry.guests.put(name, guest)  # before its peer: the fence needs the peer's owner
        add_own_peer(guest.public_key, lease.ip, owner, context)
        _need_fence(guest, context)
    except BaseException:
        _drop_guest(guest, context)
        raise
    context.events.publish(GuestsChanged())
    if guest.isolation is not None:
        context.events.publish(NodeFactsChanged())
    return guest


def _need_fence(guest: Guest, context: OperationContext) -> None:
    if guest.isolation is not None and context.fence.trouble():
        raise FenceFailed(
            f"guest {guest.id} cannot be held to isolation network {guest.isolation!r}",
            context.fence.trouble(),
        )


def add_own_peer(public_key: str, ip: str, owner: str, context: OperationContext) -> None:
    """Add a guest or an edge machine as a peer of the global device, with its one address and no endpoint."""
    network = str(ipaddress.ip_network(ip))
    peer = peer_table.Peer(public_key=public_key, endpoint=NOWHERE, allowed_ips=(network,), owner=owner)
    with context.locks.holding("peers"):
        context.registry.peers.apply(peer_table.put(context.registry.peers.all(), peer))
    context.refresh()


def guest_config(guest: Guest, ask: wire.AttachContainer, context: OperationContext) -> wire.GuestConfig:
    """The configuration of the guest: its one peer is this node; DNS is that of this request, else the node's."""
    node = context.state.node
    own = str(node.address(ipaddress.ip_network(node.cluster_cidr).version))
    server, domain = (ask.dns_server, ask.dns_domain) if ask.dns_server else context.resolver()
    peer = wire.Peer(
        context.identity.public_key(), join_host_port(own, node.wg_port), node.cluster_cidr, defaults.KEEPALIVE
    )
    return wire.GuestConfig(
        overlay_ip=guest.held.ip,
        prefix_len=ipaddress.ip_interface(guest.held.address).network.prefixlen,
        private_key=guest.private_key,
        public_key=guest.public_key,
        listen_port=node.wg_port,
        peers=(peer,),
        dns_server=server,
        dns_domain=ask.dns_domain or domain,
    )


def detach_guest(handle: wire.GuestManaged, context: OperationContext) -> Guest | None:
    """Remove the guest's key, peer and address; returns its record. Idempotent."""
    with context.locks.holding(("guest", handle.id)):
        guest = context.registry.guests.get(handle.id)
        if guest is not None:
            _drop_guest(guest, context)
        return guest


def _drop_guest(guest: Guest, context: OperationContext) -> None:
    drop_own_peer(guest.public_key, context)
    context.registry.guests.drop(guest.id)
    context.events.publish(GuestsChanged())
    if guest.isolation is not None:
        context.refresh()  # the peer is gone: remove the address from the isolation network before it is leased again
        context.events.publish(NodeFactsChanged())
    context.release(guest.held.ip, owner_of("guest", guest.id))


def drop_own_peer(public_key: str, context: OperationContext) -> None:
    """Remove the peer from the global device."""
    with context.locks.holding("peers"):
        context.registry.peers.drop(peer_table.key_of(None, public_key))
    context.refresh()


def attach_host(handle: wire.HostShared, ask: wire.AttachContainer, context: OperationContext) -> wire.Attached:
    """Lease an address of the node's slice for a process of the host; the same id gets the same address until it is
    detached.

    The address is put on lo, where it answers with or without a WireGuard device. Raises OperationRefused without a
    global overlay, FenceFailed if isolation is requested: a process of the host may send from any address of the host
    and listen on any, and the host reaches every container, so no rule could tell its packets from the node's own.
    """
    _need_overlay(context, "host-shared attach")
    _need_no_fence(ask)
    with context.locks.holding(("host", handle.id)):
        process = context.registry.hosts.get(handle.id)
        if process is None:
            owner = owner_of("host", handle.id)
            ip = context.lease_home(owner).ip
            process = HostProcess(id=handle.id, service=ask.service, ip=ip)
            try:
                context.registry.hosts.put(handle.id, process)
            except CniError:
                context.release(ip, owner)
                raise
        _put_on_lo(process, context)
    return wire.Attached(process.ip)


def _put_on_lo(process: HostProcess, context: OperationContext) -> None:
    try:
        context.kernel.ensure_node_address(ipaddress.ip_address(process.ip))
    except OSError as error:
        _drop_host(process, context)
        raise OperationRefused(f"overlay engine error: cannot give the host {process.ip}: {error}") from error


def detach_host(handle: wire.HostShared, context: OperationContext) -> HostProcess | None:
    """Remove the address from the host; returns its record. Idempotent."""
    with context.locks.holding(("host", handle.id)):
        process = context.registry.hosts.get(handle.id)
        if process is not None:
            _drop_host(process, context)
        return process


def _drop_host(process: HostProcess, context: OperationContext) -> None:
    try:
        context.kernel.remove_node_address(ipaddress.ip_address(process.ip))
    except OSError as error:
        raise OperationRefused(f"overlay engine error: cannot take {process.ip} from the host: {error}") from error
    context.registry.hosts.drop(process.id)
    context.release(process.ip, owner_of("host", process.id))


def detach_all(context: OperationContext) -> None:
    """Detach every guest and every process of the host."""
    for guest in context.registry.guests.all():
        detach_guest(wire.GuestManaged(guest), context)
    for process in context.registry.hosts.all():
        detach_host(wire.HostShared(process), context)


def restore(context: OperationContext) -> None:
    """Put the addresses of host processes back on lo if they were removed."""
    for name in context.registry.hosts.all():
        with context.locks.holding(("host", name)):
            process = context.registry.hosts.get(name)
            if process is not None:
                try:
                    context.kernel.ensure_node_address(ipaddress.ip_address(process.ip))
                except OSError as error:
                    log.warning("cannot give the host %s: %s", process.ip, error)


def _need_overlay(context: OperationContext, what: str) -> None:
    context.ranges.refuse()
    if not context.is_up():
        raise OperationRefused(f"{what} requires the global overlay to be set up first (setup_global_overlay)")


def _need_no_fence(ask: wire.AttachContainer) -> None:
    if ask.isolation_network is not None:
        raise FenceFailed(
            f"isolation network {ask.isolation_network!r} cannot be put in force for a process of the host: it may "
            "use any of the host's addresses"
        )
