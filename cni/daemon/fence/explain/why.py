"""Whether one endpoint may open a flow to another, and which rule of the fence decides. Pure: values in, a verdict out.

It walks the chains of bridge.py and inet.py for one pair, as the kernel would for the first packet, and names the rule
where the walk ends. tests/kernel/test_tool.py compares it with real packets and with the rules' counters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface

from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.explain import connected, handed_on, remote, translated, way_out
from cni.daemon.fence.explain.endpoints import Endpoint, EndpointKind, FenceView, GuestEndpoint
from cni.daemon.fence.explain.opened import opened
from cni.daemon.fence.explain.policed import policed
from cni.daemon.fence.explain.translated import Flow, PortSpec
from cni.daemon.fence.explain.verdict import HOST_FIREWALL, RuleRef, Verdict, describe, named
from cni.daemon.fence.model import chain_of

# The rules "tunnel to the node" (inet.py) have the same ports: tests/unit/test_why.py compares them.
TUNNEL_PORTS = frozenset({1701, 2152, 2268, 4754, 4789, 4790, 5555, 6080, 6081, 6118, 6635, 8472})


def decide(view: FenceView, src: Endpoint, dst: Endpoint, service: PortSpec | None = None) -> Verdict:
    """The verdict on the first packet of a flow from `src` to `dst`, which have the same IP version."""
    flow = Flow(view, src, dst, service)
    if (way := flow.way()).targets:
        return translated.decide(flow, way, _untranslated, _from_outside_by_port, policed)
    refused = flow.refusal()
    if refused is not None:
        return refused
    verdict = opened(view, src, dst, flow.asked(), _untranslated(view, src, dst, service))
    return policed(view, src, dst, service, verdict)


def _untranslated(view: FenceView, src: Endpoint, dst: Endpoint, service: PortSpec | None = None) -> Verdict:
    """The verdict on a packet with its final destination, unless IPVS takes it."""
    if service is not None and (servers := handed_on.servers(view, dst, service.number, service.protocol)):
        return handed_on.decide(view, src, dst, servers, _untranslated)
    verdict = way_out.by_its_way(view, src, dst, _decide(view, src, dst, service))
    if src.certain and dst.certain:
        return verdict
    # What this node's fence drops is dropped, whatever the other node's fence says.
    return replace(verdict, certain=not verdict.allowed, notes=(*verdict.notes, remote.UNKNOWN_THERE))


def _decide(view: FenceView, src: Endpoint, dst: Endpoint, service: PortSpec | None) -> Verdict:
    match src.kind:
        case EndpointKind.CONTAINER:
            return _from_container(view, src, dst, service)
        case EndpointKind.HOST | EndpointKind.LOOPBACK:
            return _from_host(view, dst)
        case EndpointKind.REMOTE | EndpointKind.CALLER | EndpointKind.EDGE:
            return remote.from_far(view, src, dst, _is_tunnel(service))
        case EndpointKind.OUTSIDE:
            return _from_outside(dst, translated=False)
        case EndpointKind.UNKNOWN:
            return _from_unknown(view, src, dst)


def _from_unknown(view: FenceView, src: Endpoint, dst: Endpoint) -> Verdict:
    if connected.is_connected(view, src):
        return connected.from_connected(view, src, dst, translated=False)
    spot = RuleRef("inet", "prerouting", f"overlay IPv{src.version} source from elsewhere")
    return Verdict(False, spot, f"{src.address} is unknown to this node, so the fence drops packets from it")


# --- from a container -----------------------------------------------------------------------------------------------


def _from_container(view: FenceView, src: Endpoint, dst: Endpoint, service: PortSpec | None) -> Verdict:
    guest = src.known()
    match dst.kind:
        case EndpointKind.CONTAINER if dst.known().container == guest.container:
            return Verdict(True, None, "source and destination are one container: the packet does not leave it")
        case EndpointKind.CONTAINER | EndpointKind.UNKNOWN:
            return _to_overlay(src, dst)
        case EndpointKind.REMOTE | EndpointKind.CALLER | EndpointKind.EDGE:
            verdict = remote.by_address(src, dst)
            notes = (
                (remote.ITS_OWN_FENCE,)
                if verdict.allowed and dst.certain and not dst.listed and dst.kind is EndpointKind.REMOTE
                else ()
            )
            return replace(verdict, notes=notes)
        case EndpointKind.LOOPBACK:
            spot = RuleRef("inet", "to_host", "loopback of the host") if dst.version == 4 else None
            return Verdict(False, spot, "a container has its own loopback, and never reaches the host's")
        case EndpointKind.HOST:
            return _to_host(view.desired, src, dst, service)
        case EndpointKind.OUTSIDE:
            spot = RuleRef("inet", "forward", "to the outside")
            notes = ("the packet leaves with the node's address (masquerade)",) if view.desired.node.masquerade else ()
            return Verdict(True, spot, "every container may reach addresses outside the overlay", notes)


def _to_overlay(src: Endpoint, dst: Endpoint) -> Verdict:
    """By membership: on one bridge and subnet by port, else by address."""
    guest, chain = src.known(), chain_of(src.network)
    bridged = _on_link(guest, src.version, dst)
    if ip_address(dst.address).is_link_local and not bridged:
        return Verdict(False, None, "a link-local address is not routed, and the two are on different bridges")
    family = "bridge" if bridged else "inet"
    if dst.kind is not EndpointKind.UNKNOWN and dst.network == src.network:
        name = "same network" if bridged else named("same network", dst.version)
        return Verdict(True, RuleRef(family, chain, name, src.network), f"both are in {describe(src.network)}")
    spot = RuleRef(family, chain, "between networks", src.network)
    if dst.kind is EndpointKind.UNKNOWN:
        return Verdict(False, spot, f"{dst.address} is unknown to this node, and unknown addresses are closed")
    return Verdict(False, spot, f"the source is in {describe(src.network)}, the destination in {describe(dst.network)}")


def _on_link(guest: GuestEndpoint, version: int, dst: Endpoint) -> bool:
    """Whether the container sends to `dst` directly on its bridge, and not by its gateway."""
    address = ip_address(dst.address)
    if guest.port.bridge is None:
        return False
    if dst.kind is EndpointKind.CONTAINER and dst.known().port.bridge != guest.port.bridge:
        return False
    if address.is_link_local:
        return True
    return any(address in ip_interface(own).network for own in guest.addresses if ip_interface(own).version == version)


def _to_host(desired: DesiredState, src: Endpoint, dst: Endpoint, service: PortSpec | None) -> Verdict:
    def spot(name: str) -> RuleRef:
        return RuleRef("inet", "to_host", name + (", IPv6" if dst.version == 6 and name != "host address" else ""))

    if src.network is None:
        return Verdict(True, spot("flat mesh to the host"), "the container is on the flat mesh", (HOST_FIREWALL,))
    if dst.address not in desired.node.addresses:
        which = f"{dst.address} is an address of the host ({dst.label})"
        return Verdict(False, spot("host address"), f"{which}; a member of a network reaches only the node address")
    if _is_tunnel(service):
        return Verdict(
            False, RuleRef("inet", "to_host", "tunnel to the node"), "no tunnel into the host from a network"
        )
    return Verdict(True, spot("node address"), "the node address is open to every member", (HOST_FIREWALL,))


def _is_tunnel(service: PortSpec | None) -> bool:
    return service is not None and service.protocol == "udp" and service.number in TUNNEL_PORTS


# --- from elsewhere -------------------------------------------------------------------------------------------------


def _from_host(view: FenceView, dst: Endpoint) -> Verdict:
    match dst.kind:
        case EndpointKind.CONTAINER:
            spot = RuleRef("bridge", "postrouting", "to a port") if dst.known().port.bridge else None
            return Verdict(True, spot, "the node itself reaches every container")
        case EndpointKind.UNKNOWN if connected.is_connected(view, dst):
            return Verdict(True, None, f"{dst.address} is on a network of the host's own")
        case EndpointKind.UNKNOWN:
            return Verdict(False, remote.unknown_port(view, dst), f"{dst.address} is unknown to this node")
        case EndpointKind.HOST | EndpointKind.LOOPBACK:
            return Verdict(True, None, "source and destination are the node itself")
        case _:
            return Verdict(True, None, "the fence does not filter what the node itself sends there")


def _from_outside_by_port(view: FenceView, src: Endpoint, dst: Endpoint, _service: PortSpec | None) -> Verdict:
    """From outside, to an endpoint to which the node has translated a published port."""
    return way_out.by_its_way(view, src, dst, _from_outside(dst, translated=True))


def _from_outside(dst: Endpoint, translated: bool) -> Verdict:
    match dst.kind:
        case EndpointKind.LOOPBACK:
            return Verdict(False, None, "the kernel takes no packet for its loopback from a link")
        case EndpointKind.HOST:
            return Verdict(True, None, "the node's own addresses are not fenced to the outside", (HOST_FIREWALL,))
        case EndpointKind.OUTSIDE:
            return Verdict(True, None, "neither is in the overlay: the fence does not filter it")
        case _:
            return _into_overlay(dst, translated)


def _into_overlay(dst: Endpoint, translated: bool) -> Verdict:
    chain = f"to_overlay{dst.version}"
    if (dst.kind is EndpointKind.CONTAINER or dst.listed) and dst.network is None:
        notes = () if translated else ("a sender outside needs a route to the overlay by this node",)
        return Verdict(True, RuleRef("inet", chain, "to the flat mesh"), "the flat mesh is open to the outside", notes)
    if translated and dst.kind is EndpointKind.REMOTE and dst.network is not None:
        reason = f"this node sends it on; the fence of the other node closes a member of {describe(dst.network)} to it"
        return Verdict(False, None, reason)
    if translated and dst.kind in (EndpointKind.REMOTE, EndpointKind.CALLER):
        spot = RuleRef("inet", chain, "published port elsewhere")
        notes = (remote.ITS_OWN_FENCE,) if dst.kind is EndpointKind.REMOTE else ()
        return Verdict(True, spot, "a published port is open, on other nodes too", notes)
    if dst.kind is not EndpointKind.CONTAINER:
        reason = f"from outside, {dst.address} is not reached by this node"
        return Verdict(False, RuleRef("inet", chain, "to an unknown overlay address"), reason)
    if translated:
        return Verdict(True, RuleRef("inet", chain, "published port"), "a published port is open to the outside")
    reason = f"no flow may be opened from outside to a member of {describe(dst.network)}"
    note = "a port that portmap publishes is open, at the host's address"
    return Verdict(False, RuleRef("inet", chain, "stranger to a member"), reason, (note,))


def pairs(sources: Sequence[Endpoint], destinations: Sequence[Endpoint]) -> list[tuple[Endpoint, Endpoint]]:
    """The pairs of one IP version, IPv4 first; `outside` without an address is paired with either version."""
    matching = [
        (src.of_version(version), dst.of_version(version))
        for version in (4, 6)
        for src in sources
        for dst in destinations
        if src.speaks(version) and dst.speaks(version)
    ]
    return matching[:1] if all(not src.address and not dst.address for src, dst in matching) else matching
