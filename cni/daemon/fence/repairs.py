"""That others change the fence's tables and that they were put right, told briefly; and how much work that may be."""

from __future__ import annotations

import time
from collections.abc import Callable

LASTS = 60.0  # seconds after the last repair for which it is a problem
BRIEF = 10.0  # seconds between two texts about it, however many repairs there are


class Repairs:
    """Counts repairs. One thread at a time. `clock` counts seconds and is set by nobody."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count = 0
        self._last = self._told = float("-inf")
        self._by = self._text = ""

    def happened(self, by: str) -> None:
        """The tables were put right; `by`: the program that had changed them, empty if it is not known."""
        self._count += 1
        self._last, self._by = self._clock(), by or self._by

    def text(self) -> str:
        """What there is to tell now: empty without a repair in the last minute, and changed only from time to time."""
        now = self._clock()
        if now - self._last >= LASTS:
            self._count, self._by, self._text, self._told = 0, "", "", float("-inf")
        elif self._last > self._told and now - self._told >= BRIEF:
            whom = f"another program ({self._by})" if self._by else "another program"
            times = f"{self._count} times" if self._count > 1 else "once"
            self._text = f"{whom} changed the tables of the isolation fence; they were put right {times}"
            self._told = now
        return self._text


class Pace:
    """Bounds a share of the time: work is done at once while it is little, and has to wait once it is much."""

    def __init__(self, share: float, credit: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`share`: of the time, between 0 and 1; `credit`: seconds of work that never wait, earned again in time."""
        self._share, self._credit, self._clock = share, credit, clock
        self._debt = 0.0
        self._at = clock()

    def worked(self, seconds: float) -> float:
        """So much was done just now; the seconds to wait before more is."""
        now = self._clock()
        self._debt = max(0.0, self._debt - (now - self._at) * self._share) + seconds
        self._at = now
        return max(0.0, self._debt - self._credit) / self._share
