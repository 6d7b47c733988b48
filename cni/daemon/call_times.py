"""How long the calls of plugins took, by verb and result: what the histogram of the metrics is made from.

Verbs and codes are a closed list, so a client cannot make series.
"""

from __future__ import annotations

from collections.abc import Mapping

from cni.daemon.durations import Durations, Times
from cni.errors import CniError

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper bounds of the histogram, in seconds; a longer call is in the last one, which has no bound."""
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
OTHER = "other"


class CallTimes:
    """Counts calls since the daemon's start. Thread-safe."""

    def __init__(self) -> None:
        self._durations = Durations(BOUNDS)

    def note(self, verb: str, seconds: float, code: int) -> None:
        """Count one call. `code`: 0, or the number of the error; it is one of cni/errors.py."""
        self._durations.note((verb if verb in VERBS else OTHER, str(code)), seconds)

    def read(self) -> Mapping[tuple[str, ...], Times]:
        """The calls so far, by verb and code."""
        return self._durations.read()


def code_of(error: Exception | None) -> int:
    """The code of a call that ended with `error`; 0 for None."""
    if error is None:
        return 0
    return error.code if isinstance(error, CniError) else CniError.code
