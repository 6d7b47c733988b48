"""Limits on services: how many new ones per minute, and how many empty ones keep their subnets. Pure.

A service takes a subnet, a range has about a thousand subnets, and pods may name services by annotation: without limits
a thousand short-lived pods would use up every subnet.
"""

from __future__ import annotations

from cni.daemon.model.records import Service

MINUTE = 60.0
MOST_ASKERS = 4096


class Rate:
    """Limits the new services of each asker: a token bucket that fills within a minute. Times in seconds."""

    def __init__(self, per_minute: int) -> None:
        self._most = float(per_minute)
        self._left: dict[str, tuple[float, float]] = {}  # by asker: tokens left, and when

    def take(self, asker: str, now: float) -> float:
        """Take one token and return 0; if the asker has none, return the seconds until it has one."""
        left, since = self._left.pop(asker, (self._most, now))
        left = min(self._most, left + (now - since) * self._most / MINUTE)
        allowed = left >= 1
        if len(self._left) >= MOST_ASKERS:
            del self._left[next(iter(self._left))]  # the asker whose last request is the oldest
        self._left[asker] = (left - 1 if allowed else left, now)
        return 0.0 if allowed else (1 - left) * MINUTE / self._most


class Idle:
    """When services became empty, in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def note(self, service: str, used: bool, now: float) -> None:
        """An attachment has left the service; `used`: whether the service has others."""
        if used:
            self._since.pop(service, None)
        else:
            self._since[service] = now

    def over(self, idle: list[Service], kept: int) -> list[Service]:
        """The services of `idle` in excess of `kept`, the longest empty first; one of unknown age counts as oldest."""
        self._since = {service.name: self._since[service.name] for service in idle if service.name in self._since}
        order = sorted(idle, key=lambda service: self._since.get(service.name, -1.0))
        return order[: max(0, len(order) - kept)]
