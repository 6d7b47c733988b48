"""Publishes this node's names in the store: a record for each service, of which an ADD changes one."""

from __future__ import annotations

import msgspec

from cni.daemon.cluster.name_records import NameRecords
from cni.daemon.cluster.store import ClusterStore, Compare, Delete, Put, Step, StoreError
from cni.daemon.model import dns_members, name_records
from cni.daemon.model.dns_members import Member
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import State
from cni.daemon.state.tables import Tables

MOST_STEPS = 64  # of one transaction: etcd accepts 128 by default


class NamePublication:
    """The names of one node in the store. For one thread."""

    def __init__(
        self, state: State, registry: Tables, identity: Identity, store: ClusterStore, records: NameRecords
    ) -> None:
        self._state, self._registry, self._identity = state, registry, identity
        self._store, self._records = store, records
        self._written: dict[str, bytes] = {}
        self._under = (0, -1)  # the lease that the records have, and how often they were lost

    def publish(self, document: str, lease: int) -> None:
        """Bring this node's names in the store up to date, as long as the node's document, at the key `document`, has
        the lease. Raises StoreError."""
        under = (lease, self._records.lost_own)
        if under != self._under:
            self._written, self._under = dict.fromkeys(self._records.own_seen, b""), under
        records = name_records.records_of(self._members(), self._registered(), self._identity.signer().name)
        wanted = {part: msgspec.json.encode(record) for part, record in records.items()}
        steps: list[Step] = []
        for part, body in wanted.items():
            if self._written.get(part) != body:
                key = self._records.key(part)
                steps.append(Put(key, self._identity.signer().sealed(key, body), lease))
        steps += [Delete(self._records.key(part)) for part in self._written if part not in wanted]
        self._records.wrote(wanted)
        try:
            for at in range(0, len(steps), MOST_STEPS):
                self._store.transact([Compare(document, "LEASE", lease)], steps[at : at + MOST_STEPS])
        except StoreError:
            self._under = (0, -1)  # some may be written: all are, next time
            raise
        self._written = wanted

    def _members(self) -> list[Member]:
        members = [dns_members.of_attachment(a) for a in self._state.snapshot() if a.state == "live"]
        guests = self._registry.guests.all().values()
        return members + [dns_members.of_guest(g.id, g.service, g.held.ip, g.isolation) for g in guests]

    def _registered(self) -> dict[str, tuple[str, ...]]:
        return {name.name: name.addresses for name in self._registry.names.all().values()}
