"""Edge peers: machines outside the cluster with a key, an address and a time to live (contract 6.12)."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable, Iterable

from cni import defaults
from cni.daemon import public_keys
from cni.daemon.model import keys
from cni.daemon.operations.context import OperationContext, OperationRefused
from cni.daemon.operations.guests import add_own_peer, drop_own_peer
from cni.daemon.state.state import boot_clock
from cni.daemon.state.tables import Edge, owner_of
from cni.errors import CniError, FenceFailed
from cni.overlay import wire
from cni.overlay.address import canonical_ip, network

log = logging.getLogger(__name__)

VERSION = 1
FIRST_CALL = 120.0  # seconds after minting within which an edge peer must have its first handshake
SILENT = 180.0  # seconds without a handshake after which an edge peer is removed
_MOST = 2**64 - 1


def mint(ask: wire.MintEdgePeer, context: OperationContext) -> wire.EdgeConfig:
    """Make an edge peer and return the configuration for its machine; the private key is returned once and not kept.

    No traffic passes between the edge peer and the overlay until the node has a device, and then only to its allowed
    targets. Raises OperationRefused with the contract's texts, in the contract's order, PoolExhausted.
    """
    name = ask.name.strip()
    if not name:
        raise OperationRefused("edge peer name must not be empty")
    sweep(context)  # before the lock: `sweep` takes the other edges' locks, and two mints must not deadlock
    with context.locks.holding(("edge", name)):
        if context.registry.edges.get(name) is not None:
            raise OperationRefused(f"edge peer `{name}` is already minted; revoke it before re-minting")
        if not context.is_up():
            raise OperationRefused("edge mint requires the global overlay to be set up first (setup_global_overlay)")
        check_endpoint(ask.node_endpoint)
        allowed = targets(ask.allow, lambda service: _subnets(service, context))
        return _mint(name, ask, allowed, context)


def _mint(name: str, ask: wire.MintEdgePeer, allowed: tuple[str, ...], context: OperationContext) -> wire.EdgeConfig:
    private = keys.generate()
    now = int(time.time())
    lease = context.lease_home(owner_of("edge", name))
    edge = Edge(
        name=name,
        held=lease,
        public_key=public_keys.public_of(private),
        minted_at_unix=now,
        expires_at_unix=min(now + ask.ttl_secs, _MOST),
        deadline=boot_clock() + ask.ttl_secs,
        allowed=allowed,
    )
    try:
        config = edge_config(edge, private, ask.node_endpoint, context)
        context.registry.edges.put(name, edge)
        add_own_peer(edge.public_key, lease.ip, owner_of("edge", name), context)
        if allowed and context.fence.trouble():
            raise FenceFailed("the edge peer cannot be held to what it is allowed", context.fence.trouble())
    except BaseException:
        _drop(edge, context)
        raise
    return config


def edge_config(edge: Edge, private: str, endpoint: str, context: OperationContext) -> wire.EdgeConfig:
    """The configuration of the edge machine: its one peer is this node, for the allowed targets or, without any, for
    the whole cluster."""
    node, dns = context.state.node, context.settings.dns
    cluster = ipaddress.ip_network(node.cluster_cidr)
    server, domain = (dns.nameservers[0], None) if dns.nameservers else context.resolver()
    always = [str(ipaddress.ip_network(str(node.address(cluster.version))))]
    if server is not None:
        always.append(str(ipaddress.ip_network(server)))
    routes = dict.fromkeys((*edge.allowed, *always)) if edge.allowed else (str(cluster),)
    return wire.EdgeConfig(
        version=VERSION,
        name=edge.name,
        overlay_ip=edge.held.ip,
        prefix_len=ipaddress.ip_network(node.slice_cidr or node.cluster_cidr).prefixlen,
        private_key=private,
        public_key=edge.public_key,
        peers=(wire.Peer(context.identity.public_key(), endpoint, ",".join(routes), defaults.KEEPALIVE),),
        dns_server=server,
        dns_domain=dns.domain or domain,
        expires_at_unix=edge.expires_at_unix,
    )


def check_endpoint(endpoint: str) -> None:
    """Validate a `host:port` that a machine outside can reach. Raises OperationRefused."""
    host, colon, port = endpoint.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    good = bool(colon and bare) and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
    if ":" in bare and bare == host:
        good = False  # an IPv6 address without brackets: the port is ambiguous
    if not good or bare != bare.strip():
        raise OperationRefused(f"edge node_endpoint `{endpoint}` is not host:port")
    try:
        unspecified = ipaddress.ip_address(bare).is_unspecified
    except ValueError:
        unspecified = False
    if unspecified:
        raise OperationRefused(f"edge node_endpoint `{endpoint}` is no address that can be called")


def targets(allow: Iterable[str], subnets_of: Callable[[str], tuple[str, ...]]) -> tuple[str, ...]:
    """The CIDRs of `allow`, whose entries are CIDRs, addresses and services of this node. Blank entries are skipped;
    each CIDR comes once.

    Raises OperationRefused for any other entry.
    """
    allowed: dict[str, None] = {}
    for entry in (text.strip() for text in allow):
        if not entry:
            continue
        cidrs = _cidr(entry) or subnets_of(entry)
        if not cidrs:
            raise OperationRefused(
                f"edge --allow target `{entry}` is neither a CIDR, an IP address nor a service known here"
            )
        allowed.update(dict.fromkeys(cidrs))
    return tuple(allowed)


def _cidr(entry: str) -> tuple[str, ...]:
    """The CIDR that `entry` is, or the CIDR of the one address that it is; () for any other text. Python's further
    notations, with a netmask or a zone, are not accepted: they could be a service's name."""
    try:
        return (str(network(entry) if "/" in entry else ipaddress.ip_network(canonical_ip(entry))),)
    except ValueError:
        return ()


def _subnets(service: str, context: OperationContext) -> tuple[str, ...]:
    record = context.state.service(service)
    if record is not None and record.mode == "shared":
        return tuple(
            str(ipaddress.ip_network(assigned.ip))
            for attachment in context.state.members(record.bridge)
            if attachment.service == service
            for assigned in attachment.addresses
        )
    return record.subnets if record is not None else ()


def revoke(ask: wire.RevokeEdgePeer, context: OperationContext) -> wire.Ok:
    """Remove the edge peer; an unknown one is no error."""
    name = ask.name.strip()
    with context.locks.holding(("edge", name)):
        edge = context.registry.edges.get(name)
        if edge is not None:
            _drop(edge, context)
    return wire.Ok()


def _drop(edge: Edge, context: OperationContext) -> None:
    drop_own_peer(edge.public_key, context)
    context.registry.edges.drop(edge.name)
    context.edge_clock.forget(edge.name)
    context.refresh()  # remove its fence elements before the address can be leased again
    context.release(edge.held.ip, owner_of("edge", edge.name))


def listed(_: wire.ListEdgePeers, context: OperationContext) -> wire.EdgePeers:
    """The live edge peers."""
    sweep(context)
    device = context.mesh.device()
    seen = device.peers if device is not None else {}
    return wire.EdgePeers(
        tuple(
            wire.EdgePeer(
                name=edge.name,
                overlay_ip=edge.held.ip,
                public_key=edge.public_key,
                minted_at_unix=edge.minted_at_unix,
                expires_at_unix=edge.expires_at_unix,
                last_handshake_unix_secs=(seen[edge.public_key].last_handshake or None)
                if edge.public_key in seen
                else None,
                allowed=edge.allowed,
            )
            for edge in context.registry.edges.all().values()
        )
    )


def sweep(context: OperationContext) -> None:
    """Remove edge peers that expired, never had a handshake, or had the last one too long ago (contract 6.12).

    The boot clock decides: it is never set, unlike the wall clock, and it counts while the machine sleeps. A
    handshake's own time is the wall clock's: only a change of it counts, and the boot clock at that change.
    """
    now = boot_clock()
    edges = context.registry.edges.all()
    device = context.mesh.device() if edges else None
    for edge in edges.values():
        seen = device.peers.get(edge.public_key) if device is not None else None
        shaken = seen.last_handshake if seen is not None else None
        if is_over(edge, context.edge_clock.note(edge.name, shaken, now), now):
            with context.locks.holding(("edge", edge.name)):
                if context.registry.edges.get(edge.name) == edge:
                    log.info("edge peer %s has expired: removing it", edge.name)
                    try:
                        _drop(edge, context)
                    except CniError as error:
                        log.warning("cannot remove edge peer %s: %s", edge.name, error)


def is_over(edge: Edge, called: float | None, now: float) -> bool:
    """Whether an edge peer has expired. `called`: the boot clock at its last handshake, 0 for none yet, None if there
    is no device that reports it. `now`: the boot clock."""
    if now >= edge.deadline:
        return True
    minted = edge.deadline - (edge.expires_at_unix - edge.minted_at_unix)
    if called is None:
        return False
    return now - called >= SILENT if called else now - minted >= FIRST_CALL


def revoke_all(context: OperationContext) -> None:
    """Remove every edge peer."""
    for name in context.registry.edges.all():
        revoke(wire.RevokeEdgePeer(name), context)
