"""Which attachments have their MAC watched: when each is looked at next, and at which end changes are heard."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from cni.daemon.model.records import AttachmentKey

Watched = tuple[AttachmentKey, float]
"""A watched attachment: its key, and when it was made."""
End = tuple[int, int]
"""A container's end of a veth: the id of its namespace, and its index there."""


class MacWatches:
    """The watched attachments. An operation takes the same time with one and with a thousand. Not thread-safe."""

    def __init__(self) -> None:
        self._due: list[tuple[float, float, Watched]] = []  # when, interval, attachment; also of forgotten ones
        self._ends: dict[End, Watched] = {}
        self._end_of: dict[Watched, End | None] = {}

    def push(self, when: float, interval: float, watched: Watched) -> None:
        """Watch the attachment: it is due at `when`, in seconds of the monotonic clock, `interval` after the last
        time."""
        self._end_of.setdefault(watched, None)
        heapq.heappush(self._due, (when, interval, watched))

    def listen(self, end: End, watched: Watched) -> None:
        """Let news of `end` lead to the attachment."""
        self._ends[end] = watched
        self._end_of[watched] = end

    def forget(self, watched: Watched) -> None:
        """No longer watch the attachment. Idempotent."""
        end = self._end_of.pop(watched, None)
        if end is not None and self._ends.get(end) == watched:
            del self._ends[end]

    def clear(self) -> None:
        """Forget all."""
        self._due.clear()
        self._ends.clear()
        self._end_of.clear()

    def empty(self) -> bool:
        return not self._end_of

    def next_at(self) -> float | None:
        """When the next attachment is due; None if none is watched."""
        while self._due and self._due[0][2] not in self._end_of:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def take(self, now: float) -> tuple[float, Watched] | None:
        """The interval and the attachment that is due; None if none is. The attachment stays watched."""
        when = self.next_at()
        return None if when is None or when > now else heapq.heappop(self._due)[1:]

    def heard(self, changed: Mapping[End, str] | None) -> list[tuple[Watched, str]]:
        """The attachments whose ends changed, with the MAC that was announced. None: all of those with an end, and a
        MAC that is not known ("")."""
        if changed is None:
            return [(watched, "") for watched in self._ends.values()]
        return [(self._ends[end], mac) for end, mac in changed.items() if end in self._ends]
