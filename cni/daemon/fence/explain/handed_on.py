"""`why`, for IPVS: a port of the host's that leads to real servers, chosen for each flow by the kernel. Pure.

IPVS takes the packet before the fence would judge it as one for the host; what it sends is judged by its source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cni.daemon.fence.explain import remote, way_out
from cni.daemon.fence.explain.endpoints import Balanced, Endpoint, EndpointKind, FenceView
from cni.daemon.fence.explain.verdict import RuleRef, Verdict

Decide = Callable[[FenceView, Endpoint, Endpoint], Verdict]


def servers(view: FenceView, dst: Endpoint, number: int, protocol: str) -> list[Balanced]:
    """The real servers of the service at a port of the host's; none if there is no service."""
    return [
        each
        for each in view.balanced
        if dst.kind is EndpointKind.HOST
        and (each.host_address, each.host_port, each.protocol) == (dst.address, number, protocol)
    ]


def decide(view: FenceView, src: Endpoint, dst: Endpoint, found: list[Balanced], plain: Decide) -> Verdict:
    """The verdict on a flow to a service: that of the first real server that it may reach, else of the first. `plain`
    decides on a flow that IPVS has no part in."""
    before = plain(view, src, dst) if src.is_far else None
    if before is not None and not before.allowed:
        return before  # what comes from another node is judged before IPVS
    # A container elsewhere leaves its own node for an address that is not of the overlay, and comes as that node.
    stranger = src.kind is EndpointKind.OUTSIDE or (
        src.kind is EndpointKind.REMOTE and before is not None and before.spot is None
    )
    said = [_to_server(view, src, each, plain, stranger) for each in found]
    best = next((verdict for verdict in said if verdict.allowed), said[0])
    there = ", ".join(f"{each.address} port {each.port}" for each in found[:4])
    note = f"port {found[0].host_port}/{found[0].protocol} is an IPVS service: it leads to {there}"
    return replace(best, notes=(note, *best.notes))


def _to_server(view: FenceView, src: Endpoint, server: Balanced, plain: Decide, stranger: bool) -> Verdict:
    real = view.place_of(server.address)
    if real.kind is EndpointKind.HOST or src.kind in (EndpointKind.HOST, EndpointKind.LOOPBACK):
        return plain(view, src, real)
    if stranger:
        return Verdict(True, None, "what IPVS takes from outside is the host's own to send")
    return way_out.by_its_way(view, src, real, _by_its_source(view, src, real, server.translated))


def _by_its_source(view: FenceView, src: Endpoint, real: Endpoint, translated: bool) -> Verdict:
    """The chain `handed_on` on what is sent to a real server for a container."""
    chain = f"handed_on{real.version}"
    if real.kind is EndpointKind.OUTSIDE and src.is_far:
        spot = RuleRef("inet", "tunnel_out", "tunnel to the outside")
        return Verdict(False, spot, "who comes by a tunnel does not leave the overlay by this node")
    if real.kind is EndpointKind.OUTSIDE:
        reason = "what lies outside the overlay is open to every container"
        return Verdict(True, RuleRef("inet", chain, "handed on to the outside"), reason)
    if not translated:
        spot = RuleRef("inet", chain, "handed on to a container by an address of others")
        return Verdict(False, spot, "IPVS leaves the virtual address in the packet, and no container has that")
    return remote.from_edge(view, src, real) if src.kind is EndpointKind.EDGE else remote.by_address(src, real)
