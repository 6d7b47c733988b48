"""`why`, for the host's own networks inside the overlay's range (`FenceNode.connected`). Pure."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from cni.daemon.fence.explain.endpoints import Endpoint, EndpointKind, FenceView
from cni.daemon.fence.explain.verdict import HOST_FIREWALL, RuleRef, Verdict


def is_connected(view: FenceView, place: Endpoint) -> bool:
    """Whether an unknown endpoint has an address of a connected network."""
    networks = (ip_network(cidr) for cidr in view.desired.node.connected) if place.address else ()
    return place.kind is EndpointKind.UNKNOWN and any(ip_address(place.address) in network for network in networks)


def from_connected(view: FenceView, src: Endpoint, dst: Endpoint, translated: bool) -> Verdict:
    """From a connected network: to the host and the outside like any sender; to a member only by a published port."""
    if dst.kind is EndpointKind.HOST and not translated:
        return Verdict(True, None, "the node's own addresses are not fenced to its own networks", (HOST_FIREWALL,))
    if dst.kind is EndpointKind.OUTSIDE or is_connected(view, dst):
        return Verdict(True, None, f"{src.address} is on a network of the host's own: the fence does not filter it")
    chain = f"from_connected{src.version}"
    if dst.kind is EndpointKind.CONTAINER and translated:
        spot = RuleRef("inet", chain, "published port, from a connected network")
        return Verdict(True, spot, "a published port is open to the host's networks")
    reason = f"{src.address} is on a network of the host's own; from there a member is reached only by a published port"
    return Verdict(False, RuleRef("inet", chain, "connected network to a member"), reason)
