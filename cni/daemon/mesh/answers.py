"""Decides which peers answer through their tunnels, from the bytes that a device has received from each. Pure.

The cluster's store may lack the document of a running node: the store may have lost it, or refuse a new one. A peer
that receives a packet answers within ten seconds, with a packet or a keepalive (WireGuard's paper, section 6.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SILENT = 15.0  # seconds without a byte after which a peer that is probed does not answer


@dataclass(frozen=True, slots=True)
class _Received:
    received: int
    at: float


class Answers:
    """The answers on one device. Times in seconds on a monotonic clock. For one thread at a time."""

    def __init__(self) -> None:
        self._last: dict[str, _Received] = {}

    def note(self, received: Mapping[str, int], now: float) -> None:
        """Take in the bytes that the device has received from each peer, by key: a count that changed is an answer at
        `now`, and so is a peer's first count. Peers that are not among them are forgotten."""
        self._last = {
            key: last if (last := self._last.get(key)) is not None and last.received == count else _Received(count, now)
            for key, count in received.items()
        }

    def answers(self, key: str, now: float) -> bool:
        """Whether the peer has sent anything within `SILENT` seconds."""
        last = self._last.get(key)
        return last is not None and now - last.at < SILENT
