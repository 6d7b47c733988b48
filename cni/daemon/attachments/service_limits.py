"""What services may cost: how many new ones a minute, and how many that are empty keep their subnets. Pure.

A service has a subnet, of which a range has about a thousand, and pods may name services by annotation: without bounds
a thousand short-lived pods leave no subnet for anything else.
"""

from __future__ import annotations

from cni.daemon.model.records import Service

MINUTE = 60.0
MOST_ASKERS = 4096


class Rate:
    """How many new services each asker may bring about: a bucket that fills within a minute. Times in seconds."""

    def __init__(self, per_minute: int) -> None:
        self._most = float(per_minute)
        self._left: dict[str, tuple[float, float]] = {}  # what is left of each asker's, and when that was

    def take(self, asker: str, now: float) -> float:
        """0 if the asker may have one more, and has it now; else the seconds until it may."""
        left, since = self._left.pop(asker, (self._most, now))
        left = min(self._most, left + (now - since) * self._most / MINUTE)
        allowed = left >= 1
        if len(self._left) >= MOST_ASKERS:
            del self._left[next(iter(self._left))]  # the one that asked longest ago
        self._left[asker] = (left - 1 if allowed else left, now)
        return 0.0 if allowed else (1 - left) * MINUTE / self._most

    def give_back(self, asker: str) -> None:
        """What was taken last was not used."""
        if asker in self._left:
            left, since = self._left[asker]
            self._left[asker] = (min(self._most, left + 1), since)


class Idle:
    """Since when services have been empty, in seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def note(self, service: str, used: bool, now: float) -> None:
        """Somebody has left the service."""
        if used:
            self._since.pop(service, None)
        else:
            self._since[service] = now

    def over(self, idle: list[Service], kept: int) -> list[Service]:
        """Those of `idle` that are more than `kept`, the longest empty first; one of unknown age is the oldest."""
        self._since = {each.name: self._since[each.name] for each in idle if each.name in self._since}
        order = sorted(idle, key=lambda each: self._since.get(each.name, -1.0))
        return order[: max(0, len(order) - kept)]
