"""Which peers answer by their tunnels, told by what a device has received from each. Values alone.

The cluster's store may be wrong about a node: it may have lost the node's word, or refuse a new one. A peer that is
sent a packet answers within ten seconds, with one of its own or with a keepalive (WireGuard's paper, section 6.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SILENT = 15.0  # seconds without a byte after which a peer that is probed does not answer


@dataclass(frozen=True, slots=True)
class _Heard:
    received: int
    at: float


class Answers:
    """Of one device. Times in seconds on a clock that is never set. One thread at a time."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}

    def note(self, received: Mapping[str, int], now: float) -> None:
        """The bytes that the device has received from each peer, by key. The first look counts as an answer."""
        self._heard = {
            key: known
            if (known := self._heard.get(key)) is not None and known.received == count
            else _Heard(count, now)
            for key, count in received.items()
        }

    def answers(self, key: str, now: float) -> bool:
        """Whether the peer was heard of within `SILENT` seconds."""
        known = self._heard.get(key)
        return known is not None and now - known.at < SILENT
