"""Which lines of the log are written, so that none repeats for ever. Pure but for its memory.

BURST equal lines are written as they come within FIRST seconds; further ones are counted. When the time is over, one
line tells the count, and the next time is twice as long, LONGEST at most. A line that has not come for twice its time
begins anew. So a line that comes every second for a day is written some 30 times, with its count each time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

BURST = 5  # equal lines that are written as they come
FIRST = 60.0  # seconds
LONGEST = 3600.0  # seconds
STEP = 1.0  # seconds between two looks for counts that are due
MOST = 512  # different lines that are remembered; the one that came longest ago is forgotten

Key = tuple[str, int, str]
"""Logger, level and message of a line."""


@dataclass(frozen=True, slots=True)
class _Seen:
    since: float
    last: float
    lasts: float = FIRST
    written: int = 0
    left_out: int = 0


class Repeats:
    """The lines of one log. One thread at a time. Times are in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[Key, _Seen] = {}
        self._next = 0.0  # when the lines are looked through again

    def writes(self, key: Key, now: float) -> bool:
        """Whether a line is written; if not, it is counted."""
        seen = self._seen.pop(key, None)
        if seen is None or now - seen.last > 2 * seen.lasts:
            seen = _Seen(now, now)
        writes = seen.written < (BURST if seen.lasts == FIRST else 1)
        written, left_out = seen.written + writes, seen.left_out + (not writes)
        self._seen[key] = replace(seen, last=now, written=written, left_out=left_out)  # at the end: it came last
        if len(self._seen) > MOST:
            del self._seen[next(iter(self._seen))]
        return writes

    def due(self, now: float) -> list[tuple[Key, int, float]]:
        """The lines whose count is to be told now, with the count and the seconds in which they came. They are looked
        through once in STEP, which takes 50 us: there may be a line for each attach."""
        if now < self._next:
            return []
        self._next, found = now + STEP, []
        for key, seen in list(self._seen.items()):
            if now - seen.since >= seen.lasts:
                if seen.left_out:
                    found.append((key, seen.left_out, now - seen.since))
                    longer = min(2 * seen.lasts, LONGEST)
                    self._seen[key] = replace(seen, since=now, lasts=longer, written=1, left_out=0)
                else:
                    self._seen[key] = replace(seen, since=now, written=0)
                if now - seen.last > 2 * seen.lasts:
                    del self._seen[key]
        return found
