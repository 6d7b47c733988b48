"""The clients' questions that wait for an answer, and how many of them a client may have.

All clients share a bounded number. A client beyond its own share is refused; when all places are taken, the client that
has most of them loses its oldest one to a client that has fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni.daemon.dns.forward.message import Question
from cni.daemon.dns.forward.seam import Reply

MOST = 1024
MOST_OF_ONE = 128


@dataclass(eq=False, slots=True, frozen=True)
class Waiter:
    """A question of a client: to which of the outstanding ones it belongs (`place`), the largest answer in octets."""

    place: bytes
    question: Question
    most: int
    client: str
    reply: Reply


class Waiting:
    """The waiters by client. The caller holds a lock."""

    def __init__(self) -> None:
        self._of: dict[str, dict[Waiter, None]] = {}
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def admit(self, waiter: Waiter) -> Waiter | None:
        """Add a waiter; the one that is refused for it, which may be the same."""
        own = self._of.get(waiter.client, {})
        refused = None
        if len(own) >= MOST_OF_ONE:
            return waiter
        if self._number >= MOST:
            most = max(self._of.values(), key=len)
            if len(most) <= len(own) + 1:
                return waiter
            refused = next(iter(most))
            self.remove(refused)
        self._of.setdefault(waiter.client, own)[waiter] = None
        self._number += 1
        return refused

    def remove(self, waiter: Waiter) -> None:
        """Remove a waiter, if it is there."""
        own = self._of.get(waiter.client, {})
        if waiter in own:
            del own[waiter]
            self._number -= 1
            if not own:
                del self._of[waiter.client]
