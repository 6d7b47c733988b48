"""The kept answers of other servers: bounded in number and size, each with the time until which it is fresh, and the
time until which it is better than none (RFC 8767)."""

from __future__ import annotations

from dataclasses import dataclass

from cni.daemon.dns.forward.message import Answer

MOST_ANSWERS = 4096
MOST_OCTETS = 8 << 20  # of all answers: 4,096 of 2 KiB
LARGEST = 64 << 10
STALE = 3600.0  # seconds after its lifetime in which an answer is given while no server answers
RETRY = 5.0  # seconds after a failed refresh in which a stale answer is given at once (RFC 8767, 5: at most 30)
FAILED = 1.0  # seconds in which a failure is not tried again (RFC 9520, 3.2: at least 1)


@dataclass(slots=True)
class Kept:
    """One answer. Times on the monotonic clock: when it was stored, until when it is fresh, until when it is given
    without asking again although it is stale."""

    answer: Answer
    stored: float
    fresh: float
    settled: float = 0.0

    def is_stale_at(self, now: float) -> bool:
        """Whether the answer is no longer fresh, and not yet too old."""
        return self.answer.usable and self.fresh <= now < self.fresh + STALE

    def settle(self, until: float) -> None:
        """Give the stale answer until then without asking again."""
        self.settled = until


class Cache:
    """Answers by key, the least recently used dropped first. The caller holds a lock."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Kept] = {}
        self._octets = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, now: float) -> Kept | None:
        """The answer under the key, fresh or stale; it becomes the most recently used."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        if now >= kept.fresh and not kept.is_stale_at(now):
            self._octets -= _size(key, kept.answer)
            return None
        self._kept[key] = kept
        return kept

    def put(self, key: bytes, answer: Answer, now: float) -> None:
        """Keep an answer for its lifetime; one that must not be kept replaces nothing and ends what it replaces."""
        self._drop(key)
        if answer.lifetime > 0 and len(answer.body) <= LARGEST:
            self._add(key, Kept(answer, now, now + answer.lifetime))

    def put_failure(self, key: bytes, answer: Answer, now: float) -> None:
        """Note that no server answered: what is stale is given meanwhile, else the failure itself."""
        kept = self._kept.get(key)
        if kept is not None and kept.is_stale_at(now):
            kept.settle(now + RETRY)
        else:
            self._drop(key)
            self._add(key, Kept(answer, now, now + FAILED))

    def clear(self) -> None:
        """Drop all answers: they came from servers that are no longer asked."""
        self._kept.clear()
        self._octets = 0

    def _add(self, key: bytes, kept: Kept) -> None:
        self._kept[key] = kept
        self._octets += _size(key, kept.answer)
        while len(self._kept) > MOST_ANSWERS or self._octets > MOST_OCTETS:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> None:
        gone = self._kept.pop(key, None)
        if gone is not None:
            self._octets -= _size(key, gone.answer)


def _size(key: bytes, answer: Answer) -> int:
    return 2 * len(answer.body) + len(key) + 400  # the body stands there twice: as it came, and aged
