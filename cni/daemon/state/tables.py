"""What agents told the daemon and want back, beside containers and services: peers, guests, edge peers, names, NAT.

Kept in the boot-scoped store, so that a restarted daemon still knows. The store is root's alone (0600): a guest's
private key lies in it, because a client that lost its connection asks again and must get the same guest.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Generic, TypeVar

import msgspec

from cni.daemon.cluster.store_records import NodeDocument, Slot
from cni.daemon.model.peer_table import Peer
from cni.daemon.model.records import AssignedAddress
from cni.daemon.state import restore
from cni.daemon.state.store import Store
from cni.overlay.nested import Candidate, NatConfig, NatPeer

R = TypeVar("R")


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual machine that brings up WireGuard itself. Its address is leased under `owner_of("guest", id)`.
    `isolation`: the network it is a member of; None: of the flat mesh."""

    id: str
    service: str
    held: AssignedAddress
    private_key: str
    public_key: str
    isolation: str | None = None


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """An edge peer. Its private key went to who minted it and is not kept. Wall-clock times are for people to read;
    it ends at `deadline` on the boot clock, which nobody sets back."""

    name: str
    held: AssignedAddress
    public_key: str
    minted_at_unix: int
    expires_at_unix: int
    deadline: float
    allowed: tuple[str, ...]


class HostProcess(msgspec.Struct, frozen=True, kw_only=True):
    """An address of the node's own slice for a process in the host's namespace."""

    id: str
    service: str
    ip: str


class RegisteredName(msgspec.Struct, frozen=True):
    """A DNS name and its address."""

    name: str
    ip: str


class NatSeen(msgspec.Struct, frozen=True):
    """What the last NAT tick found; `last_refresh` in Unix seconds, 0 for never."""

    candidates: tuple[Candidate, ...] = ()
    peers: tuple[NatPeer, ...] = ()
    last_refresh: int = 0


class DeviceRecord(msgspec.Struct, frozen=True):
    """A WireGuard device of ours, and the endpoint each of its peers was last given, by key. `ahead`: by how many
    seconds the wall clock was ahead of the boot clock, to a minute; 0 for not known."""

    endpoints: dict[str, str]
    ahead: float = 0.0


class Table(Generic[R]):
    """The records of one kind, by key. Written before they count; safe from any thread."""

    def __init__(self, store: Store, kind: str, shape: type[R]) -> None:
        self._store = store
        self._kind = kind
        self._lock = threading.Lock()
        self._records = dict(restore.read(store, kind, lambda _, body: msgspec.json.decode(body, type=shape)))

    def get(self, key: str) -> R | None:
        """The record of that key."""
        return self._records.get(key)

    def all(self) -> dict[str, R]:
        """Every record, in the order they came."""
        with self._lock:
            return dict(self._records)

    def apply(self, changes: Mapping[str, R | None]) -> None:
        """Write records, and delete those whose value is None, all or none. Raises InputOutput."""
        with self._lock:
            self._store.apply(
                (self._kind, key, None if record is None else msgspec.json.encode(record))
                for key, record in changes.items()
            )
            for key, record in changes.items():
                if record is None:
                    self._records.pop(key, None)
                else:
                    self._records[key] = record

    def put(self, key: str, record: R) -> None:
        """Write one record, new or changed."""
        self.apply({key: record})

    def drop(self, key: str) -> R | None:
        """Delete the record and return it; None if there was none."""
        found = self.get(key)
        if found is not None:
            self.apply({key: None})
        return found


class Tables:
    """All the tables."""

    def __init__(self, store: Store) -> None:
        self.peers: Table[Peer] = Table(store, "peer", Peer)
        self.guests: Table[Guest] = Table(store, "guest", Guest)
        self.edges: Table[Edge] = Table(store, "edge", Edge)
        self.hosts: Table[HostProcess] = Table(store, "host", HostProcess)
        self.names: Table[RegisteredName] = Table(store, "name", RegisteredName)
        self.nat: Table[NatConfig] = Table(store, "nat", NatConfig)
        self.slots: Table[Slot] = Table(store, "slot", Slot)
        self.fleet: Table[NodeDocument] = Table(store, "fleet", NodeDocument)
        self.devices: Table[DeviceRecord] = Table(store, "device", DeviceRecord)
        self.nat_seen: Table[NatSeen] = Table(store, "nat_seen", NatSeen)


def owner_of(kind: str, name: str) -> str:
    """Whose a lease or a peer is, where no client may give it back by its address or key alone."""
    return f"{kind}:{name}"
