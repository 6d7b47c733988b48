"""The tool's request for packets that the fence drops: each with the rule, and with the names of its ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address

from cni import answers, plugin_protocol
from cni.daemon.api import tool_why
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.fence import drop_log, packet_text
from cni.daemon.fence.explain import endpoints
from cni.daemon.fence.model import chain_of
from cni.errors import InvalidConfig
from cni.host import nflog

WAIT = 1.0  # seconds that a request waits for a packet
END = "end"


def drops(context: ToolContext, env: Mapping[str, str]) -> answers.DropSample:
    """The packets dropped since CURSOR, as READER asks for the first time or again; with the cursor `end` it asks no
    more. Raises InvalidConfig, FenceFailed, TryAgainLater."""
    reader, cursor = env.get(plugin_protocol.READER, ""), env.get(plugin_protocol.CURSOR, "")
    if cursor == END:
        context.drops.end(reader)
        return answers.DropSample(cursor=0, packets=[], lost=0)
    if not reader or not (cursor == "" or cursor.isdecimal()):
        raise InvalidConfig(f"drops: reader {reader!r}, cursor {cursor!r}: a name and a number are needed")
    after, packets, lost = context.drops.read(reader, int(cursor or -1), WAIT)
    if not packets:
        return answers.DropSample(cursor=after, packets=[], lost=lost)
    networks = {chain_of(name): name for name in (None, *context.fence.desired.networks())}
    label = _labels(context)
    read = [_packet(packet, networks, label) for packet in packets]
    return answers.DropSample(cursor=after, packets=read, lost=lost)


def _labels(context: ToolContext) -> Callable[[str], str]:
    """What a text calls an address: as `why` does."""
    view = tool_why.view_of(context)
    known: dict[str, str] = {}

    def label(text: str) -> str:
        if text not in known:
            try:
                known[text] = view.place_of(str(ip_address(text))).label
            except (ValueError, endpoints.Ambiguous):  # a MAC, or a group's address
                known[text] = ""
        return known[text]

    return label


def _packet(
    packet: nflog.Logged, networks: Mapping[str, str | None], label: Callable[[str], str]
) -> answers.DroppedPacket:
    place = drop_log.place_of(packet.prefix)
    assert place is not None, "the watch keeps no other packets"
    ends = packet_text.read(packet.ethertype, packet.link, packet.payload)
    into, out = (nflog.name_of(index) for index in packet.devices)
    return answers.DroppedPacket(
        time_unix=round(packet.time, 3),
        rule=place.rule,
        family=place.family,
        chain=place.chain,
        isolation_network=networks.get(place.chain),
        of_a_network=place.chain in networks,
        source=ends.source,
        source_label=label(ends.source),
        source_port=ends.source_port or None,
        destination=ends.destination,
        destination_label=label(ends.destination),
        destination_port=ends.destination_port or None,
        protocol=ends.protocol,
        in_interface=into or None,
        out_interface=out or None,
    )
