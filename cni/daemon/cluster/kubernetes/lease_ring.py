"""Deletes the documents of nodes whose Lease has ended: Kubernetes deletes nothing when a Lease expires.

Each node looks after the next nodes in the order of identities: a cluster of any size costs the API server a few reads
of each node in `LOOK` seconds, and watchers see a node's end as one change. A Lease counts as ended if its `renewTime`
has not changed for its duration by the clock of the node that looks; the clocks of two nodes are not compared. The
Lease is deleted on the condition that it is unchanged, and then the document: a node that renews meanwhile keeps both,
and one that renews later sees that its Lease is gone and publishes again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from cni.daemon.cluster.kubernetes.api_server import ApiServer, Refused, namespace_of_pod
from cni.daemon.cluster.kubernetes.objects import NAMES, NODE_LABEL, NODES, PATHS, Stored, lease_name
from cni.daemon.cluster.store import StoreError

log = logging.getLogger(__name__)

LOOK = 10.0  # seconds between two looks
WATCHED = 3  # nodes that a node looks after: so many neighbours may be gone together
NOT_FOUND, CONFLICT = 404, 409


@dataclass(frozen=True)
class _Seen:
    """A Lease as it was read: its number, its version, and since when it has not changed, on the monotonic clock."""

    lease: int
    version: str
    since: float


def successors(own: str, others: Mapping[str, object], count: int = WATCHED) -> list[str]:
    """The identities that follow `own` in the ring of all identities, at most `count`."""
    ring = sorted(others.keys() - {own})
    start = next((n for n, identity in enumerate(ring) if identity > own), 0)
    return (ring[start:] + ring[:start])[:count]


class LeaseRing:
    """This node's part of the ring. Any thread may tell it of documents; one thread calls `look`."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        """`namespace`: of the Leases; that of the pod if it is empty."""
        self._server = server
        self.path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace or namespace_of_pod()}/leases"
        self._lock = threading.Lock()
        self._documents: dict[str, Stored] = {}
        self._seen: dict[str, _Seen] = {}
        self._looked = time.monotonic()

    def present(self, stored: Stored) -> None:
        """A document is there, or has changed."""
        with self._lock:
            self._documents[stored.item.key.rpartition("/")[2]] = stored

    def gone(self, identity: str) -> None:
        """A document is gone."""
        with self._lock:
            self._documents.pop(identity, None)

    def reset(self, documents: list[Stored]) -> None:
        """Take in a full read."""
        with self._lock:
            self._documents = {stored.item.key.rpartition("/")[2]: stored for stored in documents}

    def look(self, own: str) -> None:
        """Look after the next nodes, if it is due. Raises StoreError."""
        now = time.monotonic()
        if not own or now - self._looked < LOOK:
            return
        self._looked = now
        with self._lock:
            documents = dict(self._documents)
        next_ones = successors(own, documents)
        self._seen = {identity: seen for identity, seen in self._seen.items() if identity in next_ones}
        for identity in next_ones:
            if self._has_ended(identity, documents[identity].item.lease, now):
                self._bury(identity, documents[identity])

    def _has_ended(self, identity: str, lease: int, now: float) -> bool:
        """Whether the node's Lease is gone, or has not been renewed for its duration; a Lease that is not renewed is
        deleted."""
        if not lease:
            return False
        found = self._get(f"{self.path}/{lease_name(lease)}")
        if found is None:
            return True
        version = str(found["metadata"]["resourceVersion"])
        seen = self._seen.get(identity)
        if seen is None or (seen.lease, seen.version) != (lease, version):
            self._seen[identity] = _Seen(lease, version, now)
            return False
        duration = float(found.get("spec", {}).get("leaseDurationSeconds", 0) or 0)
        if now - seen.since < max(duration, LOOK):
            return False
        unchanged = {"preconditions": {"uid": found["metadata"]["uid"], "resourceVersion": version}}
        return self._delete(f"{self.path}/{lease_name(lease)}", unchanged)

    def _bury(self, identity: str, stored: Stored) -> None:
        """Delete the document, unless it has changed."""
        unchanged = {"preconditions": {"uid": stored.uid, "resourceVersion": stored.version}}
        if self._delete(f"{PATHS[NODES]}/{identity}", unchanged):
            self.delete_names(identity)
            log.info("the node %s has not renewed its Lease: its document is withdrawn", identity)

    def delete_names(self, identity: str) -> None:
        """Delete the names that a node has published. Raises StoreError."""
        query = urlencode({"labelSelector": f"{NODE_LABEL}={identity}"})
        self._server.call("DELETE", f"{PATHS[NAMES]}?{query}")

    def _get(self, path: str) -> dict[str, Any] | None:
        try:
            return self._server.call("GET", path)
        except Refused as error:
            if error.code == NOT_FOUND:
                return None
            raise

    def _delete(self, path: str, options: dict[str, Any]) -> bool:
        """Delete the object on the conditions; whether it is gone. Raises StoreError."""
        try:
            self._server.call("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", **options})
        except StoreError as error:
            if error.code in (NOT_FOUND, CONFLICT):
                return error.code == NOT_FOUND
            raise
        return True
