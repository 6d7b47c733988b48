"""Records that other programs changed the fence's tables and that they were repaired; and limits the repairs' CPU
time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LASTS = 60.0  # seconds after the last repair for which the problem is reported
BRIEF = 10.0  # seconds between two texts of the problem, however many repairs there are


class Repairs:
    """Counts repairs. One thread at a time. `clock` counts seconds and is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.total = 0  # since the daemon's start
        self._count = 0
        self._last = self._told = float("-inf")
        self._by = self._text = ""

    def happened(self, by: str) -> None:
        """Records a repair. `by`: the program that had changed the tables, empty if unknown."""
        self.total += 1
        self._count += 1
        self._last, self._by = self._clock(), by or self._by

    def text(self) -> str:
        """The problem's text now: empty without a repair in the last minute; it changes at most every `BRIEF`
        seconds.
        """
        now = self._clock()
        if now - self._last >= LASTS:
            self._count, self._by, self._text, self._told = 0, "", "", float("-inf")
        elif self._last > self._told and now - self._told >= BRIEF:
            program = f"another program ({self._by})" if self._by else "another program"
            times = f"{self._count} times" if self._count > 1 else "once"
            self._text = f"{program} changed the tables of the isolation fence; they were put right {times}"
            self._told = now
        return self._text


class Pace:
    """Limits work to a share of the time: little work is done at once, more than the credit has to wait."""

    def __init__(self, share: float, credit: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`share`: of the time, between 0 and 1; `credit`: seconds of work that never wait, regained over time."""
        self._share, self._credit, self._clock = share, credit, clock
        self._debt = 0.0
        self._at = clock()

    def worked(self, seconds: float) -> float:
        """Records seconds of work done just now; returns the seconds to wait before more is done."""
        now = self._clock()
        self._debt = max(0.0, self._debt - (now - self._at) * self._share) + seconds
        self._at = now
        return max(0.0, self._debt - self._credit) / self._share
