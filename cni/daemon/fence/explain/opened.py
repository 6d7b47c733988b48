"""`why`, for what the settings open: `isolation.reach` and `isolation.from` (fence/openings.py). Pure."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from cni.daemon.fence import openings
from cni.daemon.fence.explain.endpoints import Endpoint, EndpointKind, FenceView
from cni.daemon.fence.explain.verdict import HOST_FIREWALL, RuleRef, Verdict
from cni.openings import Opening

_IN_USE = (EndpointKind.CONTAINER, EndpointKind.REMOTE, EndpointKind.CALLER)
_BRIDGED = "the settings list it, and between ports of one bridge that opens a flow only with bridge-nf-call 1"


def opened(view: FenceView, src: Endpoint, dst: Endpoint, asked: Opening, verdict: Verdict) -> Verdict:
    """The verdict on a flow that the fence would drop by `verdict`. `asked`: the destination and port of the flow's
    first packet, before the node translates it."""
    if verdict.allowed or not view.desired.node.openings:
        return verdict
    found = _by_sender(view, src, dst) or _by_destination(view, src, dst, asked)
    if found is None:
        return verdict
    if verdict.spot is not None and verdict.spot.family == "bridge" and dst.version not in view.tracks_bridged:
        return replace(verdict, notes=(*verdict.notes, _BRIDGED))
    return found


def _by_sender(view: FenceView, src: Endpoint, dst: Endpoint) -> Verdict | None:
    if not src.address or src.kind is EndpointKind.EDGE or dst.kind not in _IN_USE:
        return None
    if not any(ip_address(src.address) in ip_network(cidr) for cidr in view.desired.node.senders):
        return None
    spot = RuleRef("inet", f"open{dst.version}", openings.SENDER)
    return Verdict(True, spot, f"{src.address} is listed: it may open flows to every member (isolation.from)")


def _by_destination(view: FenceView, src: Endpoint, dst: Endpoint, asked: Opening) -> Verdict | None:
    at_host = dst.kind is EndpointKind.HOST and src.kind is EndpointKind.CONTAINER
    if src.kind not in _IN_USE or not (at_host or dst.kind in _IN_USE):
        return None
    reach = view.desired.node.reach
    whole = Opening(asked.address) in reach
    if not whole and not (asked.port and asked in reach):
        return None
    name = openings.NAME if whole else f"{openings.NAME}, {asked.protocol}"
    reason = f"{asked.address} is listed: every container may open flows to it (isolation.reach)"
    return Verdict(True, RuleRef("inet", f"reach{dst.version}", name), reason, (HOST_FIREWALL,) if at_host else ())
