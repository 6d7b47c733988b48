"""Keeps this node's view of the cluster's store up to date: one full read, then etcd's watch."""

from __future__ import annotations

import logging
import threading
import time

from cni.daemon.cluster.name_records import NameRecords
from cni.daemon.cluster.reading import as_records, everything
from cni.daemon.cluster.store import (
    OUT_OF_RANGE,
    PATIENCE,
    QUIET,
    ClusterStore,
    Compacted,
    Event,
    StoreError,
    Unreachable,
)
from cni.daemon.cluster.store_history import StoreHistory
from cni.daemon.cluster.view import ClusterView
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.identity import Identity
from cni.host.worker import beat

log = logging.getLogger(__name__)

STEP = "following the cluster's store"


class Signals:
    """What the threads of one cluster tell one another."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.dirty = threading.Event()  # there may be a change to publish
        self.pending = threading.Event()  # there may be a change of the view to apply to the mesh

    def end(self) -> None:
        """Let every thread end."""
        for event in (self.stop, self.dirty, self.pending):
            event.set()


class StoreWatch:
    """Follows the store of one cluster. For one thread; `synced` may be read by others."""

    def __init__(
        self,
        *,
        store: ClusterStore,
        view: ClusterView,
        names: NameRecords,
        identity: Identity,
        board: ProblemBoard,
        signals: Signals,
    ) -> None:
        self._store, self._view, self._names, self._identity = store, view, names, identity
        self._board, self._signals = board, signals
        self._history = StoreHistory(view.keys.node(""))
        self._synced = False
        self._told = 0  # the revision up to which the store has told this node everything

    @property
    def store_name(self) -> str:
        """What the store is, in a sentence."""
        return self._store.name

    @property
    def synced(self) -> bool:
        """Whether all records have been read and the watch runs."""
        return self._synced

    @property
    def lag(self) -> int | None:
        """How many revisions the store is ahead of what it has told this node; None if that is unknown."""
        return max(0, self._store.newest - self._told) if self._told and self._store.newest else None

    def follow(self) -> None:
        """Read all records, then watch. Returns only when all records must be read again."""
        differs = self._differs()
        items, revision = everything(self._store, self._view.keys.base)
        back = differs or self._history.went_back(items, revision)
        if back:
            text = (
                f"{self._store.name} has an earlier state: revision {self._history.revision} was seen here, "
                f"and it has {revision} now"
            )
            remedy = "each node puts its claims and its document back"
            self._board.note("store-went-back", "", f"{text} (an older backup, or a new store); {remedy}")
        of_names = self._store.read(self._names.base, revision)[0]
        with self._view.lock:
            self._view.load(as_records(items), time.monotonic(), again=not back)
        self._names.load([(item.key, None if item.cut else item.value) for item in of_names])
        self._history.read(items, revision)
        self._told = revision
        self._synced = True
        self.note_reached()
        self._board.clear("cluster-step", STEP)
        self._signals.pending.set()
        self._signals.dirty.set()
        while not self._signals.stop.is_set():
            try:
                began = time.monotonic()
                beat(QUIET + PATIENCE)
                for now, events in self._store.watch(self._view.keys.base, self._history.revision + 1):
                    if now < self._history.revision:
                        log.info("reading all cluster records again: the store was restored to an earlier revision")
                        return
                    self._apply_events(events)
                    self._told = now
                    if events:
                        self._history.follow(events, now)
                    self.note_reached()
                    beat(QUIET + PATIENCE)
                    if self._signals.stop.is_set():
                        return
                if self._differs():
                    return
            except Compacted as error:
                log.info("reading all cluster records again: %s", error)
                return
            except StoreError as error:
                self._synced = False
                if isinstance(error, Unreachable) and time.monotonic() - began > PATIENCE:
                    log.warning("reading all cluster records again: %s", error)
                    return  # another endpoint may answer at once
                raise

    def _differs(self) -> bool:
        """Whether the store's history does not have the last change that this node saw. Raises StoreError."""
        last = self._history.last
        if last is None:
            return False
        try:
            return self._history.differs(self._store.at(last.key, last.changed))
        except StoreError as error:
            if error.code != OUT_OF_RANGE:
                raise
            return False  # compacted, or in the future: the full read tells

    def check(self) -> None:
        """Check the endpoint of the watch. May be called by another thread. Raises StoreError."""
        self._store.check(self._view.keys.base)

    def note_reached(self) -> None:
        """Clear the problems that the store could not be reached. May be called by another thread."""
        for code in ("store-unreachable", "store-not-etcd"):
            self._board.clear(code)

    def _apply_events(self, events: list[Event]) -> None:
        own = self._view.keys.node(self._identity.member().identity)
        if self._apply_names(events) == len(events):
            self._names.drop_departed()
            return  # nothing of the mesh has changed
        with self._view.lock:
            for event in events:
                item = event.item
                if event.gone:
                    self._view.gone(item.key, time.monotonic())
                else:
                    self._view.put(item.key, None if item.cut else item.value, item.created)
                if item.key == own:
                    self._signals.dirty.set()
            self._view.settle(time.monotonic())
            if self._view.overwritten(self._identity.member().identity):
                self._signals.dirty.set()
        if events:
            self._names.nodes_changed()
            self._names.drop_departed()
            self._signals.pending.set()

    def _apply_names(self, events: list[Event]) -> int:
        """Take in the changes of names among the events; returns how many of the events those are."""
        lost, count = self._names.lost_own, 0
        for event in events:
            item = event.item
            if not self._names.owns(item.key):
                continue
            count += 1
            if event.gone:
                self._names.gone(item.key)
            else:
                self._names.put(item.key, None if item.cut else item.value)
        if lost != self._names.lost_own:
            self._signals.dirty.set()
        return count
