"""The fence's input values from the daemon's records: attachments, services, and what the mesh knows of other nodes.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import collapse_addresses, ip_network

from cni import addresses
from cni.daemon.fence import elements, ruleset
from cni.daemon.fence.model import FenceBridge, FenceEdge, FencePort, RemoteMember
from cni.daemon.model import macs
from cni.daemon.model.records import Attachment, Service
from cni.host.nft_elements import Change, Element

Network = addresses.Network


@dataclass(frozen=True)
class RemoteView:
    """What lies behind the tunnels: the devices, the overlay's CIDRs there, the members of isolation networks, edge
    peers; the addresses of services that `isolation` may open, and of the nodes themselves.
    """

    tunnels: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    remotes: tuple[RemoteMember, ...] = ()
    edges: tuple[FenceEdge, ...] = ()
    services: tuple[tuple[str, frozenset[str]], ...] = ()
    nodes: frozenset[str] = frozenset()

    def networks(self) -> set[str | None]:
        """The networks that have members behind the tunnels."""
        return {remote.network for remote in self.remotes}


def change_of_remotes(before: RemoteView, after: RemoteView, has_members: Callable[[str], bool]) -> list[str | Change]:
    """The transactions that change the remote members from `before` to `after`, to be run in order.

    Each contains only what changed, element by element; all elements are in one transaction, so that an address that
    changes networks is never in none. This runs at every attach on any node. `has_members`: whether the network has
    members on this node, so that its chains exist and stay.
    """
    old = {remote.network: remote.addresses for remote in before.remotes}
    new = {remote.network: remote.addresses for remote in after.remotes}
    created: list[str] = []
    forgotten: list[str] = []
    removed: list[Element] = []
    added: list[Element] = []
    for network in sorted(old.keys() | new.keys(), key=lambda name: name or ""):
        had, has = old.get(network, frozenset()), new.get(network, frozenset())
        if network is not None and not has_members(network):
            created += [ruleset.create_network(network)] if network not in old else []
            forgotten += [ruleset.forget_network(network)] if network not in new else []
        removed += elements.of_remote(network, had - has)
        added += elements.of_remote(network, has - had)
    places = {element.place for element in added}
    taken = [element for element in removed if element.place not in places] + [e for e in added if e.verdict]
    parts: list[str | Change] = [*created, elements.change(taken, added), *forgotten]
    return [part for part in parts if part]


def on_the_hosts_networks(networks: Iterable[Network], clusters: Iterable[str]) -> tuple[Network, ...]:
    """The host's networks that overlap the cluster's ranges, cut to these, without overlaps, IPv4 first, sorted."""
    ranges = [ip_network(cluster) for cluster in clusters]
    inside: dict[int, list[Network]] = {4: [], 6: []}
    for network in networks:
        for cluster in ranges:
            if network.version == cluster.version and network.overlaps(cluster):
                inside[network.version].append(network if network.prefixlen >= cluster.prefixlen else cluster)
    return tuple(net for version in (4, 6) for net in collapse_addresses(inside[version]))  # type: ignore[type-var]


def bridge_of(name: str) -> FenceBridge:
    """The fence's value for a bridge of the overlay, by its name."""
    return FenceBridge(name, macs.of_bridge(name))


def bridges(services: Iterable[Service]) -> list[str]:
    """The names of the bridges of these services, each once; a routed service has none."""
    return list(dict.fromkeys(service.bridge for service in services if not service.is_routed))


def port_of(attachment: Attachment) -> FencePort:
    """The fence's value for an attachment."""
    return FencePort(
        attachment.host_veth,
        None if attachment.is_routed else attachment.bridge,
        attachment.mac,
        tuple(address.ip for address in attachment.addresses),
        attachment.isolation,
        attachment.service,
        attachment.opens,
    )
