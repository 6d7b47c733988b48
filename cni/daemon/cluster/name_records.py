"""The names of other nodes: their records as bytes, which are read when a name is asked for.

An ADD on another node therefore costs this node no more than the bytes. A record is used if its node has signed it, and
of its addresses those that lie in a subnet which the node has claimed, in the network that the node's document gives.
A node's names last as long as its document is in the store, or its tunnel answers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from ipaddress import ip_network
from typing import TypeVar

import msgspec

from cni import defaults
from cni.daemon.cluster.view import ClusterView
from cni.daemon.model import name_records, signing
from cni.daemon.model.cluster_records import NodeDocument
from cni.daemon.model.dns_members import Member
from cni.daemon.model.dns_names import label
from cni.daemon.model.json_depth import check_depth
from cni.daemon.model.name_records import INDEX, LARGEST, IndexRecord, ServiceRecord

log = logging.getLogger(__name__)

MOST = 200_000  # records of all nodes
MOST_BYTES = 128 << 20
RETURN = 2.0  # seconds that a node which is back has to publish its names again

R = TypeVar("R", ServiceRecord, IndexRecord)
Part = tuple[str, str]  # identity, and the last part of the key


class NameRecords:
    """The records of all other nodes. Thread-safe; a question waits for no other thread's work."""

    def __init__(self, view: ClusterView, own: str) -> None:
        """`own`: this node's identity."""
        self._view, self._own, self._base = view, own, f"{view.keys.base}name/"
        self._lock = threading.Lock()
        self._raw: dict[Part, bytes] = {}
        self._bytes = 0
        self._nodes_of: dict[str, set[str]] = {}  # by the last part of the key: the identities that have one
        self._held: dict[Part, float] = {}  # of nodes that are not in the store now, since when
        self._silent: frozenset[str] = frozenset()
        self._read: dict[Part, tuple[NodeDocument, list[Member]]] = {}
        self._indices: dict[str, IndexRecord] = {}
        self.loaded = False
        """Whether all records have been read once."""
        self.generation = 0
        """Grows with every change."""
        self._own_parts: frozenset[str] = frozenset()
        self.own_seen: frozenset[str] = frozenset()
        """The records of this node that the last full read found, by the last part of their keys."""
        self.lost_own = 0
        """Grows when records of this node may have gone from the store."""

    def key(self, part: str) -> str:
        """The key of a record of this node."""
        return f"{self._base}{self._own}/{part}"

    @property
    def base(self) -> str:
        """What the keys of all records begin with."""
        return self._base

    def wrote(self, parts: Collection[str]) -> None:
        """This node is about to have these records in the store, and no others: a deletion of them is another's."""
        self._own_parts = frozenset(parts)

    # --- what the store says -----------------------------------------------------------------------------------------

    def owns(self, key: str) -> bool:
        """Whether the key is that of a record of names."""
        return key.startswith(self._base)

    def load(self, items: list[tuple[str, bytes | None]]) -> None:
        """Take in a full read. What is missing stays as long as its node is lost."""
        with self._lock:
            found = {part for key, value in items if (part := self._part(key)) is not None and value is not None}
            self.own_seen = frozenset(part for identity, part in found if identity == self._own)
            now = time.monotonic()
            for part in list(self._raw.keys() - found):
                self._held.setdefault(part, now)
            self.lost_own += 1
            self.generation += 1
        for key, value in items:
            self.put(key, value)
        self.drop_departed()
        self.loaded = True

    def put(self, key: str, value: bytes | None) -> None:
        """Take in a record; None: larger than the limit."""
        part = self._part(key)
        if part is None or value is None or len(value) > LARGEST:
            return
        with self._lock:
            size = self._bytes + len(value) - len(self._raw.get(part, b""))
            if part[0] == self._own or size > MOST_BYTES or (part not in self._raw and len(self._raw) >= MOST):
                return
            self._raw[part], self._bytes = value, size
            self._nodes_of.setdefault(part[1], set()).add(part[0])
            self._forget(part)

    def gone(self, key: str) -> None:
        """Take in the deletion of a record: it goes in `drop_departed`, unless its node is lost with it."""
        part = self._part(key)
        if part is None:
            return
        with self._lock:
            if part[0] == self._own:
                self.lost_own += part[1] in self._own_parts
            elif part in self._raw:
                self._held.setdefault(part, time.monotonic())

    def drop_departed(self) -> None:
        """Drop the records that were deleted and whose nodes are in the store: after the deletions of one moment."""
        with self._lock:
            for part in [part for part in self._held if part[0] not in self._view.lost]:
                self._drop(part)

    def nodes_changed(self) -> None:
        """A document was changed: the names of nodes, and which addresses are theirs, may be others."""
        self.generation += 1

    def settle(self, lost: Collection[str], silent: Collection[str]) -> None:
        """Drop the names of the lost nodes whose tunnels do not answer: `silent`. Both by identity."""
        with self._lock:
            silent = frozenset(silent)
            if silent != self._silent:
                self._silent = silent
                self.generation += 1
            for part in [part for part in self._raw if part[0] in silent]:
                self._drop(part)
            now = time.monotonic()
            for part, since in list(self._held.items()):
                if part[0] not in lost and now - since > RETURN:
                    self._drop(part)

    def _part(self, key: str) -> Part | None:
        identity, _, part = key.removeprefix(self._base).partition("/")
        return (identity, part) if key.startswith(self._base) and (part == INDEX or label(part) == part) else None

    def _drop(self, part: Part) -> None:
        self._held.pop(part, None)
        self._bytes -= len(self._raw.pop(part, b""))
        holders = self._nodes_of.get(part[1], set())
        holders.discard(part[0])
        if not holders:
            self._nodes_of.pop(part[1], None)
        self._forget(part)

    def _forget(self, part: Part) -> None:
        self._held.pop(part, None)
        self._read.pop(part, None)
        if part[1] == INDEX:
            self._indices.pop(part[0], None)
        self.generation += 1

    # --- questions ---------------------------------------------------------------------------------------------------

    def of_service(self, service: str) -> list[Member]:
        """The members of a service on other nodes."""
        with self._lock:
            nodes = sorted(self._nodes_of.get(service, ()))
        return [member for identity in nodes for member in self._members((identity, service))]

    def aliased(self, alias: str) -> list[Member]:
        """The members on other nodes with that alias."""
        parts = [
            (identity, service)
            for identity, index in self._all_indices().items()
            for service in index.aliases.get(alias, ())
        ]
        return [member for part in parts for member in self._members(part) if alias in member.aliases]

    def registered(self) -> dict[str, tuple[str, ...]]:
        """The names that agents have registered on other nodes, as they wrote them, each with its addresses."""
        found: dict[str, tuple[str, ...]] = {}
        for index in self._all_indices().values():
            for name, addresses in index.registered.items():
                found[name] = tuple(dict.fromkeys((*found.get(name, ()), *addresses)))
        return found

    def at(self, address: str) -> Member | None:
        """The member on another node that has an address."""
        cidr = _slot_of(address)
        owner = self._view.owner_of(cidr) if cidr else None
        with self._lock:
            parts = [part for part in self._raw if part[0] == owner and part[1] != INDEX]
        return next((m for part in parts for m in self._members(part) if address in m.addresses), None)

    def nodes(self) -> list[tuple[str, tuple[str, ...]]]:
        """The label and the addresses of every other node that is there."""
        found = []
        for doc in list(self._view.nodes.values()):
            name = label(doc.name.partition(".")[0])
            if name and doc.identity not in (*self._silent, self._own):
                found.append((name, tuple(str(ip_network(cidr).network_address + 1) for cidr in doc.slices)))
        return found

    def _members(self, part: Part) -> list[Member]:
        doc = self._view.nodes.get(part[0])
        if doc is None:
            return []
        with self._lock:
            raw, read = self._raw.get(part), self._read.get(part)
        if raw is None:
            return []
        if read is not None and read[0] is doc:
            return read[1]
        record = self._decoded(part, raw, doc, ServiceRecord)
        members = name_records.members_of(record, part[1], part[0]) if record is not None else []
        networks = {address: network for network, each in doc.members.items() for address in each} if members else {}
        believed = [member for member in members if self._is_believed(member, doc, networks)]
        with self._lock:
            if self._raw.get(part) is raw:
                self._read[part] = doc, believed
        return believed

    def _all_indices(self) -> dict[str, IndexRecord]:
        with self._lock:
            missing = self._nodes_of.get(INDEX, set()) - self._indices.keys()
            raws = {identity: self._raw[identity, INDEX] for identity in missing}
        for identity, raw in raws.items():
            doc = self._view.nodes.get(identity)
            record = self._decoded((identity, INDEX), raw, doc, IndexRecord) if doc is not None else None
            with self._lock:
                if self._raw.get((identity, INDEX)) is raw:
                    self._indices[identity] = record or IndexRecord(signer="")
        return dict(self._indices)

    def _decoded(self, part: Part, raw: bytes, doc: NodeDocument, shape: type[R]) -> R | None:
        """The record if its node has written it, else None."""
        key = f"{self._base}{part[0]}/{part[1]}"
        try:
            check_depth(raw)
            record = msgspec.json.decode(raw, type=shape)
        except (ValueError, RecursionError) as error:
            log.warning("the record %r of names is not used: %s", key[:200], error)
            return None
        if record.signer != doc.signer or not signing.verify(key, raw, doc.signer):
            log.warning("the record %r of names is not used: its node has not signed it", key[:200])
            return None
        return record

    def _is_believed(self, member: Member, doc: NodeDocument, networks: Mapping[str, str]) -> bool:
        """Whether each address lies in a subnet of the node, and its network is the one in the node's document.
        `networks`: by address, of the document."""
        if member.container and label(member.container) != member.container:
            return False
        return bool(member.addresses) and all(
            (cidr := _slot_of(address))
            and self._view.owner_of(cidr) == doc.identity
            and networks.get(address) == member.network
            for address in member.addresses
        )


def _slot_of(address: str) -> str:
    """The slot that an address is in; "" for a text that is no address in canonical form."""
    try:
        prefix = defaults.SLOT_PREFIX[6 if ":" in address else 4]
        network = ip_network(f"{address}/{prefix}", strict=False)
    except ValueError:
        return ""
    return str(network)
