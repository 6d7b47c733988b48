"""Follows the objects of one resource of Kubernetes' API: a list, then a watch from the list's version on.

The objects of the last answer stay while the API server does not answer. A watch that ends is begun again from the last
version that it told, which bookmarks renew; a version that the API server no longer has (410) leads to a new list, and
what differs from the objects before is reported as changes. An object is kept only as the small value that `read` of
its resource makes of it: a change of the object that leaves this value as it was is not reported.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import msgspec

from cni.daemon.cluster.kubernetes.api_server import SILENCE, ApiServer
from cni.daemon.cluster.store import PATIENCE, StoreError, Unreachable
from cni.daemon.kubernetes.objects import Resource
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.tables import Table
from cni.host.worker import Crew, beat

log = logging.getLogger(__name__)

T = TypeVar("T")
PAGE = 200  # objects in one answer: of Pods some 2 MB
STREAM = 300  # seconds after which the API server ends a watch
BACKOFF = (0.5, 10.0)  # seconds between two attempts: first and largest pause
GONE = 410


class ResourceFollower(Generic[T]):
    """The objects of one resource, as the API server last told. Any thread may read them."""

    def __init__(
        self,
        resource: Resource[T],
        server: ApiServer,
        *,
        board: ProblemBoard,
        crew: Crew,
        kept: Table[T] | None = None,
        on_change: Callable[[Mapping[str, T | None]], None] = lambda _: None,
    ) -> None:
        """`server`: of this follower alone, as ending its streams ends the watch. `kept`: where the objects are
        recorded, so that a daemon that starts while the API server does not answer has them. `on_change`: called by
        the follower's thread with what has changed, None for an object that is gone; it must not block."""
        self._resource, self._server, self._on_change = resource, server, on_change
        self._board, self._kept = board, kept
        self._lock = threading.Lock()
        self._objects: dict[str, T] = kept.all() if kept is not None else {}
        self._version = ""  # "": a list is due
        self._listed = threading.Event()
        self._stopped = threading.Event()
        self._worker = crew.worker(f"follow-{resource.name}", self._run)

    def start(self) -> None:
        """Start following."""
        self._worker.start()

    def stop(self) -> None:
        """Stop following."""
        self._worker.retire()
        self._stopped.set()
        self._server.end_streams()

    @property
    def is_complete(self) -> bool:
        """Whether every object was read once since the start of the daemon."""
        return self._listed.is_set()

    def get(self, key: str) -> T | None:
        """The object of that key, `namespace/name`, or `name` for an object of no namespace."""
        with self._lock:
            return self._objects.get(key)

    def all(self) -> dict[str, T]:
        """Every object by its key."""
        with self._lock:
            return dict(self._objects)

    def _run(self) -> None:
        pause = BACKOFF[0]
        while not self._stopped.is_set():
            try:
                if not self._version:
                    self._list()
                self._board.clear("kubernetes-not-followed", self._resource.name)
                self._watch()
                pause = BACKOFF[0]
                continue
            except StoreError as error:
                self._note(error)
            except ValueError as error:  # an answer in another form
                self._note(Unreachable(f"{type(error).__name__}: {error}"))
            beat(BACKOFF[1] + PATIENCE)
            self._stopped.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, BACKOFF[1])

    def _note(self, error: StoreError) -> None:
        """Note why the resource is not followed. That the API server does not answer is noted by the store's client."""
        if error.code == GONE:
            self._version = ""
        elif not isinstance(error, Unreachable) and not self._stopped.is_set():
            self._version = ""  # a list asks again with the token that is in the file then
            text = f"the {self._resource.name} of the cluster are as they were last read: {error}"
            self._board.note("kubernetes-not-followed", self._resource.name, text)

    def _list(self) -> None:
        """Read every object, and take in what differs. Raises StoreError, ValueError."""
        found: dict[str, T] = {}
        more = ""
        while True:
            words = {"limit": str(PAGE)} | ({"continue": more} if more else {})
            page = _read_page(self._server.fetch(self._resource.query(**words)))
            for raw in page.items or ():
                key, value = self._read(raw)
                if value is not None:
                    found[key] = value
            more = page.metadata.next_page
            if not more:
                break
        gone = dict.fromkeys(self._objects.keys() - found.keys())
        self._take_in({**found, **gone})
        self._version = page.metadata.version
        self._listed.set()

    def _watch(self) -> None:
        """Take in changes until the watch ends. Raises StoreError, ValueError."""
        query = self._resource.query(
            watch="true", resourceVersion=self._version, allowWatchBookmarks="true", timeoutSeconds=str(STREAM)
        )
        beat(SILENCE + 4 * PATIENCE)
        for line in self._server.lines(query):
            beat(SILENCE + 4 * PATIENCE)
            change = _read_change(line)
            if change.type == "ERROR":
                status = _read_status(change.object)
                raise StoreError(status.code, status.message)
            if change.type != "BOOKMARK":
                key, value = self._read(change.object)
                self._take_in({key: None if change.type == "DELETED" else value})
            self._version = _read_head(change.object).metadata.version

    def _read(self, raw: msgspec.Raw) -> tuple[str, T | None]:
        """The key of an object, and its value; None for an object that cannot be read."""
        metadata = _read_head(raw).metadata
        key = f"{metadata.namespace}/{metadata.name}" if metadata.namespace else metadata.name
        try:
            return key, self._resource.read(raw)
        except ValueError as error:
            log.warning("%s of %s has not the expected form: %s", key, self._resource.name, error)
            return key, None

    def _take_in(self, found: Mapping[str, T | None]) -> None:
        """Record and report what differs from the objects before."""
        with self._lock:
            changes = {key: value for key, value in found.items() if self._objects.get(key) != value}
            for key, value in changes.items():
                if value is None:
                    self._objects.pop(key, None)
                else:
                    self._objects[key] = value
        if changes:
            if self._kept is not None:
                self._kept.apply(changes)
            self._on_change(changes)


class _ListMetadata(msgspec.Struct):
    version: str = msgspec.field(default="", name="resourceVersion")
    next_page: str = msgspec.field(default="", name="continue")
    name: str = ""
    namespace: str = ""


class _Head(msgspec.Struct):
    metadata: _ListMetadata


class _Page(msgspec.Struct):
    metadata: _ListMetadata
    items: tuple[msgspec.Raw, ...] | None = None


class _Change(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""


_read_head = msgspec.json.Decoder(_Head).decode
_read_page = msgspec.json.Decoder(_Page).decode
_read_change = msgspec.json.Decoder(_Change).decode
_read_status = msgspec.json.Decoder(_Status).decode
