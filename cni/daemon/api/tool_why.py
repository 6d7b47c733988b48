"""The tool's request `why`: whether a flow is allowed, and which rule decides."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address

from cni import answers, plugin_protocol
from cni.daemon.api import tool_mesh
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.fence.explain import endpoints, operands, why
from cni.daemon.fence.explain.translated import Flow, PortSpec
from cni.daemon.fence.explain.verdict import Translated, Verdict
from cni.daemon.fence.from_records import port_of
from cni.daemon.fence.model import TABLE
from cni.errors import FenceFailed, InvalidConfig
from cni.host import ipvs, nat_reader, services
from cni.host.nat_rules import Base
from cni.host.nft import Nft


def may_reach(context: ToolContext, env: Mapping[str, str]) -> answers.Reachability:
    """Whether SRC may open a flow to DST, and which rule decides. Raises InvalidConfig if SRC or DST is unknown or
    ambiguous."""
    rules, unread = _translating()
    view = view_of(context, rules)
    port = _service_of(env.get(plugin_protocol.PORT, ""))
    try:
        sources = operands.resolve(view, env.get(plugin_protocol.SRC, ""))
        destinations = operands.resolve(view, env.get(plugin_protocol.DST, ""))
        pairs = why.pairs(sources, destinations)
        view = replace(view, ways=_ways(context, view, pairs, port))
        paths = [(src, dst, why.decide(view, src, dst, port)) for src, dst in pairs]
    except endpoints.Ambiguous as error:
        raise InvalidConfig(str(error)) from error
    if not paths:
        raise InvalidConfig(f"{env['SRC']} and {env['DST']} have no address of one family")
    return answers.Reachability(
        src=env[plugin_protocol.SRC],
        dst=env[plugin_protocol.DST],
        port=answers.Port(number=port.number, protocol=port.protocol) if port else None,
        allowed=all(verdict.allowed for _, _, verdict in paths),
        paths=[_path(*path) for path in paths],
        warnings=[
            *(f"the rules of {table} could not be read, so what they translate is not followed" for table in unread),
            *_warnings(context, [verdict for _, _, verdict in paths]),
            *_silent_ends(context, paths),
        ],
    )


def _ways(
    context: ToolContext,
    view: endpoints.FenceView,
    pairs: Iterable[tuple[endpoints.Endpoint, endpoints.Endpoint]],
    port: PortSpec | None,
) -> dict[str, str]:
    """The device through which packets leave, by destination address: for endpoints that are not on this node, and for
    those to which the node translates."""
    addresses = {server.address for server in view.balanced}
    for src, dst in pairs:
        if dst.is_far or dst.kind is endpoints.EndpointKind.UNKNOWN:
            addresses.add(dst.address)
        addresses |= {target.address for target in Flow(view, src, dst, port).way().targets if target.address}
    return {address: context.kernel.way_out(ip_address(address)) for address in addresses}


def _service_of(text: str) -> PortSpec | None:
    """The port of a text PORT, or PORT/PROTOCOL; None for "". Raises InvalidConfig."""
    if not text:
        return None
    number, _, protocol = text.partition("/")
    protocol = protocol or "tcp"
    if not (number.isdecimal() and 1 <= int(number) <= 65535 and protocol in ("tcp", "udp", "sctp")):
        said = "give a number from 1 to 65535, and /udp or /sctp after it if it is not TCP"
        raise InvalidConfig(f"{text!r} is no port: {said}")
    return PortSpec(int(number), protocol)


def _path(src: endpoints.Endpoint, dst: endpoints.Endpoint, verdict: Verdict) -> answers.Path:
    return answers.Path(
        family=src.version or dst.version,
        source=_endpoint(src),
        to=_endpoint(dst),
        allowed=verdict.allowed,
        certain=verdict.certain,
        rule=_rule(verdict),
        reason=verdict.reason,
        notes=list(verdict.notes),
        endpoints=[_translated_end(end) for end in verdict.translated],
    )


def _translated_end(end: Translated) -> answers.TranslatedEnd:
    return answers.TranslatedEnd(
        address=end.address,
        port=end.port or None,
        label=end.label,
        allowed=end.verdict.allowed,
        rule=_rule(end.verdict),
        reason=end.verdict.reason,
    )


def _rule(verdict: Verdict) -> answers.Rule | None:
    rule = verdict.spot
    return answers.Rule(name=rule.name, family=rule.family, chain=rule.chain) if rule else None


def _endpoint(endpoint: endpoints.Endpoint) -> answers.Endpoint:
    in_network = endpoint.kind in (endpoints.EndpointKind.CONTAINER, endpoints.EndpointKind.REMOTE)
    return answers.Endpoint(
        kind=endpoint.kind.value,
        address=endpoint.address or None,
        label=endpoint.label,
        container_id=endpoint.guest.container if endpoint.guest else None,
        isolation_network=endpoint.network if in_network else None,
        on_flat_mesh=in_network and endpoint.network is None and endpoint.certain,
    )


def _warnings(context: ToolContext, verdicts: Sequence[Verdict]) -> list[str]:
    """The reasons why the packets' fate may differ from the verdicts: a fence that is not in force, other firewalls."""
    warnings = []
    if context.fence.trouble():
        warnings.append(f"the fence is not in force, so this is what it would say: {context.fence.trouble()}")
    if any(verdict.allowed for verdict in verdicts):
        warnings += [f"{obstacle}; it may drop this too" for obstacle in context.other_firewalls.obstacles().values()]
    return warnings


def _silent_ends(
    context: ToolContext, paths: Iterable[tuple[endpoints.Endpoint, endpoints.Endpoint, Verdict]]
) -> list[str]:
    """The ends of the paths that are behind a peer that does not answer."""
    addresses = dict.fromkeys(end.address for src, dst, _ in paths for end in (src, dst) if end.address)
    silent = [(address, tool_mesh.silent_peer_of(context, address)) for address in addresses]
    return [f"{address} is behind the peer {peer}, which does not answer" for address, peer in silent if peer]


def view_of(context: ToolContext, translating: tuple[Base, ...] = ()) -> endpoints.FenceView:
    """The node's present state as values, for the resolver of endpoints and `why`. `translating`: the rules of other
    programs."""
    names = {link.index: link.name for link in context.kernel.all_links()}
    host = context.kernel.all_addresses()
    return endpoints.FenceView(
        desired=context.fence.desired,
        guests=tuple(
            endpoints.GuestEndpoint(
                attachment.container,
                attachment.pod,
                port_of(attachment),
                tuple(assigned.address for assigned in attachment.addresses),
            )
            for attachment in context.state.snapshot()
        ),
        host=tuple((names.get(index, ""), str(address)) for index, addresses in host.items() for address in addresses),
        leases={
            lease.address: f"leased{' to ' + lease.owner if lease.owner else ''}, and no container's"
            for lease in context.state.leases.values()
        },
        translating=translating,
        tracks_bridged=services.tracks_bridged(),
        balanced=tuple(
            endpoints.Balanced(s.protocol, s.virtual_port, s.address, s.port, s.virtual, s.translated)
            for s in ipvs.real_servers()
        ),
        behind=tool_mesh.behind(context),
        subnets=tuple(
            subnet for service in context.state.services.values() if service.is_routed for subnet in service.subnets
        ),
        node_name=socket.gethostname(),
        judge=context.fence.judge,
    )


def _translating() -> tuple[tuple[Base, ...], tuple[str, ...]]:
    """The rules of other programs that translate, and the tables that could not be read."""
    try:
        with closing(Nft()) as nft:  # of its own: that of the fence's tables is locked during an attach
            return nat_reader.read(nft, TABLE)
    except FenceFailed:
        return (), ("nftables",)
