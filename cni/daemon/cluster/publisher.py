"""Publishes this node's document in etcd under its lease, and never overwrites the document of another machine.

A virtual machine that is cloned with its memory runs as two machines with one identity, key, lease and `place`. Each
sees a record with a signature of its own and a sequence number of this process that it has not written. It then draws a
new place and a new lease, and replaces exactly that record: one of the two succeeds, and the other publishes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from cni.daemon.cluster.store import NOT_FOUND, ClusterStore, Compare, Get, KeyValue, Put, Step, StoreError
from cni.daemon.model import signing
from cni.daemon.model.cluster_records import NodeDocument
from cni.daemon.state.identity import Identity

log = logging.getLogger(__name__)

MOST_WRITTEN = 100_000  # records of this process that are remembered as its own


@dataclass(frozen=True)
class Other:
    """Another machine that publishes under this node's identity. `cloned`: it has this process's memory."""

    text: str  # its name and addresses
    cloned: bool


class Publisher:
    """The publisher of one node. For one thread, except `renew`, which another thread may call."""

    def __init__(self, store: ClusterStore, key: str, seconds: int, identity: Identity) -> None:
        """`key`: of the document in etcd; `seconds`: the life of a lease; `identity` signs the document."""
        self._store, self.key, self._seconds, self._identity = store, key, seconds, identity
        self.lease = 0
        self._doc: NodeDocument | None = None  # the document last published; `_published` is its record
        self._published = b""
        self._first = 0  # the lowest sequence number of which all records are in `_written`, as digests
        self._written: set[bytes] = set()
        self._above = 0  # the highest sequence number of this identity that another machine has written
        self._drawn = ""  # distinguishes this machine's place from that of a clone; "" as long as none was met

    def is_current(self, doc: NodeDocument, watched: bytes) -> bool:
        """Whether `doc` is published, and the record last seen by the watch, `watched`, is the published one."""
        return bool(self.lease) and doc == self._doc and watched == self._published

    def publish(self, doc: NodeDocument) -> Other | None:
        """Write the document to etcd. Returns None, or the machine that publishes under this node's identity. Raises
        StoreError, InputOutput."""
        if not self.lease:
            self.lease = self._resume(self._place(doc)) or self._store.grant(self._seconds)
        published = self._published
        body = self._sealed(doc)
        put, get = [Put(self.key, body, self.lease)], [Get(self.key)]
        try:
            same = Compare(self.key, "VALUE", published) if published else Compare(self.key, "LEASE", self.lease)
            done, records = self._store.transact([same], put, get)
            cloned = not done and any(self._is_of_a_clone(record) for record in records)
            if cloned and _place_of(records[0].value) == self._place(doc):
                body, done, records = self._contend(doc, records[0])
            elif not done and not cloned:
                done, records = self._replace(doc, put, get)
        except StoreError as error:
            if error.code == NOT_FOUND:
                self._drop_lease()
            raise
        if not done and records:
            return Other(_describe(records[0].value), cloned)
        self._doc, self._published = doc, body
        self._identity.announced()
        return None

    def _replace(self, doc: NodeDocument, put: Sequence[Step], get: Sequence[Step]) -> tuple[bool, list[KeyValue]]:
        """Write where the record is not the one last published: under the same lease, absent, or forged."""
        done, records = self._store.transact([Compare(self.key, "LEASE", self.lease)], put, get)
        if not done:
            done, records = self._store.transact([Compare(self.key, "CREATE", 0)], put, get)
        if not done and records and self._is_forged(records[0], self._place(doc)):
            log.warning("overwriting a record under this node's identity that this node has not signed")
            unchanged = [Compare(self.key, "MOD", records[0].changed)]
            done, records = self._store.transact(unchanged, put, get)
        return done, records

    def _contend(self, doc: NodeDocument, record: KeyValue) -> tuple[bytes, bool, list[KeyValue]]:
        """Replace the record of a clone by one with a place and a lease of this machine alone, unless the record has
        changed. Returns the new record, whether it was written, and otherwise the record that is there."""
        log.warning("a clone of this machine publishes under its identity: %s", _describe(record.value))
        # A clone may have the same random numbers; it does not have the same clock and addresses at the same instant.
        seed = f"{time.time_ns()} {time.monotonic_ns()} {doc.hosts}".encode() + os.urandom(16)
        self._drawn = hashlib.sha256(seed).hexdigest()[:16]
        self._drop_lease()  # the clone has it too
        self.lease = self._store.grant(self._seconds)
        body = self._sealed(doc)
        unchanged = [Compare(self.key, "MOD", record.changed)]
        return body, *self._store.transact(unchanged, [Put(self.key, body, self.lease)], [Get(self.key)])

    @property
    def drawn(self) -> str:
        """What this process has drawn last to be told from a clone; "" as long as it has met none."""
        return self._drawn

    def _sealed(self, doc: NodeDocument) -> bytes:
        """The signed record of the document, with a new sequence number."""
        sequence = self._identity.next_sequence(self._above)
        if not self._first or len(self._written) >= MOST_WRITTEN:
            self._first = sequence
            self._written.clear()
        numbered = msgspec.structs.replace(doc, sequence=sequence, place=self._place(doc))
        body = self._identity.signer().sealed(self.key, msgspec.json.encode(numbered))
        self._written.add(hashlib.sha256(body).digest())
        return body

    def _place(self, doc: NodeDocument) -> str:
        return hashlib.sha256(f"{doc.place} {self._drawn}".encode()).hexdigest()[:16] if self._drawn else doc.place

    def _is_of_a_clone(self, record: KeyValue) -> bool:
        """Whether a machine with this process's memory has written the record: it is signed by this node, has a
        sequence number of this process, and is none of this process's."""
        if hashlib.sha256(record.value).digest() in self._written or not record.lease:
            return False
        if not signing.verify(self.key, record.value, self._identity.signer().name):
            return False
        sequence = msgspec.json.decode(record.value, type=NodeDocument).sequence
        self._above = max(self._above, sequence)  # other nodes accept no lower one
        return sequence >= self._first > 0

    def _is_forged(self, record: KeyValue, place: str) -> bool:
        """Whether the record was written by neither this node nor a copy of it, although other nodes know this node's
        signature. That is so if this node's key has not signed it, or if it is an older document of this node replayed:
        one without a lease, or one of this `place`."""
        if not self._identity.is_known():
            return False
        own = signing.verify(self.key, record.value, self._identity.signer().name)
        return not own or not record.lease or _place_of(record.value) == place

    def renew(self) -> None:
        """Renew the lease, if there is one, for its full life. If it has ended, the next `publish` takes a new lease.
        Raises StoreError."""
        lease = self.lease
        if lease and not self._store.keep_alive(lease):
            log.warning("this node's lease has ended: it was not renewed for %d s", self._seconds)
            if self.lease == lease:
                self._drop_lease()

    def revoke(self) -> None:
        """Withdraw the document by revoking its lease. Raises StoreError."""
        if self.lease:
            self._store.revoke(self.lease)

    def _drop_lease(self) -> None:
        self.lease, self._doc, self._published = 0, None, b""

    def _resume(self, place: str) -> int:
        """The lease of an earlier daemon at the same `place`, renewed; 0 if there is none or it has ended."""
        _, records = self._store.transact([], [Get(self.key)])
        if records and records[0].lease and _place_of(records[0].value) == place:
            return records[0].lease if self._store.keep_alive(records[0].lease) else 0
        return 0


def _place_of(value: bytes) -> str:
    try:
        return msgspec.json.decode(value, type=NodeDocument).place
    except msgspec.DecodeError:
        return ""


def _describe(value: bytes) -> str:
    try:
        other = msgspec.json.decode(value, type=NodeDocument)
        return f"{other.name} ({', '.join(other.hosts)})"
    except msgspec.DecodeError:
        return "another machine"
