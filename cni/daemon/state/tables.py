"""The records of agents' requests, apart from containers and services: peers, guests, edge peers, names, NAT.

They are in the boot-scoped store, so that a restarted daemon has them. The store is readable by root alone (0600): it
has the guests' private keys, because a client that lost its connection asks again and must get the same guest.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Generic, TypeVar

import msgspec

from cni.daemon.model.cluster_records import NodeDocument, Slot
from cni.daemon.model.kubernetes import ClusterPolicy, Namespace, Pod
from cni.daemon.model.peer_table import Peer
from cni.daemon.model.records import AssignedAddress
from cni.daemon.model.relay_pairs import RelayPair
from cni.daemon.state import restore
from cni.daemon.state.store import Store
from cni.overlay.nested import Candidate, NatConfig, NatPeer

R = TypeVar("R")


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual machine with a WireGuard device of its own. Its address is leased under `owner_of("guest", id)`.
    `isolation`: its isolation network; None: the flat mesh."""

    id: str
    service: str
    held: AssignedAddress
    private_key: str
    public_key: str
    isolation: str | None = None


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """An edge peer. Its private key was returned to the client that minted it and is not kept. Wall-clock times (Unix
    seconds) are for display; the edge peer expires at `deadline`, in seconds of the boot clock, which is never set."""

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


class RegisteredName(msgspec.Struct, frozen=True, omit_defaults=True):
    """A DNS name and its addresses: the latest, and the earlier ones."""

    name: str
    ip: str
    others: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        return (*self.others, self.ip)


class NatSeen(msgspec.Struct, frozen=True):
    """The results of the last NAT tick; `last_refresh` in Unix seconds, 0 for never."""

    candidates: tuple[Candidate, ...] = ()
    peers: tuple[NatPeer, ...] = ()
    last_refresh: int = 0


class DeviceRecord(msgspec.Struct, frozen=True):
    """A WireGuard device of this node, and the endpoint that each of its peers was last given, by key. `ahead`: how far
    the wall clock was ahead of the boot clock, in seconds, rounded to a minute; 0 if unknown. `sizes`: the largest
    packets, in bytes, that pass to the peers with a narrow path, as measured, by key. `learned`: the endpoints, by key,
    at which the device heard peers last, where they differ from the ones given. `firsts`: by key, the endpoint that
    comes first where another one is called, because the peer did not answer at it. `proven`: the keys of the peers
    whose endpoint was found by probes."""

    endpoints: dict[str, str]
    ahead: float = 0.0
    sizes: dict[str, int] = {}
    learned: dict[str, str] = {}
    firsts: dict[str, str] = {}
    proven: list[str] = []


class PolicyFile(msgspec.Struct, frozen=True):
    """A file of network policies, by the file's name: its last good text, None if it never had one, and its present
    text if that is refused."""

    text: str | None
    refused: str | None = None


class Table(Generic[R]):
    """The records of one kind, by key. A change is written before it takes effect. Thread-safe."""

    def __init__(self, store: Store, kind: str, shape: type[R]) -> None:
        self._store = store
        self._kind = kind
        self._lock = threading.Lock()
        self._records = dict(restore.read(store, kind, lambda _, body: msgspec.json.decode(body, type=shape)))

    def get(self, key: str) -> R | None:
        """The record of that key; None if there is none."""
        return self._records.get(key)

    def all(self) -> dict[str, R]:
        """Every record, oldest first."""
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
        record = self.get(key)
        if record is not None:
            self.apply({key: None})
        return record


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
        self.relay_pairs: Table[RelayPair] = Table(store, "relay_pair", RelayPair)
        self.namespaces: Table[Namespace] = Table(store, "namespace", Namespace)
        self.pods: Table[Pod] = Table(store, "pod", Pod)
        self.cluster_policies: Table[ClusterPolicy] = Table(store, "cluster_policy", ClusterPolicy)
        self.held_policies: Table[ClusterPolicy] = Table(store, "held_policy", ClusterPolicy)
        self.nat_seen: Table[NatSeen] = Table(store, "nat_seen", NatSeen)
        self.policy_files: Table[PolicyFile] = Table(store, "policy_file", PolicyFile)


def owner_of(kind: str, name: str) -> str:
    """The owner of a lease or peer that a client must not be able to release by its address or key alone."""
    return f"{kind}:{name}"
