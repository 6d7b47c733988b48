"""What this node believes of the others: the peers of its devices, and who behind them is a member of which network.

A node is believed for exactly what its claims cover: its WireGuard keys, and subnets that are slots of the overlay's
range. All else that it says is a problem, costs that node alone, and changes nothing for the others.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from cni import defaults
from cni.daemon.cluster.store_records import GLOBAL, Dedicated, NodeDocument, every_cidr, is_slot
from cni.daemon.cluster.view import ClusterView, Fleet
from cni.daemon.model.wireguard import Address, Target
from cni.daemon.model.wireguard import network_of as known_network

MOST_NETWORKS = 2048  # of all nodes: the fence takes some 4 ms for each when it is loaded anew
SHOWN = 5  # CIDRs or addresses of one node that a problem names


@dataclass(frozen=True)
class Belief:
    """What a view comes to. `docs`: each node's document, less what is not believed; `conflicts` and `unclaimed`: why a
    node is no peer, and what else is not believed, by identity."""

    fleet: Fleet
    docs: Mapping[str, NodeDocument]
    conflicts: Mapping[str, str]
    unclaimed: Mapping[str, str]


def believe(
    view: ClusterView, own: str, own_keys: Collection[str], dedicated: Iterable[str], ranges: tuple[str, ...]
) -> Belief:
    """The other nodes as peers of this one's devices.

    `own`, `own_keys`: this node; `dedicated`: the services that have a device of their own here; `ranges`: the
    overlay's, of which every subnet is a slot.
    """
    conflicts: dict[str, str] = {}
    unclaimed: dict[str, str] = {}
    docs: dict[str, NodeDocument] = {}
    seen = set(own_keys)
    for identity, doc in view.nodes.items():
        if identity == own:
            continue
        who = f"{doc.name} (node {doc.node_id}, {identity})"
        reason = _key_conflict(view, identity, doc.public_key, own_keys)
        if reason:
            conflicts[identity] = (
                f"{who} uses the WireGuard key of {reason}: it is not a peer; give it a key of its own"
            )
            continue
        docs[identity], said = _cut(view, doc, seen, ranges)
        seen.update(each.public_key for each in docs[identity].dedicated.values())
        if said:
            unclaimed[identity] = (
                f"{who} says of itself what it has not claimed, and is not believed: {'; '.join(said)}"
            )
    for identity, networks in _too_many(docs).items():
        doc = docs[identity]
        members = {name: found for name, found in doc.members.items() if name not in networks}
        docs[identity] = msgspec.structs.replace(doc, members=members)
        said_before = f"{unclaimed[identity]}; " if identity in unclaimed else f"{doc.name} ({identity}): "
        unclaimed[identity] = f"{said_before}{len(networks)} of its networks are left out, of all there are too many"
    return Belief(_fleet(docs.values(), set(dedicated)), docs, conflicts, unclaimed)


def _too_many(docs: Mapping[str, NodeDocument]) -> dict[str, set[str]]:
    """The networks that are left out since there would be more than `MOST_NETWORKS`, by the node that names them: those
    of the nodes that name most."""
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
    """Whose key it is, if not that node's."""
    if public_key in own_keys:
        return "this node"
    holder = view.holder_of(public_key)
    return "" if holder == identity else (view.name_of(holder) if holder else "no node that has claimed it")


def _cut(
    view: ClusterView, doc: NodeDocument, taken: set[str], ranges: tuple[str, ...]
) -> tuple[NodeDocument, list[str]]:
    """The document less what its claims do not cover, and what was left out, as parts of a sentence.

    `taken`: keys that other devices have. An earlier version claims no keys for its services' devices, so a key that
    no node has claimed is that of the first that says so.
    """
    claimed = {cidr for cidr in every_cidr(doc) if view.owner_of(cidr) == doc.identity}
    mine = {cidr for cidr in claimed if is_slot(cidr, ranges)}
    said = []
    # A slot of a range that this node does not have is of no use here, and no fault.
    if strange := [cidr for cidr in every_cidr(doc) if cidr not in claimed or not is_slot(cidr)]:
        said.append(f"the subnets {_some(strange)}")
    if (holder := view.ids.get(doc.node_id, doc.identity)) != doc.identity:
        said.append(f"the node id {doc.node_id}, which {view.name_of(holder)} has")
    dedicated = {}
    for service, device in doc.dedicated.items():
        holder_of_key = view.holder_of(device.public_key)
        if holder_of_key != doc.identity and (holder_of_key is not None or device.public_key in taken):
            said.append(f"the WireGuard key of its service {service}, which another device has")
            continue
        dedicated[service] = Dedicated(device.public_key, device.port, _kept(device.subnets, mine))
    networks = [known_network(cidr) for cidr in mine] if doc.members else []
    members, outside = {}, []
    for network, addresses in doc.members.items():
        inside = tuple(a for a in addresses if any(_address_of(a) in each for each in networks))
        outside += sorted(set(addresses) - set(inside))
        members[network] = inside
    foreign = [a for a in outside if not any(_address_of(a) in known_network(cidr) for cidr in claimed)]
    if foreign:
        said.append(f"the members {_some(foreign)}")
    if mine.issuperset(every_cidr(doc)) and len(dedicated) == len(doc.dedicated) and not outside:
        return doc, said
    cut = msgspec.structs.replace(
        doc, slices=_kept(doc.slices, mine), subnets=_kept(doc.subnets, mine), dedicated=dedicated, members=members
    )
    return cut, said


def _kept(cidrs: Iterable[str], mine: Collection[str]) -> tuple[str, ...]:
    return tuple(cidr for cidr in cidrs if cidr in mine)


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more


def _fleet(docs: Iterable[NodeDocument], shared: set[str]) -> Fleet:
    peers: dict[str, list[Target]] = {GLOBAL: []}
    members: dict[str, set[str]] = {}
    for doc in docs:
        _add(peers, doc, shared)
        for network, addresses in doc.members.items():
            members.setdefault(network, set()).update(addresses)
    return Fleet(
        {service: tuple(found) for service, found in peers.items()},
        {network: frozenset(found) for network, found in members.items()},
    )


def _add(peers: dict[str, list[Target]], doc: NodeDocument, shared: set[str]) -> None:
    """One node as a peer of the global device, and of each dedicated one that both have.

    What comes by a service's own device may be from any subnet of the node, and answers may come by the other device:
    so each peer is believed for all of the node's subnets, and only the routes are parted.
    """
    every = every_cidr(doc)
    apart: set[str] = set()
    for service, own in doc.dedicated.items():
        if service in shared:
            apart |= set(own.subnets)
            peers.setdefault(service, []).append(_target(doc, own.public_key, own.port, every, own.subnets))
    led = tuple(cidr for cidr in every if cidr not in apart)
    peers[GLOBAL].append(_target(doc, doc.public_key, doc.port, every, led if apart else None))


def _target(doc: NodeDocument, key: str, port: int, every: tuple[str, ...], led: tuple[str, ...] | None) -> Target:
    hosts = tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in doc.hosts)
    return Target(key, hosts, every, defaults.KEEPALIVE, led, doc.name, published=True)


@functools.lru_cache(1 << 16)
def _address_of(text: str) -> Address:
    return ipaddress.ip_address(text)
