"""A small client of etcd v3, by the JSON gateway that every etcd serves beside gRPC (etcd's API reference, v3.4 on).

The transport selects the endpoint and renews the token, and does nothing else on its own. Keys are text, values bytes.
Any thread may use one `EtcdClient`: each thread has its own connection. The caller keeps the lease and the last
revision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cni.daemon import settings as settings_module
from cni.daemon.cluster.etcd_protocol import (
    after,
    b64,
    compare,
    read_done,
    read_lease,
    read_page,
    read_transaction,
    read_watch,
    revision_of,
    step,
)
from cni.daemon.cluster.etcd_transport import Transport
from cni.daemon.cluster.store import Compare, Event, KeyValue, Step, StoreError, TooLarge

T = TypeVar("T")

PAGE = 1000  # keys in one answer
MOST = 200_000  # keys below one prefix
MOST_BYTES = 256 << 20  # of values below one prefix


def _ignore(code: str, text: str) -> None:
    """For a client outside a daemon: its caller sees the errors."""


def _whole(answer: dict[str, Any]) -> Any:
    return answer


class EtcdClient:
    """The cluster's etcd."""

    def __init__(self, where: settings_module.Etcd, note: Callable[[str, str], None] = _ignore) -> None:
        """`note`: sets the problem of a code to a text, or clears it with an empty text."""
        self._transport = Transport(where, note)
        self._newest = 0

    # --- keys --------------------------------------------------------------------------------------------------------

    def read(self, prefix: str, revision: int = 0, most: int = MOST) -> tuple[list[KeyValue], int]:
        """Every key below the prefix as of one revision (0: the present one), and that revision. Raises StoreError.

        If there are more than `most` keys, or more than `MOST_BYTES` of values, the rest is left out, and the last item
        is the prefix itself with `cut` set.
        """
        start, end, limit = prefix.encode(), after(prefix.encode()), PAGE
        items: list[KeyValue] = []
        size = 0
        while True:
            try:
                page, now, more = self._page(start, end, revision, limit)
            except TooLarge:
                if limit > 1:
                    limit = max(1, limit // 8)
                    continue
                page, now, more = self._page(start, end, revision, 1, keys_only=True)
                page = [replace(item, cut=True) for item in page]
            revision = revision or now
            items += page
            size += sum(len(item.value) for item in page)
            if not more or not page:
                return items, revision
            if len(items) >= most or size >= MOST_BYTES:
                return [*items, KeyValue(prefix, b"", cut=True)], revision
            start = page[-1].raw + b"\0"

    def _page(
        self, start: bytes, end: bytes, revision: int, limit: int, keys_only: bool = False
    ) -> tuple[list[KeyValue], int, bool]:
        body: dict[str, Any] = {"key": b64(start), "range_end": b64(end), "limit": str(limit), "keys_only": keys_only}
        if revision:
            body["revision"] = str(revision)
        return self._call("/v3/kv/range", body, read_page)

    def at(self, key: str, revision: int) -> KeyValue | None:
        """The record at the key as of the revision; None if there was none. Raises StoreError, with code 11 if the
        store does not have that revision: it was compacted, or is in the future."""
        body = {"key": b64(key.encode(errors="surrogateescape")), "revision": str(revision)}
        items = self._call("/v3/kv/range", body, read_page)[0]
        return items[0] if items else None

    def transact(
        self, when: Sequence[Compare], then: Sequence[Step], other: Sequence[Step] = ()
    ) -> tuple[bool, list[KeyValue]]:
        """Do `then` if every condition holds, else `other`, atomically. Returns whether the conditions held, and what
        the `Get`s found. Raises StoreError."""
        body = {
            "compare": [compare(condition) for condition in when],
            "success": [step(operation) for operation in then],
            "failure": [step(operation) for operation in other],
        }
        return self._call("/v3/kv/txn", body, read_transaction)

    def put(self, key: str, value: bytes, lease: int = 0) -> None:
        """Write a key, under a lease unless it is 0. Raises StoreError, with code 5 if the lease has ended."""
        self._call("/v3/kv/put", {"key": b64(key.encode()), "value": b64(value), "lease": str(lease)}, read_done)

    # --- leases ------------------------------------------------------------------------------------------------------

    def grant(self, seconds: int) -> int:
        """A new lease with a life of `seconds`. Raises StoreError."""
        return self._call("/v3/lease/grant", {"TTL": str(seconds)}, read_lease)[0]

    def keep_alive(self, lease: int) -> bool:
        """Renew the lease for its full life; False if it has ended. Raises StoreError."""
        return self._call("/v3/lease/keepalive", {"ID": str(lease)}, read_lease)[1] > 0

    def revoke(self, lease: int) -> None:
        """End the lease and delete its keys. Errors are ignored: a lease that is not revoked expires."""
        with contextlib.suppress(StoreError):
            self._call("/v3/lease/revoke", {"ID": str(lease)})

    # --- watching ----------------------------------------------------------------------------------------------------

    def watch(self, prefix: str, revision: int) -> Iterator[tuple[int, list[Event]]]:
        """The changes below the prefix from `revision` on, as (revision, events); an item without events reports
        progress. Ends after a time of silence; the caller continues one after the last revision. Raises Compacted,
        StoreError.
        """
        body = {
            "create_request": {
                "key": b64(prefix.encode()),
                "range_end": b64(after(prefix.encode())),
                "start_revision": str(revision),
                "progress_notify": True,
                "fragment": True,  # otherwise one line may hold the events of a thousand keys
            }
        }
        for line in self._transport.lines("/v3/watch", body):
            yield read_watch(line)

    # --- the transport -----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What the store is, in a sentence."""
        return "etcd"

    @property
    def local_address(self) -> str:
        """This node's address towards etcd; "" before the first connection."""
        return self._transport.local_address

    @property
    def endpoint(self) -> str:
        """The endpoint that is asked first: the one that answered last."""
        return self._transport.first()

    @property
    def newest(self) -> int:
        """The highest revision that an answer has named; 0 before the first."""
        return self._newest

    def check(self, key: str) -> None:
        """Check that the endpoint of the running watch answers, with a read of `key`, and end the watch if it does not.
        Load certificate files that have changed."""
        self._transport.probe_streams("/v3/kv/range", {"key": b64(key.encode()), "serializable": True})
        self._transport.certificates.look()

    def _call(self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], T] = _whole) -> T:
        """One exchange with the first endpoint that answers; `read` makes a value of the answer. Raises StoreError."""

        def noted(answer: dict[str, Any]) -> T:
            self._newest = max(self._newest, revision_of(answer))
            return read(answer)

        return self._transport.call(path, body, noted)
