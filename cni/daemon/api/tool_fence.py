"""The tool's requests about the fence: members, drop counters, reachability, garbage collection."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address

from cni import answers, plugin_protocol
from cni.daemon.api import tool_mesh
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.fence import compare
from cni.daemon.fence.controller import bridges, port_of
from cni.daemon.fence.explain import endpoints, operands, why
from cni.daemon.fence.explain.translated import Flow, PortSpec
from cni.daemon.fence.explain.verdict import Translated, Verdict
from cni.daemon.fence.model import TABLE, chain_of
from cni.daemon.fence.ruleset import FAMILIES
from cni.daemon.model.records import Attachment
from cni.daemon.reconcile.node import is_our_bridge, is_our_port
from cni.errors import FenceFailed, InvalidConfig
from cni.host import ipvs, nat_reader, nft_counters, services
from cni.host.links import Link
from cni.host.nat_rules import Base
from cni.host.nft import Nft

Drops = Mapping[tuple[str, str, str], tuple[int, int]]


def in_force(context: ToolContext) -> answers.Fence:
    """Whether the fence is in force."""
    trouble = context.fence.trouble()
    return answers.Fence(in_force=not trouble, trouble=trouble)


def networks(context: ToolContext, _: Mapping[str, str]) -> answers.Networks:
    """Every network with its members, the flat mesh first, and the drops of each rule since it was loaded."""
    desired, drops = context.fence.desired, _drops()
    members: dict[str | None, list[Attachment]] = {name: [] for name in (None, *desired.networks())}
    for attachment in context.state.snapshot():
        members.setdefault(attachment.isolation, []).append(attachment)
    remotes = {remote.network: remote.addresses for remote in desired.remotes}
    chains = {chain_of(name): name for name in members}
    return answers.Networks(
        fence=in_force(context),
        networks=[
            answers.Network(
                isolation_network=name,
                members=[_member(context, attachment) for attachment in attachments],
                remote_members=sorted(remotes.get(name, ()), key=by_address),
                dropped=_sum(drops, chain_of(name)),
            )
            for name, attachments in members.items()
        ],
        drops=[
            answers.Drop(
                rule=rule,
                family=family,
                chain=chain,
                isolation_network=chains.get(chain),
                of_a_network=chain in chains,
                packets=packets,
                bytes=octets,
            )
            for (family, chain, rule), (packets, octets) in drops.items()
        ],
    )


def _member(context: ToolContext, attachment: Attachment) -> answers.Member:
    return answers.Member(
        container_id=attachment.container,
        interface=attachment.ifname,
        addresses=[address.address for address in attachment.addresses],
        service=attachment.service,
        bridge="" if attachment.is_routed else attachment.bridge,
        host_interface=attachment.host_veth,
        pod=attachment.pod,
        state=attachment.state,
        names=context.dns.names_of(attachment),
    )


def by_address(text: str) -> tuple[int, int]:
    """A sort key for addresses: IPv4 before IPv6, then by number (Python does not compare addresses of two
    versions)."""
    address = ip_address(text)
    return address.version, int(address)


def _sum(drops: Drops, chain: str) -> answers.Counts:
    counts = [count for (_, drop_chain, _), count in drops.items() if drop_chain == chain]
    return answers.Counts(packets=sum(packets for packets, _ in counts), bytes=sum(octets for _, octets in counts))


@contextmanager
def _nft() -> Iterator[Nft]:
    """An nftables context of its own: the fence controller's is locked during an attach."""
    nft = Nft()
    try:
        yield nft
    finally:
        nft.close()


def _drops() -> Drops:
    """The drop counters by family, chain and rule; empty if there are no tables."""
    try:
        with _nft() as nft:
            return compare.drops({family: nft.list_table(family, TABLE) for family in FAMILIES})
    except FenceFailed:
        return {}


def drops_by_network(context: ToolContext) -> dict[tuple[str, str], tuple[int, int]]:
    """The packets and bytes that each rule has dropped since it was loaded, by (network, rule). For a rule of no
    network, the network is "-"; for the flat mesh "". Elements of sets are not read, so that the cost does not grow
    with the attachments. Raises OSError."""
    drops = nft_counters.read(TABLE)
    networks = {chain_of(name): name or "" for name in (None, *context.fence.desired.networks())}
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for (_, chain, rule), (packets, octets) in drops.items():
        key = networks.get(chain, "-"), rule
        before = counts.get(key, (0, 0))
        counts[key] = before[0] + packets, before[1] + octets
    return counts


# --- why ------------------------------------------------------------------------------------------------------------


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
        warnings += [f"{obstacle}; it may drop this too" for obstacle in context.fence.foreign().values()]
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
    )


def _translating() -> tuple[tuple[Base, ...], tuple[str, ...]]:
    """The rules of other programs that translate, and the tables that could not be read."""
    try:
        with _nft() as nft:
            return nat_reader.read(nft, TABLE)
    except FenceFailed:
        return (), ("nftables",)


# --- gc -------------------------------------------------------------------------------------------------------------


def collect_garbage(context: ToolContext, env: Mapping[str, str]) -> answers.Garbage:
    """Release the attachments that the daemon's own garbage collection would release; with DRY_RUN only list them.

    The daemon releases them by itself after two comparisons in a row (`reconcile/node.py`). Links that this program
    made and that no record has are reported, and removed when a daemon starts: while calls are running, such a link may
    belong to an attach that is under way.
    """
    dry = bool(env.get(plugin_protocol.DRY_RUN))
    links = context.kernel.all_links()  # before the records: a link that exists now had its record before
    names, attachments = {link.name for link in links}, context.state.snapshot()
    dead = [attachment for attachment in attachments if attachment.host_veth not in names]
    released = [] if dry else [_dead(attachment) for attachment in dead if context.attacher.release_dead(attachment)]
    return answers.Garbage(
        dry_run=dry,
        released=released,
        candidates=[_dead(attachment) for attachment in dead] if dry else [],
        strays=_strays(context, links, attachments),
    )


def _dead(attachment: Attachment) -> answers.DeadAttachment:
    return answers.DeadAttachment(
        network=attachment.network,
        container_id=attachment.container,
        interface=attachment.ifname,
        addresses=[address.address for address in attachment.addresses],
        pod=attachment.pod,
        reason="has no interface any more" if attachment.state == "live" else "was never finished",
    )


def _strays(context: ToolContext, links: Sequence[Link], attachments: Sequence[Attachment]) -> list[str]:
    ports = {attachment.host_veth for attachment in attachments}
    kept = set(bridges(context.state.services.values()))
    return sorted(
        link.name
        for link in links
        if (is_our_port(link) and link.name not in ports) or (is_our_bridge(link) and link.name not in kept)
    )
