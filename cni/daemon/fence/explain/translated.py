"""`why`, for what the node translates: kube-proxy's virtual addresses and NodePorts, portmap's host ports. Pure.

The node's rules are evaluated as they are in the kernel (host/nat_rules.py). DNAT comes before the fence's decision on
forwarding, so the verdict is on the endpoint; where the rules choose among several, each endpoint has its verdict, and
the flow is allowed if all of them are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cni.daemon.fence.explain import connected
from cni.daemon.fence.explain.endpoints import Endpoint, EndpointKind, FenceView
from cni.daemon.fence.explain.opened import opened
from cni.daemon.fence.explain.verdict import Translated, Verdict
from cni.host.nat_rules import Packet, Target, Way, refused_by, translate
from cni.openings import Opening

Decide = Callable[[FenceView, Endpoint, Endpoint, "PortSpec | None"], Verdict]
Policed = Callable[[FenceView, Endpoint, Endpoint, "PortSpec | None", Verdict], Verdict]
_HOSTS = (EndpointKind.HOST, EndpointKind.LOOPBACK)
SHOWN = 4  # endpoints that a sentence names


@dataclass(frozen=True, slots=True)
class PortSpec:
    """The destination port: its number, 1 to 65535, and its protocol: tcp, udp or sctp."""

    number: int
    protocol: str = "tcp"

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow that is asked about: who opens it, to what. Without `service` to any port."""

    view: FenceView
    src: Endpoint
    dst: Endpoint
    service: PortSpec | None

    def asked(self) -> Opening:
        """The destination as the settings may list it."""
        number, protocol = (self.service.number, self.service.protocol) if self.service is not None else (0, "")
        return Opening(self.dst.address, protocol, number)

    def packet(self) -> Packet:
        """Its first packet, for the rules of other programs."""
        host = frozenset(address.partition("/")[0] for _, address in self.view.host)
        number, protocol = (self.service.number, self.service.protocol) if self.service is not None else (0, "")
        return Packet(self.src.address, self.dst.address, protocol, number, host)

    def way(self) -> Way:
        """Where the node's rules lead the flow. Without a port only virtual addresses are followed, by any port."""
        virtual = self.dst.kind in (EndpointKind.OUTSIDE, EndpointKind.UNKNOWN)
        if not self.dst.address or (self.service is None and not virtual):
            return Way()
        return translate(self.view.translating, self.packet(), self.src.kind in _HOSTS)

    def refusal(self) -> Verdict | None:
        """The verdict where a rule of another program drops what nothing translates: a service without endpoints."""
        asked = self.service is not None and bool(self.dst.address) and self.src.kind not in _HOSTS
        if not asked or self.dst.kind is not EndpointKind.OUTSIDE:
            return None
        if chain := refused_by(self.view.translating, self.packet()):
            reason = f"the chain {chain} of another program refuses it: a service without an endpoint, or no service"
            return Verdict(False, None, reason)
        return None


def decide(flow: Flow, way: Way, plain: Decide, from_outside: Decide, policed: Policed) -> Verdict:
    """The verdict on a flow that the node leads to the targets of `way`.

    `plain` decides on a flow from a known endpoint, `from_outside` on one from outside that was translated, and
    `policed` by network policies on what one of the two allows.
    """
    judge = from_outside if flow.src.kind is EndpointKind.OUTSIDE else plain
    ends = [_to_target(flow, target, judge, policed) for target in way.targets]
    refused = [end for end in ends if not end.verdict.allowed]
    first = (refused or ends)[0].verdict
    notes = (_note(flow, way.targets), *first.notes)
    if flow.src.kind is EndpointKind.REMOTE:
        notes = (*notes, "the sender's own node translates it; this is what the rules of this node say")
    if len(ends) == 1:
        return replace(first, notes=notes, translated=(ends[0],))
    reason = f"{len(ends) - len(refused)} of {len(ends)} endpoints may be reached"
    if refused:
        reason += f"; of {refused[0].address}: {first.reason}"
    certain = all(end.verdict.certain for end in ends)
    return replace(first, reason=reason, notes=notes, translated=tuple(ends), certain=certain)


def _to_target(flow: Flow, target: Target, judge: Decide, policed: Policed) -> Translated:
    view, src, dst, service = flow.view, flow.src, flow.dst, flow.service
    real = view.place_of(target.address) if target.address else Endpoint(EndpointKind.HOST, dst.address, "the host")
    protocol = service.protocol if service is not None else "tcp"
    port = target.port or (service.number if service is not None else 0)
    if connected.is_connected(view, src):
        verdict = connected.from_connected(view, src, real, translated=True)
    elif _is_bridged_past(view, src, real):
        reason = "both are on one bridge, and the answer is bridged past connection tracking: bridge-nf-call is not 1"
        verdict = Verdict(False, None, reason)
    else:
        spec = PortSpec(port, protocol) if port else None
        verdict = policed(view, src, real, spec, opened(view, src, real, flow.asked(), judge(view, src, real, spec)))
    return Translated(real.address, port, real.label, verdict)


def _is_bridged_past(view: FenceView, src: Endpoint, real: Endpoint) -> bool:
    """Whether connection tracking does not see the answer, so that the client does not take it."""
    if not (src.kind is real.kind is EndpointKind.CONTAINER) or real.version in view.tracks_bridged:
        return False
    here, there = src.known(), real.known()
    return here.container != there.container and here.port.bridge == there.port.bridge is not None


def _note(flow: Flow, targets: Sequence[Target]) -> str:
    shown = [f"{target.address or 'the host'} port {target.port or 'the same'}" for target in targets[:SHOWN]]
    more = f" and {len(targets) - SHOWN} more" if len(targets) > SHOWN else ""
    where = f"translated to {', '.join(shown)}{more} on the way in"
    if flow.dst.kind is EndpointKind.HOST:
        return f"port {flow.service} is published: it is {where}"
    port = f", port {flow.service}" if flow.service is not None else ""
    return f"{flow.dst.address}{port} is a virtual address: it is {where}"
