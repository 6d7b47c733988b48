"""The bytes of each peer by the path on which they passed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from cni import answers

Direction = Literal["received", "sent"]
ByPath = Mapping[tuple[str, str], Mapping[Direction, int]]
"""Bytes by (public key, path)."""
TRAVERSED = ("hole-punched", "relayed")  # the words of NAT traversal that say more than this node's own look


def path_of(peer: answers.Peer) -> str:
    """The path to a peer now: direct, learned, hole-punched, relayed, or none if it does not answer."""
    if not peer.alive:
        return "none"
    if peer.path in TRAVERSED:
        return peer.path
    return "direct" if peer.direct else "learned"


class PathBytes:
    """Divides the device's counters of each peer by path. For one thread.

    WireGuard has one counter for each direction of a peer, whichever path was used. What was added between two readings
    counts for the path at the second one.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}
        self._sums: dict[tuple[str, str], dict[Direction, int]] = {}

    def note(self, peers: Iterable[answers.Peer]) -> ByPath:
        """Take in the counters; the bytes so far of the peers that there are."""
        seen: dict[str, tuple[int, int]] = {}
        for peer in peers:
            now = peer.rx_bytes, peer.tx_bytes
            before = self._seen.get(peer.public_key, (0, 0))
            if now[0] < before[0] or now[1] < before[1]:
                before = (0, 0)  # the peer was removed from the device and added again
            sums = self._sums.setdefault((peer.public_key, path_of(peer)), {"received": 0, "sent": 0})
            sums["received"] += now[0] - before[0]
            sums["sent"] += now[1] - before[1]
            seen[peer.public_key] = now
        self._seen = seen
        self._sums = {key: sums for key, sums in self._sums.items() if key[0] in seen}
        return {key: {**sums} for key, sums in self._sums.items()}
