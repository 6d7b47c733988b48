"""The tool's questions about the fence: who is in which network, what was dropped, who may reach whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from cni.daemon.api import tool_mesh
from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.fence import compare
from cni.daemon.fence.controller import bridges, port_of
from cni.daemon.fence.explain import endpoints, why
from cni.daemon.fence.explain.verdict import Verdict
from cni.daemon.fence.model import TABLE, chain_of
from cni.daemon.fence.ruleset import FAMILIES
from cni.daemon.model.records import Attachment
from cni.daemon.reconcile.node import is_our_bridge, is_our_port
from cni.errors import FenceFailed, InvalidConfig
from cni.host import hostports as published
from cni.host import ipvs
from cni.host.links import Link
from cni.host.nft import Nft

Answer = dict[str, Any]
Drops = Mapping[tuple[str, str, str], tuple[int, int]]


def networks(service: OverlayService, _: Mapping[str, str]) -> Answer:
    """Every network with its members, the flat mesh first, and what each rule has dropped since it was loaded."""
    wanted, drops = service.barrier.wanted, _drops()
    members: dict[str | None, list[Attachment]] = {name: [] for name in (None, *wanted.networks())}
    for each in service.state.snapshot():
        members.setdefault(each.isolation, []).append(each)
    remotes = {remote.network: remote.addresses for remote in wanted.remotes}
    chains = {chain_of(name): name for name in members}
    return {
        "fence": {"in_force": not service.barrier.trouble(), "trouble": service.barrier.trouble()},
        "networks": [
            {
                "isolation_network": name,
                "members": [_member(each) for each in found],
                "remote_members": sorted(remotes.get(name, ()), key=by_address),
                "dropped": _sum(drops, chain_of(name)),
            }
            for name, found in members.items()
        ],
        "drops": [
            {
                "rule": rule,
                "family": family,
                "chain": chain,
                "isolation_network": chains.get(chain),
                "of_a_network": chain in chains,
                "packets": packets,
                "bytes": octets,
            }
            for (family, chain, rule), (packets, octets) in drops.items()
        ],
    }


def _member(attachment: Attachment) -> Answer:
    return {
        "container_id": attachment.container,
        "interface": attachment.ifname,
        "addresses": [held.address for held in attachment.addresses],
        "service": attachment.service,
        "bridge": attachment.bridge,
        "host_interface": attachment.host_veth,
        "pod": attachment.pod,
        "state": attachment.state,
    }


def by_address(text: str) -> tuple[int, int]:
    """Addresses in their order, IPv4 first (of two families neither is the smaller)."""
    address = ip_address(text)
    return address.version, int(address)


def _sum(drops: Drops, chain: str) -> Answer:
    counts = [count for (_, where, _), count in drops.items() if where == chain]
    return {"packets": sum(packets for packets, _ in counts), "bytes": sum(octets for _, octets in counts)}


@contextmanager
def _nft() -> Iterator[Nft]:
    """A context of our own: the barrier's is busy when an attach is."""
    nft = Nft()
    try:
        yield nft
    finally:
        nft.close()


def _drops() -> Drops:
    """The counters as they are; empty where there are no tables."""
    try:
        with _nft() as nft:
            return compare.drops({family: nft.list_table(family, TABLE) for family in FAMILIES})
    except FenceFailed:
        return {}


# --- why ------------------------------------------------------------------------------------------------------------


def may_reach(service: OverlayService, env: Mapping[str, str]) -> Answer:
    """Whether SRC may open a flow to DST, and which rule says so. Raises InvalidConfig for a word that is unclear."""
    view = view_of(service)
    wanted = _service_of(env.get("PORT", ""))
    try:
        sources, destinations = (endpoints.resolve(view, env.get(word, "")) for word in ("SRC", "DST"))
        asked = why.pairs(sources, destinations)
        view = replace(view, ways=_ways(service, [place for _, place in asked], (*view.published, *view.balanced)))
        found = [(a, b, why.decide(view, a, b, wanted)) for a, b in asked]
    except endpoints.Ambiguous as error:
        raise InvalidConfig(str(error)) from error
    if not found:
        raise InvalidConfig(f"{env['SRC']} and {env['DST']} have no address of one family")
    return {
        "src": env["SRC"],
        "dst": env["DST"],
        "port": {"number": wanted.number, "protocol": wanted.protocol} if wanted else None,
        "allowed": all(verdict.allowed for _, _, verdict in found),
        "paths": [_path(*each) for each in found],
        "warnings": _warnings(service, [verdict for _, _, verdict in found]),
    }


def _ways(
    service: OverlayService, asked: Iterable[endpoints.Endpoint], published: Iterable[endpoints.HostPort]
) -> dict[str, str]:
    """By which device packets leave for what is not on this node; also for what a published port leads to."""
    far = {place.address for place in asked if place.is_far or place.kind is endpoints.EndpointKind.UNKNOWN}
    return {each: service.kernel.way_out(ip_address(each)) for each in far | {p.address for p in published}}


def _service_of(text: str) -> why.PortSpec | None:
    """PORT, PORT/tcp or PORT/udp."""
    if not text:
        return None
    number, _, protocol = text.partition("/")
    protocol = protocol or "tcp"
    if not (number.isdecimal() and 1 <= int(number) <= 65535 and protocol in ("tcp", "udp")):
        raise InvalidConfig(f"{text!r} is no port: a number from 1 to 65535, /tcp or /udp after it")
    return why.PortSpec(int(number), protocol)


def _path(src: endpoints.Endpoint, dst: endpoints.Endpoint, verdict: Verdict) -> Answer:
    spot = verdict.spot
    return {
        "family": src.version or dst.version,
        "from": _place(src),
        "to": _place(dst),
        "allowed": verdict.allowed,
        "rule": spot and {"name": spot.name, "family": spot.family, "chain": spot.chain},
        "reason": verdict.reason,
        "notes": list(verdict.notes),
    }


def _place(place: endpoints.Endpoint) -> Answer:
    in_network = place.kind in (endpoints.EndpointKind.CONTAINER, endpoints.EndpointKind.REMOTE)
    return {
        "kind": place.kind.value,
        "address": place.address or None,
        "label": place.label,
        "container_id": place.guest.container if place.guest else None,
        "isolation_network": place.network if in_network else None,
        "on_flat_mesh": in_network and place.network is None,
    }


def _warnings(service: OverlayService, verdicts: Sequence[Verdict]) -> list[str]:
    """What may make it otherwise: a fence that is not there, and what others' firewalls take away."""
    found = []
    if service.barrier.trouble():
        found.append(f"the fence is not in force, so this is what it would say: {service.barrier.trouble()}")
    if any(verdict.allowed for verdict in verdicts):
        found += [
            f"the nftables chain {chain} of somebody else drops by policy, and may drop this too"
            for chain in service.barrier.foreign()
        ]
    return found


def view_of(service: OverlayService) -> endpoints.FenceView:
    """The node as it is now, for `places` and `why`."""
    names = {link.index: link.name for link in service.kernel.all_links()}
    host = service.kernel.all_addresses()
    return endpoints.FenceView(
        wanted=service.barrier.wanted,
        guests=tuple(
            endpoints.GuestEndpoint(
                each.container, each.pod, port_of(each), tuple(held.address for held in each.addresses)
            )
            for each in service.state.snapshot()
        ),
        host=tuple((names.get(index, ""), str(address)) for index, found in host.items() for address in found),
        leases={
            lease.address: f"leased{' to ' + lease.owner if lease.owner else ''}, and no container's"
            for lease in list(service.state.leases.values())
        },
        published=_published(),
        balanced=tuple(
            endpoints.Balanced(each.protocol, each.virtual_port, each.address, each.port, each.virtual, each.translated)
            for each in ipvs.real_servers()
        ),
        behind=tool_mesh.behind(service),
    )


def _published() -> tuple[endpoints.HostPort, ...]:
    found = [each for text in published.iptables_rules() for each in published.from_iptables(text)]
    try:
        with _nft() as nft:
            found += published.from_nft(nft.list_table("inet", published.TABLE))
    except FenceFailed:
        pass
    return tuple(
        endpoints.HostPort(each.protocol, each.host_port, each.address, each.port, each.host_address) for each in found
    )


# --- gc -------------------------------------------------------------------------------------------------------------


def collect_garbage(service: OverlayService, env: Mapping[str, str]) -> Answer:
    """What the daemon's own garbage collection is about to release; released at once unless DRY_RUN is given.

    The daemon does the same by itself, after two looks in a row (`reconcile/node.py`). Links of our making that no
    record knows are reported, and go when a daemon starts: while calls are running none is certainly a stray.
    """
    dry = bool(env.get("DRY_RUN"))
    links = service.kernel.all_links()  # before the records: what has a link now had its record before
    names, known = {link.name for link in links}, service.state.snapshot()
    dead = [each for each in known if each.host_veth not in names]
    return {
        "dry_run": dry,
        "released": [] if dry else [_dead(each) for each in dead if service.attacher.release_dead(each)],
        "candidates": [_dead(each) for each in dead] if dry else [],
        "strays": _strays(service, links, known),
    }


def _dead(attachment: Attachment) -> Answer:
    return {
        "network": attachment.network,
        "container_id": attachment.container,
        "interface": attachment.ifname,
        "addresses": [held.address for held in attachment.addresses],
        "pod": attachment.pod,
        "reason": "has no interface any more" if attachment.state == "live" else "was never finished",
    }


def _strays(service: OverlayService, links: Sequence[Link], known: Sequence[Attachment]) -> list[str]:
    ports, kept = {each.host_veth for each in known}, set(bridges(list(service.state.services.values())))
    return sorted(
        link.name
        for link in links
        if (is_our_port(link) and link.name not in ports) or (is_our_bridge(link) and link.name not in kept)
    )
