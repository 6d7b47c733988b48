"""Publishes this node's document in etcd under its lease, and never overwrites the document of another machine."""

from __future__ import annotations

import logging

import msgspec

from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.etcd_protocol import NOT_FOUND, Compare, EtcdError, Get, KeyValue, Put
from cni.daemon.model import signing
from cni.daemon.model.cluster_records import NodeDocument
from cni.daemon.state.identity import Identity

log = logging.getLogger(__name__)


class Publisher:
    """The publisher of one node. For one thread, except `renew`, which another thread may call."""

    def __init__(self, etcd: EtcdClient, key: str, seconds: int, identity: Identity) -> None:
        """`key`: of the document in etcd; `seconds`: the life of a lease; `identity` signs the document."""
        self._etcd, self._key, self._seconds, self._identity = etcd, key, seconds, identity
        self.lease = 0
        self._doc: NodeDocument | None = None  # the document last published; `_published` is its record
        self._published = b""

    def is_current(self, doc: NodeDocument, watched: bytes) -> bool:
        """Whether `doc` is published, and the record last seen by the watch, `watched`, is the published one."""
        return bool(self.lease) and doc == self._doc and watched == self._published

    def publish(self, doc: NodeDocument) -> str | None:
        """Write the document to etcd. Returns None, or the name and addresses of another machine that publishes under
        this node's identity. Raises EtcdError, InputOutput."""
        numbered = msgspec.structs.replace(doc, sequence=self._identity.next_sequence())
        body = self._identity.signer().sealed(self._key, msgspec.json.encode(numbered))
        if not self.lease:
            self.lease = self._resume(doc.place) or self._etcd.grant(self._seconds)
        put = [Put(self._key, body, self.lease)]
        try:
            done, records = self._etcd.transact([Compare(self._key, "LEASE", self.lease)], put, [Get(self._key)])
            if not done:
                done, records = self._etcd.transact([Compare(self._key, "CREATE", 0)], put, [Get(self._key)])
            if not done and records and self._is_forged(records[0], doc.place):
                log.warning("overwriting a record under this node's identity that this node has not signed")
                unchanged = [Compare(self._key, "MOD", records[0].changed)]
                done, records = self._etcd.transact(unchanged, put, [Get(self._key)])
        except EtcdError as error:
            if error.code == NOT_FOUND:
                self._drop_lease()
            raise
        if not done and records:
            return _describe(records[0].value)
        self._doc, self._published = doc, body
        self._identity.announced()
        return None

    def _is_forged(self, record: KeyValue, place: str) -> bool:
        """Whether the record was written by neither this node nor a copy of it, although other nodes know this node's
        signature. That is so if this node's key has not signed it, or if it is an older document of this node replayed:
        one without a lease, or one of this `place`."""
        if not self._identity.is_known():
            return False
        own = signing.verify(self._key, record.value, self._identity.signer().name)
        return not own or not record.lease or _place_of(record.value) == place

    def renew(self) -> None:
        """Renew the lease, if there is one, for its full life. If it has ended, the next `publish` takes a new lease.
        Raises EtcdError."""
        lease = self.lease
        if lease and not self._etcd.keep_alive(lease):
            log.warning("this node's lease has ended: it was not renewed for %d s", self._seconds)
            if self.lease == lease:
                self._drop_lease()

    def revoke(self) -> None:
        """Withdraw the document by revoking its lease. Raises EtcdError."""
        if self.lease:
            self._etcd.revoke(self.lease)

    def _drop_lease(self) -> None:
        self.lease, self._doc, self._published = 0, None, b""

    def _resume(self, place: str) -> int:
        """The lease of an earlier daemon at the same `place`, renewed; 0 if there is none or it has ended."""
        _, records = self._etcd.transact([], [Get(self._key)])
        if records and records[0].lease and _place_of(records[0].value) == place:
            return records[0].lease if self._etcd.keep_alive(records[0].lease) else 0
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
