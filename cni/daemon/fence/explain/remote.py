"""`why`, for what comes by a tunnel: containers of other nodes, guests and edge peers. Pure.

Where the sender's own node has a fence of ours too, both have a say, and the answer is what becomes of the packet: a
member elsewhere never gets as far as this node's address, whatever this node would say to it.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from cni.daemon.fence.explain.endpoints import Endpoint, EndpointKind, FenceView
from cni.daemon.fence.explain.verdict import HOST_FIREWALL, RuleRef, Verdict, describe, named
from cni.daemon.fence.model import chain_of

ITS_OWN_FENCE = (
    "the other node's fence has a say too: whom it holds in a network that this node knows nothing of is closed"
)


def from_far(view: FenceView, src: Endpoint, dst: Endpoint, tunnel: bool) -> Verdict:
    """The verdict on the first packet from somebody behind a tunnel. `tunnel`: it is for a port of a host's tunnels."""
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
            reason = "that is outside the overlay: it leaves its own node, and comes with that node's address"
            return Verdict(True, None, reason, (HOST_FIREWALL,))
        case EndpointKind.HOST if src.network is not None:
            return Verdict(False, None, "its own node refuses: a member reaches the address of its own node alone")
        case EndpointKind.HOST:
            return Verdict(True, None, "the flat mesh reaches the overlay's addresses of a node", (HOST_FIREWALL,))
        case EndpointKind.OUTSIDE:
            return Verdict(True, None, "it leaves by its own node, and outside the overlay is open to every container")
        case _:
            return by_address(src, dst)


def from_caller(view: FenceView, src: Endpoint, dst: Endpoint) -> Verdict:
    """From a guest, or an edge peer without a list, behind this node's own tunnel."""
    match dst.kind:
        case EndpointKind.HOST if src.network is not None and dst.address in view.wanted.node.addresses:
            spot = RuleRef("inet", "closed_to_host", named("node address, from elsewhere", dst.version))
            return Verdict(True, spot, "the node address is open to every member", (HOST_FIREWALL,))
        case EndpointKind.HOST if src.network is not None:
            spot = RuleRef("inet", "closed_to_host", "host address, from elsewhere")
            return Verdict(False, spot, "a member of a network reaches the node address alone")
        case EndpointKind.HOST:
            return Verdict(True, None, "it is of the flat mesh", (HOST_FIREWALL,))
        case EndpointKind.OUTSIDE:
            spot = RuleRef("inet", "tunnel_out", "tunnel to the outside")
            return Verdict(False, spot, "who calls this node by WireGuard does not leave the overlay by it")
        case _:
            return by_address(src, dst)


def by_address(src: Endpoint, dst: Endpoint) -> Verdict:
    """Among overlay addresses: by membership, in the chain of the sender's network."""
    chain, same = (
        chain_of(src.network),
        src.network == dst.network and dst.kind not in (EndpointKind.UNKNOWN, EndpointKind.EDGE),
    )
    name = "between networks" if not same else named(same_network(dst), dst.version)
    other = {
        EndpointKind.UNKNOWN: "is known to nobody here",
        EndpointKind.EDGE: "is an edge peer's: nobody opens a flow to that",
    }.get(dst.kind, f"is of {describe(dst.network)}")
    return Verdict(
        same, RuleRef("inet", chain, name, src.network), f"it is of {describe(src.network)}, and {dst.address} {other}"
    )


def same_network(dst: Endpoint) -> str:
    """The rule by which somebody is reached who is of the sender's own network."""
    return "flat mesh elsewhere" if dst.is_far and not dst.listed else "same network"


def from_edge(view: FenceView, src: Endpoint, dst: Endpoint) -> Verdict:
    """From an edge peer with a list of what it may reach."""
    if dst.kind is EndpointKind.HOST and dst.address in view.wanted.node.addresses:
        spot = RuleRef("inet", "closed_to_host", named("node address, from elsewhere", dst.version))
        return Verdict(True, spot, "the node address is open to every edge peer", (HOST_FIREWALL,))
    chain = chain_of(src.network)
    cidr = _allowed(src, dst)
    if cidr is None:
        spot = RuleRef("inet", chain, "not allowed to an edge peer", src.network)
        return Verdict(False, spot, f"it may reach {', '.join(src.allowed)} and the node address, and no more")
    if dst.kind is EndpointKind.UNKNOWN:
        return Verdict(
            False, unknown_port(view, dst), f"it may reach {cidr}, but nobody this node knows has {dst.address}"
        )
    if dst.kind is EndpointKind.REMOTE and dst.network is not None:
        reason = f"to other nodes it is of the flat mesh, and {dst.address} is of {describe(dst.network)}"
        return Verdict(False, None, reason)
    return Verdict(True, RuleRef("inet", chain, f"edge to {cidr}", src.network), f"it may reach {cidr}")


def unknown_port(view: FenceView, dst: Endpoint) -> RuleRef | None:
    """Where a packet from the node itself ends for which there is nobody."""
    on_bridge = any(ip_address(dst.address) in network for network in view.segments())
    return RuleRef("bridge", "postrouting", "gateway to unknown port") if on_bridge else None


def _allowed(src: Endpoint, dst: Endpoint) -> str | None:
    if not dst.address:
        return None
    inside = (cidr for cidr in map(ip_network, src.allowed) if ip_address(dst.address) in cidr)
    return next(map(str, inside), None)


def _in_overlay(view: FenceView, dst: Endpoint) -> bool:
    return any(ip_address(dst.address) in ip_network(cluster) for cluster in view.wanted.node.clusters)
