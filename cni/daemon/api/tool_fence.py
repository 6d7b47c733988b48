"""The tool's requests about the fence: whether it is in force, members, drop counters."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from ipaddress import ip_address

from cni import answers
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.fence import compare
from cni.daemon.fence.model import TABLE, chain_of
from cni.daemon.fence.ruleset import FAMILIES
from cni.daemon.model.records import Attachment
from cni.errors import FenceFailed
from cni.host import nft_counters
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


def _drops() -> Drops:
    """The drop counters by family, chain and rule; empty if there are no tables."""
    try:
        with closing(Nft()) as nft:  # of its own: that of the fence's tables is locked during an attach
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
