"""The tool's requests about the mesh: peers and their state, tokens, departed nodes, configurations, the graph."""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cni import answers, defaults, plugin_protocol
from cni.daemon.api import tool_nat
from cni.daemon.api.peer_names import find
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.fence.explain.endpoints import TunnelRoute
from cni.daemon.mesh import joined_peers
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model import wireguard
from cni.daemon.model.wireguard import Target
from cni.errors import InvalidConfig
from cni.host import underlay
from cni.host.wg_types import PeerSeen
from cni.overlay.address import join_host_port

if TYPE_CHECKING:
    from cni.daemon.cluster.departed_nodes import DepartedNode, DepartedNodes


def wireguard_summary(context: ToolContext) -> answers.WireGuard:
    """A summary of the global device."""
    mesh = context.mesh
    interface, device, is_needed = mesh.interface(), mesh.device(), mesh.wanted()
    alive = [age for age in mesh.ages(device).values() if age < wireguard.DEAD] if device else []
    note = "" if interface else "no device" if is_needed else "no device: this node has no peers"
    if not interface and context.settings.underlay == "routed":
        note = "no device: traffic between nodes goes by the host's routes, and is not encrypted"
    return answers.WireGuard(
        interface=interface,
        engine=device.engine if device else None,
        public_key=mesh.public_key() if is_needed else None,
        port=context.state.node.wg_port,
        peers=len(mesh.targets()) if is_needed else 0,
        alive=len(alive),
        note=note,
    )


def peers(context: ToolContext, _: Mapping[str, str]) -> list[answers.Peer]:
    """Every peer of every device, with its configured and its actual state."""
    mesh, views = context.mesh, context.traversal.views()
    listed = []
    for of_service in mesh.services():
        device = mesh.device(of_service)
        seen = device.peers if device is not None else {}
        ages = mesh.ages(device) if device is not None else {}
        for key, target in mesh.targets(of_service).items():
            peer = _peer(mesh, of_service, target, seen.get(key), ages.get(key, math.inf))
            listed.append(tool_nat.with_path(peer, views.get(key) if not of_service else None))
    return listed


def _peer(mesh: Mesh, of_service: str, target: Target, seen: PeerSeen | None, age: float) -> answers.Peer:
    endpoint = seen.endpoint if seen is not None else ""
    shaken = seen.last_handshake if seen is not None else 0
    alive = age < wireguard.DEAD
    path = mesh.path_mtu(target.public_key, endpoint) if endpoint else None
    return answers.Peer(
        device=mesh.device_name(of_service),
        service=of_service or None,
        name=target.name or target.owner,
        public_key=target.public_key,
        endpoint=endpoint or None,
        configured_endpoints=list(target.endpoints),
        last_handshake_unix=shaken or None,
        last_handshake_seconds_ago=None if math.isinf(age) else round(age, 1),
        alive=alive,
        direct=alive and endpoint in mesh.called_at(target),
        rx_bytes=seen.received if seen is not None else 0,
        tx_bytes=seen.sent if seen is not None else 0,
        allowed_ips=list(target.allowed_ips),
        keepalive=target.keepalive,
        path_mtu=path[0] if path is not None else None,
        path_mtu_measured=path is not None and path[1],
        on_device=seen is not None,
    )


def behind(context: ToolContext) -> tuple[TunnelRoute, ...]:
    """The CIDRs that are routed into tunnels, for `why`."""
    mesh, routes = context.mesh, []
    for of_service in mesh.services():
        in_cluster = mesh.cluster_keys(of_service)
        for target in mesh.targets(of_service).values():
            route = TunnelRoute(
                cidr="",
                label=_label(target),
                name=target.owner.partition(":")[2],
                node="" if target.owner or of_service else target.name,
                peer=target.public_key,
                certain=bool(target.owner) or target.public_key in in_cluster,
            )
            routes += [replace(route, cidr=cidr) for cidr in target.led()]
    return tuple(routes)


def silent_peer_of(context: ToolContext, address: str) -> str:
    """The peer that does not answer and that packets to the address are routed to, by name or key; "" if there is
    none."""
    ip = ipaddress.ip_address(address)
    for target in context.mesh.silent():
        if any(ip in wireguard.network_of(cidr) for cidr in target.led()):
            return target.name or target.public_key
    return ""


def _label(target: Target) -> str:
    kind, _, name = target.owner.partition(":")
    if name:
        return f"{kind} {name}"
    return f"behind {target.name}" if target.name else f"behind the peer {target.public_key[:10]}..."


# --- tokens ---------------------------------------------------------------------------------------------------------


def token(context: ToolContext, _: Mapping[str, str]) -> answers.Token:
    """A token with which another node adds this one as a peer. Raises InvalidConfig in a cluster, and if the addresses
    behind this node are not configured."""
    mesh, state = context.mesh, context.state
    if context.settings.cluster is not None:
        raise InvalidConfig("this node is in a cluster: give the other node the same `cluster` in its YAML instead")
    if state.node.slice_cidr is None or context.settings.service_cidr is None:
        raise InvalidConfig(
            "the addresses behind this node are not fixed",
            "set slice_cidr and service_cidr in its YAML, different ones on each node",
        )
    return answers.Token(token=joined_peers.encode(_invitation(context, mesh)), public_key=mesh.public_key())


def _invitation(context: ToolContext, mesh: Mesh) -> joined_peers.Invitation:
    node = context.state.node
    hosts = [join_host_port(str(address), node.wg_port) for address in underlay.addresses(node.cidrs)]
    return joined_peers.Invitation(
        name=socket.gethostname(),
        node_id=node.node_id,
        cluster_cidrs=node.cidrs,
        public_key=mesh.public_key(),
        endpoints=_called_at(context, hosts),
        allowed_ips=_own(context),
    )


def _called_at(context: ToolContext, hosts: list[str]) -> tuple[str, ...]:
    """The endpoints of this node. Raises InvalidConfig if there is none: the other node could never call."""
    endpoints = context.settings.advertise or tuple(hosts)
    if not endpoints:
        raise InvalidConfig(
            "no address of this node is known at which the other node could call it",
            "give the node an address, or set `advertise` in its YAML (host:port)",
        )
    return endpoints


def _own(context: ToolContext) -> tuple[str, ...]:
    """The CIDRs behind this node, as far as they are configured."""
    node = context.state.node
    return tuple(cidr for cidr in (node.slice_cidr, context.settings.service_cidr) if cidr)


def join(context: ToolContext, env: Mapping[str, str]) -> answers.Joined:
    """Add the node of the token as a peer, which stays one across reboots. Returns this node's token, which the other
    node needs. Raises InvalidConfig."""
    mesh = context.mesh
    invitation = joined_peers.decode(env.get(plugin_protocol.TOKEN, ""))
    own = token(context, env)
    joined_peers.judge(invitation, context.state.node, mesh.public_key(), _own(context))
    joined = [peer for peer in context.joined.all() if not joined_peers.is_again(peer, invitation)]
    others = [(peer.name, peer.public_key, peer.allowed_ips) for peer in joined]
    others += [(peer.name, peer.public_key, peer.allowed_ips) for peer in context.settings.peers]
    joined_peers.judge_beside(invitation, others)
    context.joined.add(invitation)
    mesh.sync()
    return answers.Joined(name=invitation.name, public_key=invitation.public_key, token=own.token)


def remove(context: ToolContext, env: Mapping[str, str]) -> answers.RemovedPeer:
    """Remove a peer that was joined by token. Raises InvalidConfig for any other peer."""
    mesh = context.mesh
    target = find(mesh, env.get(plugin_protocol.PEER, ""))
    if not context.joined.remove(target.public_key):
        raise InvalidConfig(f"{target.name or target.public_key} was not joined by token: remove it where it was added")
    mesh.sync()
    return answers.RemovedPeer(public_key=target.public_key)


def rotate(context: ToolContext, _: Mapping[str, str]) -> answers.RotatedKey:
    """Replace this node's key. In a cluster the other nodes follow by themselves; else they need the new key."""
    return answers.RotatedKey(public_key=context.rotate(), cluster=context.settings.cluster is not None)


def gone(context: ToolContext, _: Mapping[str, str]) -> list[answers.DepartedNode]:
    """The nodes that hold claims in etcd and are offline. Raises InvalidConfig without a cluster."""
    return [_departed(node) for node in _departures(context).all()]


def forget(context: ToolContext, env: Mapping[str, str]) -> answers.DepartedNode:
    """Delete the claims of such a node from etcd. Raises InvalidConfig."""
    return _departed(_departures(context).forget(env.get(plugin_protocol.PEER, "")))


def _departures(context: ToolContext) -> DepartedNodes:
    if context.departed is None:
        raise InvalidConfig(
            "this node is in no cluster: `zlayer-cni peer remove` forgets a node that was joined by token"
        )
    return context.departed


def _departed(node: DepartedNode) -> answers.DepartedNode:
    return answers.DepartedNode(
        identity=node.identity, node_id=node.node_id or None, name=node.name or None, holds=len(node.keys)
    )


# --- configurations and the graph -----------------------------------------------------------------------------------


def showconf(context: ToolContext, env: Mapping[str, str]) -> answers.PeerConfiguration:
    """A wg-quick configuration for the machine of a peer: a guest, an edge peer, or any machine with plain WireGuard.
    Raises InvalidConfig for an unknown peer."""
    mesh, node = context.mesh, context.state.node
    target = find(mesh, env.get(plugin_protocol.PEER, ""))
    guest = next((g for g in context.registry.guests.all().values() if g.public_key == target.public_key), None)
    hosts = [join_host_port(str(address), node.wg_port) for address in underlay.addresses(node.cidrs)]
    endpoints = context.settings.advertise or tuple(hosts)
    allowed = ", ".join(node.cidrs)
    lines = [
        f"# {target.name or target.owner or 'peer'} {target.public_key}",
        "[Interface]",
        f"PrivateKey = {guest.private_key if guest else '# its own, which this node does not know'}",
        *(f"Address = {cidr}" for cidr in target.allowed_ips if _is_one(cidr)),
        f"MTU = {context.container_mtu.current()}",
        "",
        "[Peer]",
        f"PublicKey = {mesh.public_key()}",
        *(f"Endpoint = {endpoint}" for endpoint in endpoints[:1]),
        f"AllowedIPs = {allowed}",
        f"PersistentKeepalive = {target.keepalive or defaults.KEEPALIVE}",
    ]
    return answers.PeerConfiguration(public_key=target.public_key, text="\n".join(lines) + "\n")


def _is_one(cidr: str) -> bool:
    network = ipaddress.ip_network(cidr)
    return network.prefixlen == network.max_prefixlen


def graph(context: ToolContext, env: Mapping[str, str]) -> answers.Graph:
    """This node, its services, and its peers with the CIDRs behind them."""
    state = context.state
    services = [
        answers.GraphService(service=record.name, mode=record.mode, subnets=list(record.subnets))
        for record in state.services.values()
        if record.subnets
    ]
    node = answers.GraphNode(
        name=socket.gethostname(),
        node_id=state.node.node_id,
        addresses=[str(address) for address in state.node_addresses()],
        services=services,
    )
    return answers.Graph(node=node, peers=peers(context, env))


QUESTIONS: dict[str, Callable[[ToolContext, Mapping[str, str]], answers.Answer | Sequence[answers.Answer]]] = {
    "peers": peers,
    "token": token,
    "join": join,
    "peer-remove": remove,
    "peer-rotate": rotate,
    "peer-gone": gone,
    "peer-forget": forget,
    "showconf": showconf,
    "graph": graph,
}
