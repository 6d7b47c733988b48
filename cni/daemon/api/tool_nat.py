"""The tool's requests about NAT traversal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from cni import answers, plugin_protocol
from cni.daemon.api import peer_names
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.model.nat_behaviour import Place
from cni.daemon.model.nat_words import PathView, RelayView
from cni.daemon.nat.netcheck import FamilySeen, ServerSeen
from cni.errors import InvalidConfig
from cni.host.wg_types import join_endpoint


def netcheck(context: ToolContext, _: Mapping[str, str]) -> answers.Netcheck:
    """Ask the configured STUN servers, and name what the NAT does. Raises OSError without CAP_NET_RAW."""
    report = context.netcheck.run()
    return answers.Netcheck(
        udp=report.udp,
        port=report.port,
        families=[_family(family) for family in report.families],
        servers=[_server(server) for server in report.servers],
        relays=[_relay(relay) for relay in context.traversal.relays()],
        port_mapping=context.traversal.port_mapping(),
        notes=[*report.notes, *(f"not offered as a relay: {text}" for text in context.traversal.relay_obstacles())],
    )


def with_path(peer: answers.Peer, view: PathView | None) -> answers.Peer:
    """The answer with the path that NAT traversal has found, and why it is that one."""
    if view is None:
        return peer
    trip = None if view.seconds is None else round(view.seconds * 1000, 2)
    return msgspec.structs.replace(peer, path=view.path, path_why=view.why(), round_trip_ms=trip)


def _family(seen: FamilySeen) -> answers.NatFamily:
    return answers.NatFamily(
        family=seen.version,
        addresses=[str(address) for address in seen.own],
        public=[join_endpoint(*place) for place in seen.public],
        mapping=seen.mapped,
        filtering=seen.filtered,
        kind=seen.kind,
        port_kept=seen.port_kept,
        hairpin=seen.hairpin,
    )


def _relay(seen: RelayView) -> answers.RelayInUse:
    trip = None if seen.seconds is None else round(seen.seconds * 1000, 2)
    return answers.RelayInUse(relay=seen.name, relayed=seen.relayed or None, round_trip_ms=trip, fault=seen.fault)


def _server(seen: ServerSeen) -> answers.StunServer:
    return answers.StunServer(
        server=seen.name,
        endpoint=_text(seen.at),
        round_trip_ms=None if seen.seconds is None else round(seen.seconds * 1000, 2),
        seen_from=_text(seen.mapped),
        fault=seen.fault,
    )


def _text(place: Place | None) -> str | None:
    return join_endpoint(*place) if place is not None else None


def ping(context: ToolContext, env: Mapping[str, str]) -> answers.Ping:
    """Probe the path to a peer once. Raises InvalidConfig for an unknown peer, and for one that is not probed."""
    target = peer_names.find(context.mesh, env.get(plugin_protocol.PEER, ""))
    view = context.traversal.ping(target.public_key)
    name = target.name or target.public_key
    if view is None:
        raise InvalidConfig(f"the peer {name} is not probed", "NAT traversal is off on this node, or has just begun")
    trip = None if view.seconds is None else round(view.seconds * 1000, 2)
    return answers.Ping(
        name=name, path=view.path, path_why=view.why(), endpoint=view.endpoint or None, round_trip_ms=trip
    )


QUESTIONS: dict[str, Callable[[ToolContext, Mapping[str, str]], answers.Answer | Sequence[answers.Answer]]] = {
    "netcheck": netcheck,
    "ping": ping,
}
