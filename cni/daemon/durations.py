"""How long something took, counted in the buckets of a histogram. One note costs some 2 microseconds."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Times:
    """`counts`: how many in each bucket of `bounds`, and above them; `total`: the sum of their seconds; `bounds`: the
    upper bounds of the buckets, in seconds."""

    counts: tuple[int, ...]
    total: float
    bounds: tuple[float, ...]


class Durations:
    """Counts since the daemon's start, by labels. Thread-safe."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds`: the upper bounds of the buckets, in seconds, the lowest first; what is longer is in the last
        bucket, which has no bound."""
        self._bounds = bounds
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._totals: dict[tuple[str, ...], float] = {}

    def note(self, labels: tuple[str, ...], seconds: float) -> None:
        """Count one. The caller bounds the number of different labels."""
        bucket = bisect_left(self._bounds, seconds)
        with self._lock:
            counts = self._counts.get(labels)
            if counts is None:
                counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
                self._totals[labels] = 0.0
            counts[bucket] += 1
            self._totals[labels] += seconds

    def read(self) -> Mapping[tuple[str, ...], Times]:
        """The counts so far, by labels."""
        with self._lock:
            return {key: Times(tuple(counts), self._totals[key], self._bounds) for key, counts in self._counts.items()}
