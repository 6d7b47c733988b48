"""The node itself: its id and key, its global overlay, its status (contract 6.1 to 6.3)."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Collection, Mapping, Sequence

from cni import __version__, naming
from cni.daemon.model import keys
from cni.daemon.model.records import Node, NodeChanges
from cni.daemon.model.subnets import Network
from cni.daemon.operations import containers, edges, guests, services
from cni.daemon.operations.context import NODE, OperationContext, OperationRefused
from cni.overlay import address, wire

log = logging.getLogger(__name__)

SERVER = f"zlayer-cni/{__version__}"


def set_local_node_id(ask: wire.SetLocalNodeId, context: OperationContext) -> wire.Ok:
    """Set the node id, from which the services' subnets follow. Services that have a subnet keep it: its addresses are
    in use."""
    with context.locks.holding(NODE):
        node = context.state.node
        if context.settings.cluster is not None:
            log.info("node id %d is ignored: the cluster gave this node %d", ask.node_id, node.node_id)
        elif ask.node_id != node.node_id:
            if context.state.services:
                log.warning("node id %d in place of %d; services keep their subnets", ask.node_id, node.node_id)
            context.data_path.change_node({"node_id": ask.node_id})
    return wire.Ok()


def set_local_wg_pubkey(ask: wire.SetLocalWgPubkey, context: OperationContext) -> wire.Ok:
    """Record the key that the agent takes for this node's. The key in use is the daemon's own (`status`)."""
    with context.locks.holding(NODE):
        if ask.pubkey != context.state.node.wg_public_key:
            context.data_path.change_node({"wg_public_key": ask.pubkey})
    return wire.Ok()


def setup_global_overlay(ask: wire.SetupGlobalOverlay, context: OperationContext) -> wire.BridgeName:
    """Apply deployment, ranges and port. Leases stay, both when the request is repeated and when it changes (contract
    8).

    The reply is the device's name by the naming rule, whether or not the device exists yet: ZLayer's client keeps the
    name, and re-establishes after a lost connection only if it got one (contract 3.3). `status` names an interface only
    if it exists. Raises OperationRefused if a range changes while addresses of it are in use.
    """
    with context.locks.holding(NODE):
        state = context.state
        subnets = {service.name: service.networks(4) + service.networks(6) for service in state.services.values()}
        owned = [lease.address for lease in state.leases.values() if lease.service == ""]
        own = ask.slice_cidr if context.settings.cluster is None else None  # in a cluster the node has its own
        ranges = judge_ranges(state.node, ask.cluster_cidr, own, subnets, owned)
        if ranges["cluster_cidr"] not in state.cidrs or context.ranges.refusal:
            context.ranges.judge([cidr for cidr in (ranges["cluster_cidr"], ranges["cluster_cidr6"]) if cidr])
        context.identity.public_key()
        if ask.nat is not None:
            context.registry.nat.put("nat", ask.nat)
        names: NodeChanges = {"deployment": ask.deployment, "instance_id": ask.instance_id, "wg_port": ask.wg_port}
        context.data_path.change_node({**names, **ranges, "set_up": True})
        context.refresh()
    return wire.BridgeName(naming.global_device(ask.deployment, ask.instance_id))


def judge_ranges(
    node: Node,
    cluster_cidr: str,
    slice_cidr: str | None,
    subnets_by_service: Mapping[str, Sequence[Network]],
    owned: Collection[str],
) -> NodeChanges:
    """The node's ranges after such a setup: `cluster_cidr`, `cluster_cidr6`, `slice_cidr`.

    `subnets_by_service`: the services' subnets by name; `owned`: the addresses of the slice in use. Without
    `slice_cidr` the node keeps its slice if that is in the cluster's range. A cluster range too small for services is
    accepted: services are refused when they are set up (contract 6.4). Raises OperationRefused for an invalid range,
    and for a change while addresses are in use.
    """
    cluster = _network("cluster", cluster_cidr)
    if cluster.prefixlen == cluster.max_prefixlen:
        raise OperationRefused(f"invalid cluster CIDR {cluster_cidr}: the node's own address would be outside")
    own = _network("slice", slice_cidr) if slice_cidr is not None else None
    if own is not None and not _inside(own, cluster):
        raise OperationRefused(f"invalid slice CIDR {slice_cidr}: it is not in the cluster's range {cluster}")
    if own is None and node.slice_cidr is not None and _inside(ipaddress.ip_network(node.slice_cidr), cluster):
        own = ipaddress.ip_network(node.slice_cidr)
    second = node.cluster_cidr6 if node.cluster_cidr6 and ipaddress.ip_network(node.cluster_cidr6) != cluster else None
    if second is not None and ipaddress.ip_network(second).version == cluster.version:
        second = None
    ranges: NodeChanges = {
        "cluster_cidr": str(cluster),
        "cluster_cidr6": second,
        "slice_cidr": None if own is None else str(own),
    }
    if ranges != {key: getattr(node, key) for key in ranges}:
        _refuse_under(node, ranges, subnets_by_service, owned)
    return ranges


def _refuse_under(
    node: Node, ranges: NodeChanges, subnets_by_service: Mapping[str, Sequence[Network]], owned: Collection[str]
) -> None:
    """Raises OperationRefused if the ranges change while services have subnets, or while slice addresses are in use."""
    cluster, own = ranges["cluster_cidr"], ranges["slice_cidr"]
    users = sorted(name for name, subnets in subnets_by_service.items() if subnets)
    if users and (cluster, ranges["cluster_cidr6"]) != (node.cluster_cidr, node.cluster_cidr6):
        raise OperationRefused(
            f"cluster CIDR {cluster} cannot replace {', '.join(node.cidrs)} while services have subnets of it: "
            + ", ".join(users)
        )
    if own == node.slice_cidr:
        return
    if owned:
        raise OperationRefused(
            f"slice CIDR {own} cannot replace {node.slice_cidr} while {len(owned)} addresses of it are in use"
        )
    for name, subnets in subnets_by_service.items():
        for subnet in subnets:
            if own is not None and subnet.overlaps(ipaddress.ip_network(own)):
                raise OperationRefused(f"slice CIDR {own} overlaps {subnet}, which service {name} has")


def _inside(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _network(what: str, text: str) -> Network:
    try:
        return address.network(text)
    except ValueError as error:
        raise OperationRefused(f"invalid {what} CIDR {text}: invalid address: {text}") from error


def teardown_global_overlay(_: wire.TeardownGlobalOverlay, context: OperationContext) -> wire.Ok:
    """Remove the containers, guests and edge peers that were made over the overlay socket, and idle services.
    Idempotent.

    Containers that a runtime attached over the CNI socket stay connected: the agent does not own them. Peers and names
    stay recorded, as in ZLayer's daemon; a later setup finds the same state as after the first (contract 6.3).
    """
    with context.locks.holding(NODE):
        containers.detach_all(context)
        guests.detach_all(context)
        edges.revoke_all(context)
        services.teardown_idle(context)
        if context.state.node.set_up:
            context.data_path.change_node({"set_up": False})
            context.refresh()
    return wire.Ok()


def status(_: wire.StatusRequest, context: OperationContext) -> wire.Status:
    """The node's status. `server` is program and version, which tell a client the supported operations (contract 8)."""
    node = context.state.node
    edges.sweep(context)
    peers = _peers(context)
    version = ipaddress.ip_network(node.cluster_cidr).version
    return wire.Status(
        interface=context.mesh.interface(),
        node_ip=str(node.address(version)) if context.is_up() else None,
        public_key=context.identity.public_key() if context.is_up() else None,
        overlay_cidr=node.cluster_cidr,
        slice_cidr=node.slice_cidr,
        peer_count=len(peers),
        service_count=services.count(context),
        peers=peers,
        dedicated_services=tuple(services.dedicated(context)),
        server=SERVER,
    )


def _peers(context: OperationContext) -> tuple[wire.PeerStatus, ...]:
    """The peers of the global device, with the last endpoint and the time of the last handshake in Unix seconds (0:
    never)."""
    targets, device = context.mesh.targets(), context.mesh.device()
    seen = device.peers if device is not None else {}
    statuses = []
    for key, target in targets.items():
        peer = seen.get(key)
        endpoint = (peer.endpoint if peer is not None else "") or next(iter(target.endpoints), "")
        handshake = peer.last_handshake if peer is not None else 0
        statuses.append(_peer_status(key, endpoint, target.allowed_ips, handshake))
    return tuple(statuses)


def _peer_status(key: str, endpoint: str, allowed_ips: Sequence[str], handshake: int) -> wire.PeerStatus:
    return wire.PeerStatus(keys.decode(key).hex(), endpoint, ",".join(allowed_ips), handshake)
