"""How long the calls of plugins took, by verb and result: what the histogram of the metrics is made from.

One call costs some 2 microseconds here. Verbs and codes are a closed list, so a client cannot make series.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from cni.errors import CniError

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper bounds of the histogram, in seconds; a longer call is in the last one, which has no bound."""
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Times:
    """The calls of one verb and code: how many in each of BOUNDS and above them, and the sum of their seconds."""

    counts: tuple[int, ...]
    total: float


class CallTimes:
    """Counts calls since the daemon's start. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], list[int]] = {}
        self._totals: dict[tuple[str, str], float] = {}

    def note(self, verb: str, seconds: float, code: int) -> None:
        """Count one call. `code`: 0, or the number of the error; it is one of cni/errors.py."""
        key, bucket = (verb if verb in VERBS else OTHER, str(code)), bisect_left(BOUNDS, seconds)
        with self._lock:
            counts = self._counts.get(key)
            if counts is None:
                counts = self._counts[key] = [0] * (len(BOUNDS) + 1)
                self._totals[key] = 0.0
            counts[bucket] += 1
            self._totals[key] += seconds

    def read(self) -> Mapping[tuple[str, str], Times]:
        """The calls so far, by verb and code."""
        with self._lock:
            return {key: Times(tuple(counts), self._totals[key]) for key, counts in self._counts.items()}


def code_of(error: Exception | None) -> int:
    """The code of a call that ended with `error`; 0 for None."""
    if error is None:
        return 0
    return error.code if isinstance(error, CniError) else CniError.code
