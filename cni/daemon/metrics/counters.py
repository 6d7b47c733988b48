"""Counts what happened since the daemon's start, from its events. Each handler only counts."""

from __future__ import annotations

import threading
from collections import Counter

from cni.daemon.events import AttachmentCollected, PathsMeasured, PeerChanged, ProblemBegan, Reconciled
from cni.overlay import wire


class Counters:
    """The counters of one daemon. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def on_collected(self, _: AttachmentCollected) -> None:
        """An attachment was released by garbage collection."""
        self._add("collected")

    def on_reconciled(self, event: Reconciled) -> None:
        """A comparison with the kernel ended."""
        self._add("reconciled" if event.complete else "reconcile-incomplete")

    def on_problem(self, _: ProblemBegan) -> None:
        """A problem began."""
        self._add("problems")

    def on_peer(self, event: PeerChanged) -> None:
        """A peer's health or endpoint changed."""
        self._add("peer-endpoint" if isinstance(event.message, wire.NatEndpointChanged) else "peer-health")

    def on_paths(self, _: PathsMeasured) -> None:
        """The path to a peer has another size."""
        self._add("path-sizes")

    def read(self) -> Counter[str]:
        """The counts so far; a name that never happened counts 0."""
        with self._lock:
            return self._counts.copy()

    def _add(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
