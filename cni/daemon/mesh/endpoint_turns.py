"""Which endpoint of a peer is called: the first one, and while the peer does not answer, each of the others in turn.

An endpoint at which the peer has answered stays until the peer falls silent there, or until another endpoint comes
first: then the operator, or the node itself, prefers that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TRY = 6.0  # seconds that one endpoint is tried: WireGuard repeats a handshake after 5 s and a third
ROUNDS = 2  # times that all endpoints of a peer are tried in quick succession


@dataclass(frozen=True, slots=True)
class _Turn:
    """`first`: the endpoint that came first; `endpoint`: the one that is called, `since` a time in seconds; `tried`:
    how many were tried without an answer."""

    first: str
    endpoint: str
    since: float
    tried: int = 0


class EndpointTurns:
    """The present endpoints of the peers of all devices. For one thread at a time."""

    def __init__(self) -> None:
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._in_haste: set[tuple[str, str]] = set()

    def restore(self, device: str, firsts: Mapping[str, str], endpoints: Mapping[str, str], now: float) -> None:
        """Take over the turns of an earlier daemon. `firsts`: by key, the endpoint that came first where another one
        was called; `endpoints`: those that were called."""
        for key, first in firsts.items():
            if key in endpoints:
                self._turns.setdefault((device, key), _Turn(first, endpoints[key], now))

    def firsts(self, device: str) -> dict[str, str]:
        """By key, the endpoint that comes first where another one is called."""
        turns = self._turns.items()
        return {key: turn.first for (of, key), turn in turns if of == device and turn.endpoint != turn.first}

    def choose(self, device: str, key: str, candidates: Sequence[str], alive_at: str | None, now: float) -> str:
        """The endpoint to call, of at least one candidate. `alive_at`: where the peer answers now; "" if it answers
        nowhere; None if that is not known."""
        peer, first = (device, key), candidates[0]
        turn = self._turns.get(peer)
        if turn is None or turn.first != first or turn.endpoint not in candidates:
            turn = _Turn(first, first, now)
        elif alive_at in candidates:
            turn = _Turn(first, str(alive_at), now)
        elif alive_at == "" and len(candidates) > 1 and now - turn.since >= TRY:
            following = candidates[(candidates.index(turn.endpoint) + 1) % len(candidates)]
            turn = _Turn(first, following, now, turn.tried + 1)
        self._turns[peer] = turn
        in_haste = alive_at == "" and len(candidates) > 1 and turn.tried < ROUNDS * len(candidates)
        (self._in_haste.add if in_haste else self._in_haste.discard)(peer)
        return turn.endpoint

    def keep(self, device: str, keys: Mapping[str, object]) -> None:
        """Forget the peers of the device that are not among `keys`."""
        for peer in [peer for peer in self._turns if peer[0] == device and peer[1] not in keys]:
            del self._turns[peer]
            self._in_haste.discard(peer)

    def is_in_haste(self) -> bool:
        """Whether a peer has endpoints that should be tried before the next regular pass."""
        return bool(self._in_haste)
