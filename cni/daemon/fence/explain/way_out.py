"""`why`, for the way out: a packet for the overlay leaves by a bridge, a routed port or a tunnel of the overlay, or is
dropped.
Pure.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from cni.daemon.fence.explain.endpoints import Endpoint, EndpointKind, FenceView
from cni.daemon.fence.explain.verdict import RuleRef, Verdict
from cni.daemon.fence.leaving import CONNECTED, NO_TUNNEL, ROUTED


def by_its_way(view: FenceView, src: Endpoint, dst: Endpoint, verdict: Verdict) -> Verdict:
    """The verdict on a packet to `dst`, given the device by which it leaves (`FenceView.ways`).

    Where the device was not looked up, or an earlier rule dropped the packet, the verdict is unchanged.
    """
    if not _is_judged(view, src, dst, verdict):
        return verdict
    node, device, chain = view.desired.node, view.ways[dst.address], f"leaving{dst.version}"
    if not device:
        return Verdict(False, None, f"this node has no route to {dst.address} now")
    if device == "lo" or device in node.tunnels or _is_inside(view, device):
        return verdict
    if src.kind in (EndpointKind.HOST, EndpointKind.LOOPBACK) and _inside(dst.address, node.connected):
        return Verdict(True, RuleRef("inet", chain, CONNECTED), f"the node itself is on the network of {dst.address}")
    if node.routed:
        note = f"the packet leaves by {device}, unencrypted (underlay: routed)"
        spot = verdict.spot or (RuleRef("inet", chain, ROUTED) if verdict.allowed else None)
        return replace(verdict, spot=spot, notes=(*verdict.notes, note))
    reason = f"the packet would leave by {device}, which is no tunnel of ours: overlay packets are not sent unencrypted"
    return Verdict(False, RuleRef("inet", chain, NO_TUNNEL), reason)


def _is_judged(view: FenceView, src: Endpoint, dst: Endpoint, verdict: Verdict) -> bool:
    """Whether the packet reaches the hook postrouting. The node's own packets do, to every address."""
    if dst.address not in view.ways or not _inside(dst.address, view.desired.node.clusters):
        return False
    return verdict.allowed or (src.kind in (EndpointKind.HOST, EndpointKind.LOOPBACK) and verdict.spot is None)


def _is_inside(view: FenceView, device: str) -> bool:
    """Whether the device leads to containers: a bridge, or a port without one."""
    routed = (port.name for port in view.desired.ports if port.bridge is None)
    return any(device == bridge.name for bridge in view.desired.bridges) or device in routed


def _inside(address: str, cidrs: tuple[str, ...]) -> bool:
    return any(ip_address(address) in ip_network(cidr) for cidr in cidrs)
