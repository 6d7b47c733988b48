"""`why`, for network policies: which policy and rule allow a flow that the fence lets pass, or what would allow it.
Pure.
"""

from __future__ import annotations

from dataclasses import replace

from cni.daemon.fence import policy_chains
from cni.daemon.fence.explain.endpoints import Endpoint, EndpointKind, FenceView
from cni.daemon.fence.explain.translated import PortSpec
from cni.daemon.fence.explain.verdict import RuleRef, Verdict
from cni.daemon.fence.model import PortPolicy
from cni.daemon.policy.decide import Side
from cni.daemon.policy.model import Direction

_NODE = (EndpointKind.HOST, EndpointKind.LOOPBACK)
_ANY = {4: "0.0.0.0", 6: "::"}  # stands for the outside as a whole, which only a block of everything contains


def policed(view: FenceView, src: Endpoint, dst: Endpoint, service: PortSpec | None, verdict: Verdict) -> Verdict:
    """The verdict on a flow to its final destination, which has the verdict `verdict` by the rest of the fence."""
    ours = any(end.kind is EndpointKind.CONTAINER for end in (src, dst))
    if not verdict.allowed or view.judge is None or not ours or src.kind in _NODE or dst.kind in _NODE:
        return verdict
    unknown: tuple[tuple[Direction, Endpoint], ...] = (("egress", src), ("ingress", dst))
    for direction, end in unknown:
        if end.kind is EndpointKind.CONTAINER and _chain(view, end, direction) == policy_chains.UNKNOWN:
            spot = RuleRef("inet", policy_chains.UNKNOWN, "pod not known yet")
            return Verdict(False, spot, f"the API server has not told of the pod of {end.label} yet, so it is closed")
    protocol, number = (service.protocol.upper(), service.number) if service is not None else ("", 0)
    decision = view.judge(src.address or _ANY[src.version], dst.address or _ANY[dst.version], protocol, number)
    notes = []
    for side, end, peer in ((decision.egress, src, dst), (decision.ingress, dst, src)):
        if not side.allowed:
            return _refused(view, side, end, peer, service)
        if side.rule:
            notes.append(f"the policy rule {side.rule} allows it")
    return replace(verdict, notes=(*verdict.notes, *notes))


def _refused(view: FenceView, side: Side, end: Endpoint, peer: Endpoint, service: PortSpec | None) -> Verdict:
    name, towards = ", ".join(side.policies), "from" if side.direction == "ingress" else "to"
    what = f"{service.protocol.upper()} {service.number}" if service is not None else "packets without ports"
    reason = (
        f"network policies isolate {end.label} for {side.direction} ({name}), and no rule of theirs allows {what} "
        f"{towards} {peer.label or peer.address}"
    )
    chain = _chain(view, end, side.direction) if end.kind is EndpointKind.CONTAINER else ""
    spot = RuleRef("inet", chain, policy_chains.dropping(side.direction, side.policies)) if chain else None
    note = f"an {side.direction} rule of a policy that selects {end.label}, with that peer and port, would allow it"
    return Verdict(False, spot, reason, (note,))


def _chain(view: FenceView, end: Endpoint, direction: Direction) -> str:
    """The chain that judges the flows of a container of this node; empty if no policy isolates it."""
    for port in view.desired.ports:
        if end.address in port.addresses:
            policy = port.policy or PortPolicy()
            return policy.ingress if direction == "ingress" else policy.egress
    return ""
