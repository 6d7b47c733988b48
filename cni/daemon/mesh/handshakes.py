"""The time of each peer's last handshake by the boot clock, and the peers that a clock set back keeps from a handshake.

A WireGuard handshake initiation carries the sender's wall clock, and the receiver accepts only one that is later than
the last one of that peer (WireGuard's paper, section 5.1). After all clocks of a mesh were set back, no two nodes can
begin a handshake until the earlier time is reached again. Removing and adding a peer clears the stored time. The daemon
does so for peers without a handshake since the clock was set back, once their session is over and no traffic passes
anyway. If only one clock was set back, the other end initiates before that, and nothing needs to be done.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from cni.host.wg_types import PeerSeen

SET_BACK = 60.0  # seconds; less than REKEY_AFTER_TIME (120) has passed before the next handshake is due
OVERDUE = 185.0  # seconds: REJECT_AFTER_TIME (180) and a margin; no session is older (WireGuard's paper, section 6.1)
JITTER = 2  # seconds: boringtun reports an age, so the time is computed anew at each reading


@dataclass(frozen=True, slots=True)
class _Handshake:
    stamp: int  # Unix seconds as the device reports it
    at: float  # seconds on the boot clock


class Handshakes:
    """The last handshakes on all devices. Times in seconds. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[tuple[str, str], _Handshake] = {}
        self._read_at: dict[str, float] = {}
        self._forgotten: dict[tuple[str, str], float] = {}
        self._ahead: float | None = None  # the wall clock less the boot clock
        self._set_back = -math.inf

    def remember(self, ahead: float) -> None:
        """Set the difference between wall clock and boot clock that an earlier daemon of this boot has recorded."""
        with self._lock:
            self._ahead = ahead

    def note(self, device: str, peers: Mapping[str, PeerSeen], unix: float, boot: float) -> dict[str, float]:
        """Take in a reading of a device. Returns the seconds since each peer's last handshake, infinite for none.
        `unix`, `boot`: the wall clock and the boot clock."""
        with self._lock:
            if self._ahead is not None and unix - boot < self._ahead - SET_BACK:
                self._set_back = boot
            self._ahead = unix - boot
            for key, seen in peers.items():
                self._note((device, key), seen.last_handshake, unix, boot)
            self._read_at[device] = boot
            for gone in [peer for peer in self._last if peer[0] == device and peer[1] not in peers]:
                del self._last[gone]
            handshakes = ((key, self._last.get((device, key))) for key in peers)
            return {key: boot - last.at if last is not None else math.inf for key, last in handshakes}

    def _note(self, peer: tuple[str, str], stamp: int, unix: float, boot: float) -> None:
        last = self._last.get(peer)
        if stamp == 0:
            self._last.pop(peer, None)
        elif last is None or abs(stamp - last.stamp) > JITTER:
            age = max(0.0, unix - stamp)
            if last is not None:
                # A new handshake is younger than the previous reading, whatever the wall clock says.
                age = min(age, boot - self._read_at[peer[0]])
            self._last[peer] = _Handshake(stamp, boot - age)

    def refused(self, device: str, boot: float) -> list[str]:
        """The peers of a device that must be removed and added again before a handshake can begin. Each is returned
        once after a clock was set back."""
        with self._lock:
            blocked = [
                peer
                for peer, last in self._last.items()
                if peer[0] == device
                and last.at <= self._set_back
                and boot - last.at >= OVERDUE
                and self._forgotten.get(peer, -math.inf) < self._set_back
            ]
            self._forgotten.update(dict.fromkeys(blocked, boot))
            return [key for _, key in blocked]
