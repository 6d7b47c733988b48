"""What the cluster's etcd holds, as values: who is there, who holds what, and what that makes of this node's devices.

Below `<prefix>/<deployment>/`:

    id/<number>        who has that node id
    slot/<cidr>        who has that slot of the overlay's range, and for what
    key/<hex>          who has that WireGuard key
    node/<identity>    what a node says of itself, for as long as its lease lives

The first three are claimed by transaction and stay until they are given back: a node that returns finds what it had.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from cni.daemon.books import keys
from cni.daemon.mesh.endpoints import split_endpoint
from cni.daemon.mesh.wireguard import Address, Target
from cni.daemon.mesh.wireguard import network_of as known_network
from cni.overlay.address import network as network_of

GLOBAL = ""  # the node's own device among those of services
KEEPALIVE = 25  # seconds: what NAT and firewalls on the way forget last
SLICE = "slice"  # what a slot is used for, if not for a service
SERVICE = "service:"
SPARE = "spare"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Dedicated(msgspec.Struct, frozen=True):
    """A service's own device on a node."""

    public_key: str
    port: int
    subnets: tuple[str, ...]


class NodeDoc(msgspec.Struct, frozen=True, kw_only=True):
    """What a node publishes. `place` tells one machine's daemon from a copy of its data directory elsewhere;
    `endpoints` are hosts, without a port; `members` are the addresses of each isolation network's members."""

    identity: str
    name: str
    place: str
    node_id: int
    public_key: str
    port: int
    hosts: tuple[str, ...]
    slices: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    dedicated: dict[str, Dedicated] = {}
    members: dict[str, tuple[str, ...]] = {}
    version: str = ""


class Slot(msgspec.Struct, frozen=True):
    """Whose a slot is, and what for: `slice`, `spare`, or `service:<name>`."""

    owner: str
    use: str


@dataclass(frozen=True)
class Fleet:
    """The other nodes, for the mesh: the peers of each device (`GLOBAL` or a service), and who of those behind them is
    a member of which isolation network."""

    peers: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    members: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Keys:
    """Where things are in etcd."""

    base: str

    def id(self, number: int) -> str:
        return f"{self.base}id/{number}"

    def slot(self, cidr: str) -> str:
        return f"{self.base}slot/{cidr.replace('/', '_')}"

    def key(self, public_key: str) -> str:
        return f"{self.base}key/{keys.decode(public_key).hex()}"

    def node(self, identity: str) -> str:
        return f"{self.base}node/{identity}"


class View:
    """Everything below the base, kept in step. `now` is seconds on a clock that nobody sets."""

    def __init__(self, base: str) -> None:
        self.keys = Keys(base)
        self.nodes: dict[str, NodeDoc] = {}
        self.lost: dict[str, float] = {}  # since when a node in `nodes` is not heard of
        self.slots: dict[str, Slot] = {}
        self.ids: dict[int, str] = {}
        self.holders: dict[str, str] = {}  # of keys
        self.faults: dict[str, str] = {}

    def load(self, items: Iterable[tuple[str, bytes]], now: float) -> None:
        """All there is. Who was known and is not there counts as lost from now on, not as gone."""
        self.slots, self.ids, self.holders, self.faults = {}, {}, {}, {}
        heard = set()
        for key, value in items:
            self.put(key, value)
            if key.startswith(f"{self.keys.base}node/"):
                heard.add(key.rpartition("/")[2])
        for identity in self.nodes.keys() - heard:
            self.lost.setdefault(identity, now)

    def put(self, key: str, value: bytes) -> None:
        """A key has this value. What cannot be read is noted and otherwise as if it were not there."""
        kind, _, name = key.removeprefix(self.keys.base).partition("/")
        try:
            match kind:
                case "node":
                    self.nodes[name] = _checked(msgspec.json.decode(value, type=NodeDoc), name)
                    self.lost.pop(name, None)
                case "slot":
                    cidr = str(network_of(name.replace("_", "/"), strict=True))
                    self.slots[cidr] = msgspec.json.decode(value, type=Slot)
                case "id":
                    self.ids[int(name)] = value.decode()
                case "key":
                    self.holders[name] = value.decode()
        except (ValueError, RecursionError) as error:
            self.faults[key] = f"the cluster's record {key} cannot be used: {error}"
            return
        self.faults.pop(key, None)

    def gone(self, key: str, now: float) -> None:
        """There is no such key any more."""
        kind, _, name = key.removeprefix(self.keys.base).partition("/")
        self.faults.pop(key, None)
        match kind:
            case "node":
                if name in self.nodes:
                    self.lost.setdefault(name, now)
            case "slot":
                self.slots.pop(name.replace("_", "/"), None)
            case "id":
                self.ids.pop(int(name) if name.isascii() and name.isdigit() and len(name) <= 20 else -1, None)
            case "key":
                self.holders.pop(name, None)

    def expire(self, now: float, grace: float) -> list[NodeDoc]:
        """Forget who has been lost for longer than `grace`; returns them."""
        over = [identity for identity, since in self.lost.items() if now - since >= grace]
        for identity in over:
            del self.lost[identity]
        return [self.nodes.pop(identity) for identity in over if identity in self.nodes]

    def foreign(self, own: str) -> list[Network]:
        """The slots that other nodes hold, or say they use: after a loss of etcd's data their word comes first."""
        held = {cidr for cidr, slot in self.slots.items() if slot.owner != own}
        used = (cidr for identity, doc in self.nodes.items() if identity != own for cidr in every_cidr(doc))
        return [known_network(cidr) for cidr in sorted(held.union(used))]

    def knows(self, own: str, node_id: int, public_key: str, slices: Iterable[str]) -> bool:
        """Whether the claims that make this node a member are all there."""
        return (
            self.ids.get(node_id) == own
            and self.holders.get(keys.decode(public_key).hex()) == own
            and all(cidr in self.slots and self.slots[cidr].owner == own for cidr in slices)
        )


def _checked(doc: NodeDoc, name: str) -> NodeDoc:
    """The document, if everything in it is what it should be. Raises ValueError."""
    if doc.identity != name:
        raise ValueError(f"it says it is {doc.identity}")
    for key in (doc.public_key, *(each.public_key for each in doc.dedicated.values())):
        keys.decode(key)
    for cidr in every_cidr(doc):
        network_of(cidr, strict=True)
    for host in doc.hosts:
        split_endpoint(_join(host, 1))
    for addresses in doc.members.values():
        for address in addresses:
            ipaddress.ip_address(address)
    return doc


def fleet(view: View, own: str, own_key: str, dedicated: Iterable[str]) -> tuple[Fleet, dict[str, str]]:
    """The other nodes as peers of this one's devices, and by identity those that use a key of another.

    `dedicated`: the services that have a device of their own here. A node counts only with its own key and its own
    slots: a key that another holds, or a subnet that another has claimed, would draw traffic to the wrong machine.
    """
    conflicts: dict[str, str] = {}
    shared = set(dedicated)
    peers: dict[str, list[Target]] = {GLOBAL: []}
    members: dict[str, set[str]] = {}
    for identity, doc in view.nodes.items():
        if identity == own:
            continue
        who = f"{doc.name} (node {doc.node_id}, {identity})"
        holder = view.holders.get(keys.decode(doc.public_key).hex())
        if doc.public_key == own_key or holder not in (identity, None):
            other = "this node" if doc.public_key == own_key else view_name(view, holder)
            conflicts[identity] = f"{who} uses the WireGuard key of {other}: it is not a peer; give it a key of its own"
            continue
        mine = {c for c in every_cidr(doc) if c not in view.slots or view.slots[c].owner == identity}
        _add(peers, members, doc, mine, shared)
    return (
        Fleet(
            {service: tuple(found) for service, found in peers.items()},
            {network: frozenset(found) for network, found in members.items()},
        ),
        conflicts,
    )


def every_cidr(doc: NodeDoc) -> tuple[str, ...]:
    """All that a node says is behind it."""
    apart = (cidr for each in doc.dedicated.values() for cidr in each.subnets)
    return tuple(dict.fromkeys((*doc.slices, *doc.subnets, *apart)))


def view_name(view: View, identity: str | None) -> str:
    """A node, for a sentence."""
    doc = view.nodes.get(identity or "")
    return f"{doc.name} ({identity})" if doc is not None else (identity or "nobody")


def _add(
    peers: dict[str, list[Target]], members: dict[str, set[str]], doc: NodeDoc, mine: set[str], shared: set[str]
) -> None:
    """One node as a peer of the global device, and of each dedicated one that both have.

    What comes by a service's own device may be from any subnet of the node, and answers may come by the other device:
    so each peer is believed for all of the node's subnets, and only the routes are parted.
    """
    every = tuple(cidr for cidr in every_cidr(doc) if cidr in mine)
    apart: set[str] = set()
    for service, own in doc.dedicated.items():
        if service in shared:
            led = tuple(cidr for cidr in own.subnets if cidr in mine)
            apart |= set(led)
            hosts = tuple(_join(host, own.port) for host in doc.hosts)
            peers.setdefault(service, []).append(Target(own.public_key, hosts, every, KEEPALIVE, led, doc.name))
    hosts = tuple(_join(host, doc.port) for host in doc.hosts)
    led = tuple(cidr for cidr in every if cidr not in apart)
    peers[GLOBAL].append(Target(doc.public_key, hosts, every, KEEPALIVE, led if apart else None, doc.name))
    networks = [known_network(cidr) for cidr in every] if doc.members else []
    for network, addresses in doc.members.items():
        inside = {a for a in addresses if any(_address_of(a) in each for each in networks)}
        members.setdefault(network, set()).update(inside)


@functools.lru_cache(1 << 16)
def _address_of(text: str) -> Address:
    return ipaddress.ip_address(text)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
