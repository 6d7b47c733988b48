"""What nodes tell one another by the cluster's store, as values: node documents and slots."""

from __future__ import annotations

import msgspec

from cni.daemon.model import keys

SLICE = "slice"  # the uses of a slot
SERVICE = "service:"
SPARE = "spare"


class Dedicated(msgspec.Struct, frozen=True):
    """A service's own device on a node."""

    public_key: str
    port: int
    subnets: tuple[str, ...]


class NatWord(msgspec.Struct, frozen=True):
    """What a node publishes for NAT traversal; a node that publishes none answers no probes. `outside`: the addresses
    with ports from which others see its WireGuard port; `mapping`: its NAT's (`model/nat_behaviour.py`); `relay`:
    the address at which it relays for others, "" if it does not; `relayed`: its addresses with ports at relays that
    forward in user space."""

    outside: tuple[str, ...] = ()
    mapping: str = ""
    relay: str = ""
    relayed: tuple[str, ...] = ()


class NodeDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a node publishes about itself. `place` distinguishes a daemon from one with a copy of its data directory;
    `endpoints` are where the node can be called, `host:port`, the best first; `port` and `hosts` are those of them that
    have one port, for versions that know no `endpoints`; `members` are the addresses of each isolation network's
    members. `signer` is the signing key in hexadecimal digits, "" for a version that does not sign; `sequence` grows
    with every document that the node publishes. `ranges` are the overlay's, as the node has them; empty for an earlier
    version. `nat`: None for a node without NAT traversal. `services` are the addresses of the services that the node's
    `isolation` names."""

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
    signer: str = ""
    sequence: int = 0
    endpoints: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    nat: NatWord | None = None
    services: dict[str, tuple[str, ...]] = {}


class Slot(msgspec.Struct, frozen=True):
    """The holder of a slot and its use: `slice`, `spare`, or `service:<name>`."""

    owner: str
    use: str


class SignedSlot(msgspec.Struct, frozen=True):
    """A slot's record in the store; `signer` as in `NodeDocument`."""

    owner: str
    use: str
    signer: str = ""


def every_cidr(doc: NodeDocument) -> tuple[str, ...]:
    """All CIDRs that a document places behind the node."""
    dedicated = (cidr for device in doc.dedicated.values() for cidr in device.subnets)
    return tuple(dict.fromkeys((*doc.slices, *doc.subnets, *dedicated)))


def claims_of(doc: NodeDocument) -> tuple[str, ...]:
    """The claims that a document requires: CIDRs, and keys in hexadecimal digits."""
    return (*every_cidr(doc), *map(hexadecimal, every_key(doc)))


def hexadecimal(public_key: str) -> str:
    """A WireGuard key in hexadecimal digits, as in the store. Raises ValueError."""
    return keys.decode(public_key).hex()


def every_key(doc: NodeDocument) -> tuple[str, ...]:
    """All WireGuard keys in a document."""
    return (doc.public_key, *(device.public_key for device in doc.dedicated.values()))
