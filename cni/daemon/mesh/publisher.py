"""This node's word in etcd, under its lease: said, kept, and never said over somebody else's."""

from __future__ import annotations

import logging

import msgspec

from cni.daemon.mesh.etcd import Etcd
from cni.daemon.mesh.etcd_wire import NOT_FOUND, EtcdError, Get, Is, Put
from cni.daemon.mesh.store_records import NodeDoc

log = logging.getLogger(__name__)


class Publisher:
    """Of one node. One thread, but for `keep`, which another may call."""

    def __init__(self, etcd: Etcd, own: str, seconds: int) -> None:
        """`own`: the key in etcd under which the word stands; `seconds`: how long a lease lives."""
        self._etcd, self._own, self._seconds = etcd, own, seconds
        self.lease = 0
        self._said = b""

    def stands(self, doc: NodeDoc, shown: NodeDoc | None) -> bool:
        """Whether this is what was said, and what the watch has last `shown`."""
        body = msgspec.json.encode(doc)
        return bool(self.lease) and body == self._said and shown is not None and msgspec.json.encode(shown) == body

    def say(self, doc: NodeDoc) -> str | None:
        """It stands in etcd, or somebody else speaks as this node: who. Raises EtcdError."""
        body = msgspec.json.encode(doc)
        if not self.lease:
            self.lease = self._resume(doc.place) or self._etcd.grant(self._seconds)
        put = [Put(self._own, body, self.lease)]
        try:
            done, found = self._etcd.transact([Is(self._own, "LEASE", self.lease)], put, [Get(self._own)])
            if not done:
                done, found = self._etcd.transact([Is(self._own, "CREATE", 0)], put, [Get(self._own)])
        except EtcdError as error:
            if error.code == NOT_FOUND:
                self._forget()
            raise
        if not done and found:
            return _who(found[0].value)
        self._said = body
        return None

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
        self.lease, self._said = 0, b""

    def _resume(self, place: str) -> int:
        """The lease under which this very daemon's predecessor spoke, if it lives."""
        _, found = self._etcd.transact([], [Get(self._own)])
        if found and found[0].lease and _place_of(found[0].value) == place:
            return found[0].lease if self._etcd.keep_alive(found[0].lease) else 0
        return 0


def _place_of(value: bytes) -> str:
    try:
        return msgspec.json.decode(value, type=NodeDoc).place
    except msgspec.DecodeError:
        return ""


def _who(value: bytes) -> str:
    try:
        other = msgspec.json.decode(value, type=NodeDoc)
        return f"{other.name} ({', '.join(other.hosts)})"
    except msgspec.DecodeError:
        return "somebody"
