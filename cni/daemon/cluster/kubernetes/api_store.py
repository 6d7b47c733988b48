"""The API server of Kubernetes as the cluster's store: each record is one object (`objects.py`).

Creating an object is the claim: the API server refuses the second one of a name. Conditions are checked by reading the
object, and the change is made on the condition that the object's resource version is still the one read; a change that
was overtaken is tried again from the read. A transaction over several records is no transaction here: all conditions
are read first, and each change has its own. The daemon makes one such only to delete the claims of a departed node,
where every single deletion is right.

A lease is an object Lease of `coordination.k8s.io`, which `lease_ring.py` looks after. Every object is owned by this
node's Node, so that deleting the Node releases all that the node holds.
"""

from __future__ import annotations

import contextlib
import http
import logging
import queue
import random
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from cni.daemon.cluster.kubernetes.api_server import ApiServer, Refused
from cni.daemon.cluster.kubernetes.lease_ring import LeaseRing
from cni.daemon.cluster.kubernetes.objects import (
    CLAIM_LABEL,
    CLAIMS,
    KIND_OF,
    NODES,
    PATHS,
    Change,
    Machine,
    Stored,
    is_outdated,
    lease_name,
    micro_time,
    new_lease,
    new_object,
    object_name,
    plural_of,
    read_change,
    read_object,
)
from cni.daemon.cluster.store import (
    NOT_FOUND,
    OUT_OF_RANGE,
    REFUSED,
    Compacted,
    Compare,
    Delete,
    Event,
    Get,
    KeyValue,
    Put,
    Step,
    StoreError,
    Unreachable,
)

log = logging.getLogger(__name__)

PAGE = 500  # objects in one answer
TRIES = 8  # of a change that others overtake
PROBE = 30.0  # seconds between two checks of the server of the watch
STREAM = 300  # seconds after which the API server ends a watch
PROGRESS = 15.0  # seconds without a change after which a watch reports progress

Lines = queue.SimpleQueue[tuple[str, Change | Exception | None]]  # of the streams, each with its kind of object


class KubernetesStore:
    """The cluster's API server. Any thread may use it."""

    name = "the API server"

    def __init__(self, base: str, machine: Machine, name: str, server: ApiServer, ring: LeaseRing) -> None:
        """`base`: the prefix of every key; `machine`, `name`: the object that stands for this machine."""
        self._base, self._server, self._ring = base, server, ring
        self._machine, self._machine_name = machine, name
        self._leases = ring.path
        self._own = ""  # this node's identity, known when its document is written
        self._has_machine = False  # whether this machine's object has been seen
        self._probed = time.monotonic()
        self._reached: tuple[int, dict[str, int]] = (0, {})  # what the last watch has told, and of each stream

    @property
    def local_address(self) -> str:
        """This node's address towards the API server; "" before the first connection."""
        return self._server.local_address

    @property
    def endpoint(self) -> str:
        """The API server's URL."""
        return self._server.url.geturl()

    @property
    def newest(self) -> int:
        """0: an answer of the API names the version of its object, and not the store's."""
        return 0

    # --- records -----------------------------------------------------------------------------------------------------

    def read(self, prefix: str, revision: int = 0) -> tuple[list[KeyValue], int]:
        """Every record of one kind, and the resource version of the list; with a revision, that revision: the API has
        no reading of several kinds at one. Raises StoreError."""
        kind = prefix.removeprefix(self._base).strip("/")
        plural = plural_of(kind)
        query = {"limit": str(PAGE)} | ({"labelSelector": f"{CLAIM_LABEL}={kind}"} if plural == CLAIMS else {})
        found: list[Stored] = []
        while True:
            answer = self._call("GET", f"{PATHS[plural]}?{urlencode(query)}")
            found += [read_object(self._base, plural, raw) for raw in answer.get("items") or ()]
            more = answer.get("metadata", {}).get("continue", "")
            if not more:
                break
            query["continue"] = more
        if plural == NODES:
            self._ring.reset(found)
        return [stored.item for stored in found], revision or int(answer["metadata"]["resourceVersion"])

    def at(self, key: str, revision: int) -> KeyValue | None:
        """The record as of the revision at which it was last changed. The API has no earlier states: an object that has
        changed since, or is gone, raises StoreError with code OUT_OF_RANGE; one that has an earlier revision is of a
        store that went back."""
        stored = self._get(key)
        if stored is None or stored.item.changed > revision:
            raise StoreError(OUT_OF_RANGE, "the API server has no earlier states")
        return stored.item

    def transact(
        self, when: Sequence[Compare], then: Sequence[Step], other: Sequence[Step] = ()
    ) -> tuple[bool, list[KeyValue]]:
        """Do `then` if every condition holds, else `other`. Returns whether the conditions held, and what the `Get`s
        found. Raises StoreError."""
        for attempt in range(TRIES):
            present = {key: self._get(key) for key in {condition.key for condition in when}}
            holds = all(_holds(condition, present[condition.key]) for condition in when)
            found: list[KeyValue] = []
            steps = then if holds else other
            owner = self._owner_of([step for step in steps if isinstance(step, Put)])
            try:
                for step in steps:
                    known = present[step.key] if step.key in present else self._get(step.key)
                    if isinstance(step, Get):
                        found += [known.item] if known is not None else []
                    elif isinstance(step, Put):
                        self._write(step, known, owner)
                    else:
                        self._delete(step, known)
            except _Overtaken:
                time.sleep(random.uniform(0, 0.02 * (attempt + 1)))
                continue
            return holds, found
        raise Unreachable(f"others changed {when[0].key if when else 'a record'} {TRIES} times meanwhile")

    def _owner_of(self, writes: Sequence[Put]) -> dict[str, Any] | None:
        """The owner of the objects that are about to be written, asked for once for all. Raises StoreError, also if
        the lease of a write has ended."""
        for lease in {write.lease for write in writes if write.lease}:
            if not self._has_lease(lease):
                raise StoreError(NOT_FOUND, f"the Lease {lease_name(lease)} has ended")
        return self._machine_reference() if writes else None

    def _write(self, step: Put, known: Stored | None, owner: dict[str, Any] | None) -> None:
        """Create or change the object of a record. Raises _Overtaken, StoreError."""
        plural, name = self._object(step.key)
        if plural == NODES:
            self._own = name
        body = new_object(plural, name, step.value, step.lease, owner)
        if known is None:
            self._change("POST", PATHS[plural], body)
            return
        body["metadata"] |= {"uid": known.uid, "resourceVersion": known.version}
        self._change("PUT", f"{PATHS[plural]}/{name}", body)

    def _delete(self, step: Delete, known: Stored | None) -> None:
        if known is None:
            return
        plural, name = self._object(step.key)
        unchanged = {"uid": known.uid, "resourceVersion": known.version}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": unchanged}
        self._change("DELETE", f"{PATHS[plural]}/{name}", options)

    def _change(self, method: str, path: str, body: dict[str, Any]) -> None:
        """One change of an object. Raises _Overtaken if the object is another one meanwhile."""
        try:
            self._server.call(method, path, body)
        except Refused as error:
            if error.code in (http.HTTPStatus.CONFLICT, http.HTTPStatus.NOT_FOUND) and _is_of_an_object(error):
                raise _Overtaken(str(error)) from error
            raise _named(error) from error

    def _object(self, key: str) -> tuple[str, str]:
        """The plural and the name of the object of a record."""
        kind, _, name = key.removeprefix(self._base).partition("/")
        return plural_of(kind), object_name(kind, name)

    def _get(self, key: str) -> Stored | None:
        plural, name = self._object(key)
        try:
            answer = self._server.call("GET", f"{PATHS[plural]}/{name}")
        except Refused as error:
            if error.code == http.HTTPStatus.NOT_FOUND and _is_of_an_object(error):
                return None
            raise _named(error) from error
        return read_object(self._base, plural, answer)

    def _machine_reference(self) -> dict[str, Any] | None:
        """The reference to this machine's object, for the owner of an object; None for a machine without one, if its
        kind needs none. Raises StoreError if it was there and is deleted: what its node creates would not last."""
        name, machine = self._machine_name, self._machine
        try:
            found = self._server.call("GET", f"{machine.path}/{name}")
        except Refused as error:
            if error.code != http.HTTPStatus.NOT_FOUND or not _is_of_an_object(error):
                raise _named(error) from error
            if self._has_machine:
                text = f"the {machine.kind} {name} was deleted, and with it what this node had claimed; {machine.again}"
            elif machine.required:
                text = f"there is no {machine.kind} {name}; {machine.again}"
            else:
                return None
            raise StoreError(REFUSED, text) from error
        self._has_machine = True
        return machine.reference(name, found["metadata"]["uid"])

    # --- leases ------------------------------------------------------------------------------------------------------

    def grant(self, seconds: int) -> int:
        """A new lease with a life of `seconds`. Raises StoreError."""
        lease = secrets.randbits(62) | 1
        now = datetime.now(UTC)
        self._call("POST", self._leases, new_lease(lease, seconds, self._machine_name, now, self._machine_reference()))
        return lease

    def keep_alive(self, lease: int) -> bool:
        """Renew the lease; False if it has ended. Raises StoreError."""
        try:
            body = {"spec": {"renewTime": micro_time(datetime.now(UTC))}}
            self._server.call("PATCH", f"{self._leases}/{lease_name(lease)}", body)
        except Refused as error:
            if error.code == http.HTTPStatus.NOT_FOUND and _is_of_an_object(error):
                return False
            raise _named(error) from error
        return True

    def revoke(self, lease: int) -> None:
        """End the lease and delete this node's document, if it is under that lease. Errors are ignored: a lease that is
        not revoked expires."""
        with contextlib.suppress(StoreError, _Overtaken):
            stored = self._get(f"{self._base}node/{self._own}") if self._own else None
            if stored is not None and stored.item.lease == lease:
                self._delete(Delete(stored.item.key), stored)
                self._ring.delete_names(self._own)
            self._call("DELETE", f"{self._leases}/{lease_name(lease)}")

    def _has_lease(self, lease: int) -> bool:
        try:
            self._server.call("GET", f"{self._leases}/{lease_name(lease)}")
        except Refused as error:
            if error.code == http.HTTPStatus.NOT_FOUND and _is_of_an_object(error):
                return False
            raise _named(error) from error
        return True

    # --- watching ----------------------------------------------------------------------------------------------------

    def watch(self, prefix: str, revision: int) -> Iterator[tuple[int, list[Event]]]:
        """The changes of all records from `revision` on, as (revision, events). Ends when one of the streams ends.
        Raises Compacted, StoreError.

        The API has a stream for each kind of object, and no order between them: the revision that is told is the
        lowest one of those that they have reached, so that a later watch from it misses nothing.
        """
        before, positions = self._reached
        reached = dict(positions) if before == revision - 1 else dict.fromkeys(PATHS, revision - 1)
        lines: Lines = queue.SimpleQueue()
        stopped = threading.Event()
        for plural in PATHS:
            words = (plural, reached[plural], lines, stopped)
            threading.Thread(target=self._read_stream, args=words, name="api-watch", daemon=True).start()
        try:
            yield revision - 1, []
            while True:
                try:
                    plural, heard = lines.get(timeout=PROGRESS)
                except queue.Empty:
                    yield min(reached.values()), []
                    continue
                if heard is None:
                    return
                if not isinstance(heard, Change):
                    raise heard
                reached[plural] = max(reached[plural], heard.revision)
                self._reached = min(reached.values()), reached
                yield min(reached.values()), self._noted(plural, heard)
        finally:
            stopped.set()
            self._server.end_streams()

    def _noted(self, plural: str, change: Change) -> list[Event]:
        """The events of a change, after the ring has heard of it."""
        if change.event is None:
            return []
        if plural == NODES:
            item = change.event.item
            if change.event.gone:
                self._ring.gone(item.key.rpartition("/")[2])
            elif change.stored is not None:
                self._ring.present(change.stored)
        return [change.event]

    def _read_stream(self, plural: str, revision: int, lines: Lines, stopped: threading.Event) -> None:
        """Read one stream into the queue, until `stopped`; None or an error is the last that is put."""
        query = {
            "watch": "true",
            "resourceVersion": str(revision),
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(STREAM),
        }
        try:
            for line in self._server.lines(f"{PATHS[plural]}?{urlencode(query)}"):
                if stopped.is_set():
                    return
                lines.put((plural, read_change(self._base, plural, line)))
        except StoreError as error:
            lines.put((plural, Compacted(OUT_OF_RANGE, str(error)) if is_outdated(error) else _named(error)))
        except Exception as error:  # noqa: BLE001 - told to the thread that waits for the stream
            lines.put((plural, Unreachable(f"{type(error).__name__}: {error}")))
        else:
            lines.put((plural, None))

    def check(self, key: str) -> None:
        """Check at intervals that the API server answers, and end the watch if it does not; look after the Leases of
        the next nodes; load certificate files that have changed."""
        self._server.certificates.look()
        now = time.monotonic()
        if now - self._probed >= PROBE:
            self._probed = now
            try:
                self._server.call("GET", "/version")
            except Unreachable:
                self._server.end_streams()
                raise
        self._ring.look(self._own)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            return self._server.call(method, path, body)
        except Refused as error:
            raise _named(error) from error


class _Overtaken(Exception):
    """The object has changed since it was read."""


def _holds(condition: Compare, stored: Stored | None) -> bool:
    """Whether the record is as the condition says."""
    if condition.what == "VALUE":
        return stored is not None and stored.item.value == condition.value
    item = stored.item if stored is not None else KeyValue(condition.key, b"")
    found = {"CREATE": item.created, "MOD": item.changed, "LEASE": item.lease}[condition.what]
    return found == condition.value


def _is_of_an_object(error: Refused) -> bool:
    """Whether the refusal is about an object, not about a resource that the API server does not serve."""
    return "could not find the requested resource" not in str(error)


def _named(error: StoreError) -> StoreError:
    """The error with what an operator can do about it."""
    if error.code == http.HTTPStatus.NOT_FOUND:
        kinds = ", ".join(KIND_OF.values())
        return StoreError(REFUSED, f"{error}: are the definitions of {kinds} and the namespace there?")
    if error.code == http.HTTPStatus.FORBIDDEN:
        return StoreError(REFUSED, str(error))
    return error
