"""When each peer was last heard of, by a clock that nobody sets; and whom a clock that was set back keeps out.

WireGuard marks what begins a handshake with the sender's wall clock, and takes none that is not later than the last
one of that peer (its paper, section 5.1). So after all clocks of a mesh were put right from a time that was too late,
no two nodes can begin a handshake until that time has come again. A peer that is removed and added anew is not
remembered, so that is what is done to those who have not been heard of since, once their session is over and nothing
passes anyway. Where only one clock was set back, the other end begins before that, and nothing needs to be done.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from cni.host.wg_types import PeerSeen

SET_BACK = 60.0  # seconds; less than REKEY_AFTER_TIME (120) is made up for before the next handshake
OVERDUE = 185.0  # seconds: REJECT_AFTER_TIME (180) and some: no session is older (WireGuard's paper, section 6.1)
JITTER = 2  # seconds: boringtun says how long ago, so the time is reckoned anew at each look


@dataclass(frozen=True, slots=True)
class _Heard:
    stamp: int  # as the device says it
    at: float  # by the boot clock


class Handshakes:
    """Of all devices. Times in seconds. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: dict[tuple[str, str], _Heard] = {}
        self._looked: dict[str, float] = {}
        self._forgotten: dict[tuple[str, str], float] = {}
        self._ahead: float | None = None  # the wall clock less the boot clock
        self._set_back = -math.inf

    def remember(self, ahead: float) -> None:
        """What an earlier daemon of this boot has last seen of the clocks."""
        with self._lock:
            self._ahead = ahead

    def note(self, device: str, peers: Mapping[str, PeerSeen], unix: float, boot: float) -> dict[str, float]:
        """Look at a device: how long ago each peer was heard of, infinite for never. `unix`, `boot`: the clocks."""
        with self._lock:
            if self._ahead is not None and unix - boot < self._ahead - SET_BACK:
                self._set_back = boot
            self._ahead = unix - boot
            for key, seen in peers.items():
                self._note((device, key), seen.last_handshake, unix, boot)
            self._looked[device] = boot
            for gone in [which for which in self._heard if which[0] == device and which[1] not in peers]:
                del self._heard[gone]
            heard = ((key, self._heard.get((device, key))) for key in peers)
            return {key: boot - each.at if each is not None else math.inf for key, each in heard}

    def _note(self, which: tuple[str, str], stamp: int, unix: float, boot: float) -> None:
        known = self._heard.get(which)
        if stamp == 0:
            self._heard.pop(which, None)
        elif known is None or abs(stamp - known.stamp) > JITTER:
            age = max(0.0, unix - stamp)
            if known is not None:
                age = min(age, boot - self._looked[which[0]])  # whatever the wall clock says, it was since then
            self._heard[which] = _Heard(stamp, boot - age)

    def refused(self, device: str, boot: float) -> list[str]:
        """The peers of a device that must be forgotten for a handshake to begin. Each is named once after a clock was
        set back."""
        with self._lock:
            found = [
                which
                for which, heard in self._heard.items()
                if which[0] == device
                and heard.at <= self._set_back
                and boot - heard.at >= OVERDUE
                and self._forgotten.get(which, -math.inf) < self._set_back
            ]
            self._forgotten.update(dict.fromkeys(found, boot))
            return [key for _, key in found]
