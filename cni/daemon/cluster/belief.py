"""Derives the peers of this node's devices, and the members of isolation networks, from the other nodes' documents.

A node document is used only as far as the node's claims cover it: WireGuard keys, and subnets that are slots of the
overlay's range. Every other statement in it is a problem that affects that node alone.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from cni import defaults
from cni.daemon.cluster.store_records import is_slot
from cni.daemon.cluster.view import ClusterView
from cni.daemon.model.cluster_records import Dedicated, NodeDocument, every_cidr
from cni.daemon.model.endpoints import split_endpoint
from cni.daemon.model.fleet import GLOBAL, Fleet
from cni.daemon.model.wireguard import Address, Target
from cni.daemon.model.wireguard import network_of as known_network
from cni.overlay.address import join_host_port

MOST_NETWORKS = 2048  # of all nodes together: a full load of the fence takes about 4 ms for each
LISTED = 5  # CIDRs or addresses of one node that a problem names


@dataclass(frozen=True)
class Belief:
    """The result of `believe`. `docs`: each node's document without the parts that are not used. By identity:
    `conflicts`, why a node is no peer; `unclaimed`, which parts of a document are not used; `ranges`, how a node's
    ranges of the overlay differ from this node's."""

    fleet: Fleet
    docs: Mapping[str, NodeDocument]
    conflicts: Mapping[str, str]
    unclaimed: Mapping[str, str]
    ranges: Mapping[str, str]


def believe(
    view: ClusterView, own: str, own_keys: Collection[str], dedicated: Iterable[str], ranges: tuple[str, ...]
) -> Belief:
    """The other nodes as peers of this one's devices.

    `own`, `own_keys`: this node's identity and public keys; `dedicated`: the services with a device of their own on
    this node; `ranges`: the overlay's ranges, of which every subnet must be a slot.
    """
    conflicts: dict[str, str] = {}
    unclaimed: dict[str, str] = {}
    docs: dict[str, NodeDocument] = {}
    seen = set(own_keys)
    for identity, doc in view.nodes.items():
        if identity == own:
            continue
        node = f"{doc.name} (node {doc.node_id}, {identity})"
        reason = _key_conflict(view, identity, doc.public_key, own_keys)
        if reason:
            conflicts[identity] = (
                f"{node} uses the WireGuard key of {reason}: it is not a peer; give it a key of its own"
            )
            continue
        docs[identity], refused = _covered_part(view, doc, seen, ranges)
        seen.update(device.public_key for device in docs[identity].dedicated.values())
        if refused:
            unclaimed[identity] = (
                f"{node} says of itself what it has not claimed, and is not believed: {'; '.join(refused)}"
            )
    for identity, networks in _surplus_networks(docs).items():
        doc = docs[identity]
        members = {name: addresses for name, addresses in doc.members.items() if name not in networks}
        docs[identity] = msgspec.structs.replace(doc, members=members)
        prefix = f"{unclaimed[identity]}; " if identity in unclaimed else f"{doc.name} ({identity}): "
        unclaimed[identity] = f"{prefix}{len(networks)} of its networks are left out, of all there are too many"
    differing = {identity: text for identity in docs if (text := _other_ranges(view.nodes[identity], ranges))}
    return Belief(_fleet(docs.values(), set(dedicated)), docs, conflicts, unclaimed, differing)


def _other_ranges(doc: NodeDocument, ranges: tuple[str, ...]) -> str:
    """What differs between the node's ranges and this one's, as a sentence; "" if they agree. A family that one of them
    does not have is no difference. An earlier version publishes no ranges; then its slices must be in this node's."""
    own = {known_network(cidr).version: known_network(cidr) for cidr in ranges}
    node = f"{doc.name} (node {doc.node_id}, {doc.identity})"
    for cidr in doc.ranges or doc.slices:
        theirs = known_network(cidr)
        ours = own.get(theirs.version)
        if ours is not None and (theirs != ours if doc.ranges else not theirs.subnet_of(ours)):  # type: ignore[arg-type]
            what = "the overlay's range" if doc.ranges else "a slice in another range,"
            return f"{node} has {what} {theirs}, and this node has {ours}: subnets outside of it are not reached"
    return ""


def _surplus_networks(docs: Mapping[str, NodeDocument]) -> dict[str, set[str]]:
    """The networks to leave out because all nodes together name more than `MOST_NETWORKS`, by identity. The nodes that
    name the fewest networks are served first."""
    if sum(len(doc.members) for doc in docs.values()) <= MOST_NETWORKS:
        return {}
    names: set[str] = set()
    left: dict[str, set[str]] = {}
    for identity, doc in sorted(docs.items(), key=lambda item: (len(item[1].members), item[0])):
        fresh = [name for name in doc.members if name not in names]
        room = max(0, MOST_NETWORKS - len(names))
        names.update(fresh[:room])
        if fresh[room:]:
            left[identity] = set(fresh[room:])
    return left


def _key_conflict(view: ClusterView, identity: str, public_key: str, own_keys: Collection[str]) -> str:
    """The holder of the key, as text; "" if the node `identity` holds it."""
    if public_key in own_keys:
        return "this node"
    holder = view.holder_of(public_key)
    return "" if holder == identity else (view.name_of(holder) if holder else "no node that has claimed it")


def _covered_part(
    view: ClusterView, doc: NodeDocument, taken: set[str], ranges: tuple[str, ...]
) -> tuple[NodeDocument, list[str]]:
    """The document without the parts that the node's claims do not cover, and those parts, as parts of a sentence.

    `taken`: keys that other devices use. An earlier version claims no keys for its services' devices, so an unclaimed
    key belongs to the first node that publishes it.
    """
    claimed = {cidr for cidr in every_cidr(doc) if view.owner_of(cidr) == doc.identity}
    mine = {cidr for cidr in claimed if is_slot(cidr, ranges)}
    refused = []
    # A claimed slot of a range that this node does not have is not usable on this node, but is no fault.
    if unclaimed := [cidr for cidr in every_cidr(doc) if cidr not in claimed or not is_slot(cidr)]:
        refused.append(f"the subnets {_listed(unclaimed)}")
    if (holder := view.ids.get(doc.node_id, doc.identity)) != doc.identity:
        refused.append(f"the node id {doc.node_id}, which {view.name_of(holder)} has")
    dedicated = {}
    for service, device in doc.dedicated.items():
        holder_of_key = view.holder_of(device.public_key)
        if holder_of_key != doc.identity and (holder_of_key is not None or device.public_key in taken):
            refused.append(f"the WireGuard key of its service {service}, which another device has")
            continue
        dedicated[service] = Dedicated(device.public_key, device.port, _only(device.subnets, mine))
    networks = [known_network(cidr) for cidr in mine] if doc.members or doc.services else []
    members, outside = {}, []
    for network, addresses in doc.members.items():
        inside = tuple(a for a in addresses if any(_address_of(a) in subnet for subnet in networks))
        outside += sorted(set(addresses) - set(inside))
        members[network] = inside
    services = {}
    for name, addresses in doc.services.items():
        services[name] = tuple(a for a in addresses if any(_address_of(a) in subnet for subnet in networks))
        outside += sorted(set(addresses) - set(services[name]))
    foreign = [a for a in outside if not any(_address_of(a) in known_network(cidr) for cidr in claimed)]
    if foreign:
        refused.append(f"the members {_listed(foreign)}")
    if mine.issuperset(every_cidr(doc)) and len(dedicated) == len(doc.dedicated) and not outside:
        return doc, refused
    cut = msgspec.structs.replace(
        doc,
        slices=_only(doc.slices, mine),
        subnets=_only(doc.subnets, mine),
        dedicated=dedicated,
        members=members,
        services=services,
    )
    return cut, refused


def _only(cidrs: Iterable[str], mine: Collection[str]) -> tuple[str, ...]:
    return tuple(cidr for cidr in cidrs if cidr in mine)


def _listed(names: Collection[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(list(names)[:LISTED]) + more


def _fleet(docs: Iterable[NodeDocument], shared: set[str]) -> Fleet:
    peers: dict[str, list[Target]] = {GLOBAL: []}
    members: dict[str, set[str]] = {}
    services: dict[str, set[str]] = {}
    nodes: set[str] = set()
    for doc in docs:
        _add(peers, doc, shared)
        nodes |= _own_addresses(doc)
        for name, addresses in doc.services.items():
            services.setdefault(name, set()).update(addresses)
        for network, addresses in doc.members.items():
            members.setdefault(network, set()).update(addresses)
    return Fleet(
        {service: tuple(targets) for service, targets in peers.items()},
        {network: frozenset(addresses) for network, addresses in members.items()},
        {service: frozenset(addresses) for service, addresses in services.items()},
        frozenset(nodes),
    )


def _own_addresses(doc: NodeDocument) -> set[str]:
    """The node's own addresses: the first of its first slice of each IP version."""
    first: dict[int, str] = {}
    for cidr in doc.slices:
        network = known_network(cidr)
        first.setdefault(network.version, str(network.network_address + 1))
    return set(first.values())


def _add(peers: dict[str, list[Target]], doc: NodeDocument, shared: set[str]) -> None:
    """Add a node as a peer of the global device, and of each dedicated device that both nodes have.

    Packets that arrive on a service's device may come from any subnet of the node, and replies may arrive on another
    device. Each peer is therefore allowed all of the node's subnets; only the routes are split between the devices.
    """
    cidrs = every_cidr(doc)
    dedicated_cidrs: set[str] = set()
    for service, own in doc.dedicated.items():
        if service in shared:
            dedicated_cidrs |= set(own.subnets)
            called = _endpoints(doc, own.port)
            peers.setdefault(service, []).append(_target(doc, own.public_key, called, cidrs, own.subnets))
    rest = tuple(cidr for cidr in cidrs if cidr not in dedicated_cidrs)
    called = doc.endpoints or _endpoints(doc, doc.port)
    target = _target(doc, doc.public_key, called, cidrs, rest if dedicated_cidrs else None)
    peers[GLOBAL].append(replace(target, nat=doc.nat))


def _endpoints(doc: NodeDocument, port: int) -> tuple[str, ...]:
    """A port at each of the node's hosts."""
    hosts = dict.fromkeys(split_endpoint(endpoint)[0] for endpoint in doc.endpoints) or doc.hosts
    return tuple(join_host_port(host, port) for host in hosts)


def _target(
    doc: NodeDocument, key: str, endpoints: tuple[str, ...], cidrs: tuple[str, ...], routes: tuple[str, ...] | None
) -> Target:
    return Target(key, endpoints, cidrs, defaults.KEEPALIVE, routes, doc.name, published=True)


@functools.lru_cache(1 << 16)
def _address_of(text: str) -> Address:
    return ipaddress.ip_address(text)
