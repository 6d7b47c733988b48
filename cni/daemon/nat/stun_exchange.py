"""One round of STUN: requests to several servers, repeated until each has answered or the schedule has ended.

It sends and receives nothing itself: the caller sends what is due, and hands in what arrived.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cni.daemon.model import stun
from cni.daemon.model.nat_behaviour import Place

LAST_WAIT = 1.0  # seconds for an answer to the last repetition


@dataclass(frozen=True, slots=True)
class Query:
    """A request to a server. `change`: the address or port from which the answer is wanted (`stun.request`)."""

    server: Place
    change: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and the seconds since the last repetition of its request."""

    query: Query
    answer: stun.Answer
    seconds: float


@dataclass(frozen=True, slots=True)
class _Pending:
    query: Query
    repetitions: int = 0
    sent_at: float = 0.0


class StunExchange:
    """The requests under way. Times in seconds on the monotonic clock. For one thread."""

    def __init__(self, queries: Iterable[Query], now: float) -> None:
        self._began = now
        self._pending = {os.urandom(stun.TRANSACTION): _Pending(query) for query in queries}

    def due(self, now: float) -> list[tuple[Place, bytes]]:
        """The requests to send now, each with its server."""
        sends = []
        for transaction, pending in list(self._pending.items()):
            schedule = stun.RETRANSMISSIONS
            if pending.repetitions < len(schedule) and now - self._began >= schedule[pending.repetitions]:
                self._pending[transaction] = replace(pending, repetitions=pending.repetitions + 1, sent_at=now)
                sends.append((pending.query.server, stun.request(transaction, pending.query.change)))
        return sends

    def take(self, data: bytes, now: float) -> Reply | None:
        """The reply in a datagram; None if it answers no request under way. The transaction's 96 random bits are what
        makes an answer credible (RFC 8489, section 5)."""
        try:
            answer = stun.parse_answer(data)
        except ValueError:
            return None
        pending = self._pending.pop(answer.transaction, None)
        return Reply(pending.query, answer, now - pending.sent_at) if pending is not None else None

    def next_due(self) -> float:
        """When the next repetition is due, or the round has ended."""
        schedule = stun.RETRANSMISSIONS
        times = [
            self._began + schedule[pending.repetitions]
            for pending in self._pending.values()
            if pending.repetitions < len(schedule)
        ]
        return min(times, default=self._began + schedule[-1] + LAST_WAIT)

    def is_over(self, now: float) -> bool:
        """Whether no further answer is waited for."""
        return not self._pending or now - self._began >= stun.RETRANSMISSIONS[-1] + LAST_WAIT
