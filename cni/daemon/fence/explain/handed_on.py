"""`why`, for IPVS: a port of the host's that leads to real servers, of which the kernel chooses one per flow. Pure.

IPVS takes the packet before the fence filters it as one for the host; the fence filters what IPVS sends by its source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cni.daemon.fence.explain import remote, way_out
from cni.daemon.fence.explain.endpoints import Balanced, Endpoint, EndpointKind, FenceView
from cni.daemon.fence.explain.verdict import RuleRef, Verdict

Decide = Callable[[FenceView, Endpoint, Endpoint], Verdict]


def servers(view: FenceView, dst: Endpoint, number: int, protocol: str) -> list[Balanced]:
    """The real servers of the service at a port of the host's; empty if there is no service."""
    return [
        server
        for server in view.balanced
        if dst.kind is EndpointKind.HOST
        and (server.host_address, server.host_port, server.protocol) == (dst.address, number, protocol)
    ]


def decide(view: FenceView, src: Endpoint, dst: Endpoint, servers: list[Balanced], plain: Decide) -> Verdict:
    """The verdict on a flow to a service: that of the first real server that the source may reach, else of the first.
    `plain` decides on a flow without IPVS.
    """
    before = plain(view, src, dst) if src.is_far else None
    if before is not None and not before.allowed:
        return before  # packets from another node are filtered before IPVS
    # A remote container's packet to an address outside the overlay arrives with its own node's address.
    stranger = src.kind is EndpointKind.OUTSIDE or (
        src.kind is EndpointKind.REMOTE and before is not None and before.spot is None
    )
    verdicts = [_to_server(view, src, server, plain, stranger) for server in servers]
    best = next((verdict for verdict in verdicts if verdict.allowed), verdicts[0])
    targets = ", ".join(f"{server.address} port {server.port}" for server in servers[:4])
    note = f"port {servers[0].host_port}/{servers[0].protocol} is an IPVS service: it leads to {targets}"
    return replace(best, notes=(note, *best.notes))


def _to_server(view: FenceView, src: Endpoint, server: Balanced, plain: Decide, stranger: bool) -> Verdict:
    real = view.place_of(server.address)
    if real.kind is EndpointKind.HOST or src.kind in (EndpointKind.HOST, EndpointKind.LOOPBACK):
        return plain(view, src, real)
    if stranger:
        return Verdict(True, None, "what IPVS takes from outside the host sends on without a rule of the fence")
    return way_out.by_its_way(view, src, real, _by_its_source(view, src, real, server.translated))


def _by_its_source(view: FenceView, src: Endpoint, real: Endpoint, translated: bool) -> Verdict:
    """The verdict of the chain `handed_on` on a container's packet that IPVS sends to a real server."""
    chain = f"handed_on{real.version}"
    if real.kind is EndpointKind.OUTSIDE and src.is_far:
        spot = RuleRef("inet", "tunnel_out", "tunnel to the outside")
        return Verdict(False, spot, "a sender behind a tunnel does not leave the overlay by this node")
    if real.kind is EndpointKind.OUTSIDE:
        reason = "every container may reach addresses outside the overlay"
        return Verdict(True, RuleRef("inet", chain, "handed on to the outside"), reason)
    if not translated:
        spot = RuleRef("inet", chain, "handed on to a container by an address of others")
        return Verdict(False, spot, "IPVS leaves the virtual address in the packet, and no container has that address")
    return remote.from_edge(view, src, real) if src.kind is EndpointKind.EDGE else remote.by_address(src, real)
