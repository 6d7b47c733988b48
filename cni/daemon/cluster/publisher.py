"""This node's word in etcd, under its lease: said, kept, and never said over somebody else's."""

from __future__ import annotations

import logging

import msgspec

from cni.daemon.cluster import signing
from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.etcd_protocol import NOT_FOUND, Compare, EtcdError, Get, KeyValue, Put
from cni.daemon.cluster.store_records import NodeDocument
from cni.daemon.state.identity import Identity

log = logging.getLogger(__name__)


class Publisher:
    """Of one node. One thread, but for `keep`, which another may call."""

    def __init__(self, etcd: EtcdClient, own: str, seconds: int, identity: Identity) -> None:
        """`own`: the key in etcd under which the word stands; `seconds`: how long a lease lives; `identity` signs."""
        self._etcd, self._own, self._seconds, self._identity = etcd, own, seconds, identity
        self.lease = 0
        self._doc: NodeDocument | None = None  # what was said last, and how it stands in etcd
        self._said = b""

    def stands(self, doc: NodeDocument, shown: bytes) -> bool:
        """Whether this is what was said, and what the watch has last `shown` is that."""
        return bool(self.lease) and doc == self._doc and shown == self._said

    def say(self, doc: NodeDocument) -> str | None:
        """It stands in etcd, or another machine publishes as this node: which. Raises EtcdError, InputOutput."""
        numbered = msgspec.structs.replace(doc, sequence=self._identity.next_sequence())
        body = self._identity.signer().sealed(self._own, msgspec.json.encode(numbered))
        if not self.lease:
            self.lease = self._resume(doc.place) or self._etcd.grant(self._seconds)
        put = [Put(self._own, body, self.lease)]
        try:
            done, found = self._etcd.transact([Compare(self._own, "LEASE", self.lease)], put, [Get(self._own)])
            if not done:
                done, found = self._etcd.transact([Compare(self._own, "CREATE", 0)], put, [Get(self._own)])
            if not done and found and self._is_forged(found[0], doc.place):
                log.warning("overwriting a record under this node's identity that this node has not signed")
                same = [Compare(self._own, "MOD", found[0].changed)]
                done, found = self._etcd.transact(same, put, [Get(self._own)])
        except EtcdError as error:
            if error.code == NOT_FOUND:
                self._forget()
            raise
        if not done and found:
            return _who(found[0].value)
        self._doc, self._said = doc, body
        self._identity.announced()
        return None

    def _is_forged(self, there: KeyValue, place: str) -> bool:
        """Whether what stands there was not written by this node or a copy of it, though the others know this node by
        its signature: it is not signed so, or an older word again, without a lease or of this very place."""
        if not self._identity.is_known():
            return False
        own = signing.verify(self._own, there.value, self._identity.signer().name)
        return not own or not there.lease or _place_of(there.value) == place

    def keep(self) -> None:
        """The lease, if there is one, lives its whole time again; or it has ended, and the next word is said under
        another. Raises EtcdError."""
        lease = self.lease
        if lease and not self._etcd.keep_alive(lease):
            log.warning("this node's lease has ended: it was not heard of for %d s", self._seconds)
            if self.lease == lease:
                self._forget()

    def revoke(self) -> None:
        """The word is taken back. Raises EtcdError."""
        if self.lease:
            self._etcd.revoke(self.lease)

    def _forget(self) -> None:
        self.lease, self._doc, self._said = 0, None, b""

    def _resume(self, place: str) -> int:
        """The lease under which this very daemon's predecessor spoke, if it lives."""
        _, found = self._etcd.transact([], [Get(self._own)])
        if found and found[0].lease and _place_of(found[0].value) == place:
            return found[0].lease if self._etcd.keep_alive(found[0].lease) else 0
        return 0


def _place_of(value: bytes) -> str:
    try:
        return msgspec.json.decode(value, type=NodeDocument).place
    except msgspec.DecodeError:
        return ""


def _who(value: bytes) -> str:
    try:
        other = msgspec.json.decode(value, type=NodeDocument)
        return f"{other.name} ({', '.join(other.hosts)})"
    except msgspec.DecodeError:
        return "somebody"
