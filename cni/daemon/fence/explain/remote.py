"""`why`, for packets that come by a tunnel: from containers of other nodes, guests and edge peers. Pure.

Where the sender's own node has a fence too, the verdict covers both fences: a remote member's packet never arrives at
this node's address, whatever this node's rules say.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from cni.daemon.fence.explain.endpoints import Endpoint, EndpointKind, FenceView
from cni.daemon.fence.explain.verdict import HOST_FIREWALL, RuleRef, Verdict, describe, named
from cni.daemon.fence.model import chain_of

UNKNOWN_THERE = "this node is not told which containers and networks are there; the fence of that node decides as well"
ITS_OWN_FENCE = "the other node's fence decides too: a member there of a network that this node does not know is closed"


def from_far(view: FenceView, src: Endpoint, dst: Endpoint, tunnel: bool) -> Verdict:
    """The verdict on the first packet of a sender behind a tunnel. `tunnel`: it is for a tunnel port of the host's."""
    if dst.kind is EndpointKind.LOOPBACK:
        spot = RuleRef("inet", "from_tunnel", "loopback of the host") if dst.version == 4 else None
        return Verdict(False, spot, "the host's loopback is not reached from a tunnel")
    if tunnel and dst.kind is EndpointKind.HOST and src.kind is not EndpointKind.REMOTE and src.network is not None:
        spot = RuleRef("inet", "closed_to_host", "tunnel to the node, from elsewhere")
        return Verdict(False, spot, "no tunnel into the host from a network, or an edge peer")
    if src.kind is EndpointKind.EDGE:
        return from_edge(view, src, dst)
    return from_remote(view, src, dst) if src.kind is EndpointKind.REMOTE else from_caller(view, src, dst)


def from_remote(view: FenceView, src: Endpoint, dst: Endpoint) -> Verdict:
    """From a container of another node."""
    match dst.kind:
        case EndpointKind.HOST if not _in_overlay(view, dst):
            reason = "the address is outside the overlay: the packet leaves the sender's node with that node's address"
            return Verdict(True, None, reason, (HOST_FIREWALL,))
        case EndpointKind.HOST if src.network is not None:
            return Verdict(False, None, "its own node refuses: a member reaches only the address of its own node")
        case EndpointKind.HOST:
            return Verdict(True, None, "the flat mesh reaches the overlay's addresses of a node", (HOST_FIREWALL,))
        case EndpointKind.OUTSIDE:
            reason = "the packet leaves by its own node; every container may reach addresses outside the overlay"
            return Verdict(True, None, reason)
        case _:
            return by_address(src, dst)


def from_caller(view: FenceView, src: Endpoint, dst: Endpoint) -> Verdict:
    """From a guest, or an edge peer without a list, behind this node's own tunnel."""
    match dst.kind:
        case EndpointKind.HOST if src.network is not None and dst.address in view.desired.node.addresses:
            spot = RuleRef("inet", "closed_to_host", named("node address, from elsewhere", dst.version))
            return Verdict(True, spot, "the node address is open to every member", (HOST_FIREWALL,))
        case EndpointKind.HOST if src.network is not None:
            spot = RuleRef("inet", "closed_to_host", "host address, from elsewhere")
            return Verdict(False, spot, "a member of a network reaches only the node address")
        case EndpointKind.HOST:
            return Verdict(True, None, "the sender is in the flat mesh", (HOST_FIREWALL,))
        case EndpointKind.OUTSIDE:
            spot = RuleRef("inet", "tunnel_out", "tunnel to the outside")
            return Verdict(False, spot, "a machine behind this node's tunnel does not leave the overlay by this node")
        case _:
            return by_address(src, dst)


def by_address(src: Endpoint, dst: Endpoint) -> Verdict:
    """Between overlay addresses: by membership, in the chain of the sender's network."""
    chain, same = (
        chain_of(src.network),
        src.network == dst.network and dst.kind not in (EndpointKind.UNKNOWN, EndpointKind.EDGE),
    )
    name = "between networks" if not same else named(same_network(dst), dst.version)
    other = {
        EndpointKind.UNKNOWN: f"{dst.address} is unknown to this node",
        EndpointKind.EDGE: f"{dst.address} is an edge peer's: no flow to an edge peer may be opened",
    }.get(dst.kind, membership(dst.address, dst))
    return Verdict(same, RuleRef("inet", chain, name, src.network), f"{membership('the sender', src)}, and {other}")


def membership(name: str, endpoint: Endpoint) -> str:
    """The network of an endpoint, as a sentence about `name`."""
    if endpoint.certain:
        return f"{name} is in {describe(endpoint.network)}"
    return f"{name} counts here as one of the flat mesh, because its node publishes no networks to this node"


def same_network(dst: Endpoint) -> str:
    """The rule by which a member of the sender's own network is reached."""
    return "flat mesh elsewhere" if dst.is_far and not dst.listed else "same network"


def from_edge(view: FenceView, src: Endpoint, dst: Endpoint) -> Verdict:
    """From an edge peer with a list of the CIDRs that it may reach."""
    if dst.kind is EndpointKind.HOST and dst.address in view.desired.node.addresses:
        spot = RuleRef("inet", "closed_to_host", named("node address, from elsewhere", dst.version))
        return Verdict(True, spot, "the node address is open to every edge peer", (HOST_FIREWALL,))
    chain = chain_of(src.network)
    cidr = _allowed(src, dst)
    if cidr is None:
        spot = RuleRef("inet", chain, "not allowed to an edge peer", src.network)
        return Verdict(False, spot, f"the edge peer may reach only {', '.join(src.allowed)} and the node address")
    if dst.kind is EndpointKind.UNKNOWN:
        reason = f"the edge peer may reach {cidr}, but {dst.address} is unknown to this node"
        return Verdict(False, unknown_port(view, dst), reason)
    if dst.kind is EndpointKind.REMOTE and dst.network is not None:
        reason = f"for other nodes the edge peer is in the flat mesh, and {dst.address} is in {describe(dst.network)}"
        return Verdict(False, None, reason)
    return Verdict(True, RuleRef("inet", chain, f"edge to {cidr}", src.network), f"the edge peer may reach {cidr}")


def unknown_port(view: FenceView, dst: Endpoint) -> RuleRef | None:
    """The rule that drops a packet of the node itself to an unknown address; None if the address is on no bridge."""
    on_bridge = any(ip_address(dst.address) in network for network in view.segments())
    return RuleRef("bridge", "postrouting", "gateway to unknown port") if on_bridge else None


def _allowed(src: Endpoint, dst: Endpoint) -> str | None:
    if not dst.address:
        return None
    inside = (cidr for cidr in map(ip_network, src.allowed) if ip_address(dst.address) in cidr)
    return next(map(str, inside), None)


def _in_overlay(view: FenceView, dst: Endpoint) -> bool:
    return any(ip_address(dst.address) in ip_network(cluster) for cluster in view.desired.node.clusters)
