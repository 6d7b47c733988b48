"""Which peers do not answer although this node calls them.

A peer counts as silent when it has no session (no handshake for `wireguard.DEAD` seconds), has been a peer for
`GRACE` seconds, and this node has called it: it has an endpoint, and a keepalive, or packets were sent to it for
`GRACE` seconds without an answer. A peer without an endpoint calls itself, and may be switched off; so may guests and
edge peers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cni.daemon.model.wireguard import DEAD, Target
from cni.host.wg_types import PeerSeen

GRACE = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class _Calls:
    """`since`: when the peer was first seen; `unanswered_since`: when the first packet was sent after the last one was
    received, None if none was."""

    since: float
    sent: int
    received: int
    unanswered_since: float | None = None


class Silence:
    """What each peer of each device has answered. For one thread at a time, except `of`."""

    def __init__(self) -> None:
        self._calls: dict[str, dict[str, _Calls]] = {}
        self._silent: dict[str, dict[str, Target]] = {}

    def note(
        self,
        device: str,
        targets: Mapping[str, Target],
        peers: Mapping[str, PeerSeen],
        ages: Mapping[str, float],
        now: float,
    ) -> None:
        """Take in a reading of the device. `ages`: seconds since each peer's last handshake; `now`: seconds of the
        boot clock."""
        before = self._calls.get(device, {})
        calls = self._calls[device] = {key: _calls(before.get(key), seen, now) for key, seen in peers.items()}
        self._silent[device] = {
            key: target
            for key, target in targets.items()
            if key in calls and target.endpoints and not target.owner and ages[key] >= DEAD
            if now - calls[key].since >= GRACE and (target.keepalive or _is_unanswered(calls[key], now))
        }

    def of(self, device: str) -> Mapping[str, Target]:
        """The silent peers of a device, by public key; the value never changes."""
        return self._silent.get(device, {})

    def forget(self, device: str) -> None:
        """Drop the state of a device that was removed."""
        self._calls.pop(device, None)
        self._silent.pop(device, None)


def _calls(before: _Calls | None, seen: PeerSeen, now: float) -> _Calls:
    if before is None:
        return _Calls(now, seen.sent, seen.received)
    if seen.received != before.received:
        return _Calls(before.since, seen.sent, seen.received)
    first = now if seen.sent != before.sent and before.unanswered_since is None else before.unanswered_since
    return _Calls(before.since, seen.sent, seen.received, first)


def _is_unanswered(calls: _Calls, now: float) -> bool:
    return calls.unanswered_since is not None and now - calls.unanswered_since >= GRACE
