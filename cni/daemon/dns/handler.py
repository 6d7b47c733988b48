"""One DNS message in, one out: who asks, what the names say, and what is handed to the forwarding."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Literal

from cni.daemon.dns import wire
from cni.daemon.dns.forward.seam import Forwarding, Reply, Transport
from cni.daemon.dns.lookup import NameLookup
from cni.daemon.model.dns_upstreams import NameServer

EARLY = 4.0  # seconds after the start in which nothing is told not to exist before other nodes' names are read
MOST_READY = 4096  # answers that are kept ready
COUNTED = (
    *("queries", "answered", "absent", "withheld", "forwarded", "refused", "malformed", "strangers", "truncated"),
    "over_share",
)
"""What is counted since the start: questions; positive answers and empty ones; names that do not exist; names that
exist for others only; questions for other servers; refused ones; messages that are no question; messages from outside
the overlay; answers that were too large for UDP; datagrams beyond their sender's share, dropped unread."""


class Handler:
    """Answers messages, whichever socket they came by. Thread-safe, and never waits."""

    def __init__(self, lookup: NameLookup, forwarding: Forwarding | None) -> None:
        """`forwarding`: None refuses every name that is not the overlay's."""
        self._lookup, self._forwarding = lookup, forwarding
        self._lock = threading.Lock()
        self._turns = itertools.count()
        self._began = time.monotonic()
        self._ready: dict[tuple[str, Transport, bytes], wire.Ready | Literal[False]] = {}
        self.counts = dict.fromkeys(COUNTED, 0)

    def note_dropped(self, number: int) -> None:
        """Count datagrams that were dropped unread."""
        self.counts["over_share"] += number

    def handle(
        self, message: bytes, source: str, transport: Transport, reply: Reply, asked: NameServer | None = None
    ) -> bytes | None:
        """The answer to a message, if it is known now. None: there is none, or `reply` is called with it later, by
        another thread. `source`: the address that it came from; `asked`: as in `Forwarding.answer`."""
        with self._lock:
            found = self._own(message, source, transport)
        if found is not False or self._forwarding is None:
            return found or None
        self.counts["forwarded"] += 1
        return self._forwarding.answer(message, transport, source, reply, asked)

    def _own(self, message: bytes, source: str, transport: Transport) -> bytes | Literal[False] | None:
        """The answer as far as this node has one, None for none at all; False if other servers have to answer."""
        counts = self.counts
        if not self._lookup.is_current:
            self._ready.clear()
        ready = self._ready.get((source, transport, message[2:]))
        if ready is not None:
            counts["queries"] += 1
            counts["answered"] += bool(ready)
            return ready.whole(message[:2], next(self._turns)) if ready else False
        asker = self._lookup.asker(source)
        if asker is None:
            counts["strangers"] += 1
            return None
        counts["queries"] += 1
        question = self._read(message)
        if not isinstance(question, wire.Question):
            return question
        limit = question.limit(transport == "tcp")
        version = question.edns.version if question.edns else 0
        if version or question.klass != wire.IN:
            counts["refused"] += 1
            return wire.encode(question, wire.Answer(wire.BADVERS if version else wire.REFUSED), 0, limit)
        resolved = self._lookup.resolve(question, asker)
        if resolved is None or (self._is_early and not resolved.answer.records):
            # What is not found early may be a name of another node: the asker asks again.
            return None if self._is_early else self._elsewhere(question, (source, transport, message[2:]), limit)
        counts["withheld"] += resolved.withheld
        counts["absent" if resolved.answer.code == wire.NXDOMAIN else "answered"] += 1
        whole = wire.encode(question, resolved.answer, next(self._turns), limit)
        counts["truncated"] += whole[2] >> 1 & 1
        self._keep(source, transport, message, whole, resolved.answer)
        return whole

    def _elsewhere(
        self, question: wire.Question, key: tuple[str, Transport, bytes], limit: int
    ) -> bytes | Literal[False]:
        """False for a question that other servers answer, which is noted for the next one; else the refusal."""
        # A label with a zero octet is no name of a host; the forwarding takes the first zero for the end of the name.
        if self._forwarding is None or question.name.find(0) < len(question.name) - 1:
            self.counts["refused"] += 1
            return wire.encode(question, wire.Answer(wire.REFUSED), 0, limit)
        self._note(key, False)
        return False

    @property
    def _is_early(self) -> bool:
        """Whether the names of other nodes are not read yet; after `EARLY` seconds those that are known have to do."""
        return not self._lookup.is_whole and time.monotonic() - self._began < EARLY

    def _read(self, message: bytes) -> wire.Question | bytes | None:
        """The question of a message; the answer to one that has none, or None if it gets none."""
        try:
            return wire.read(message)
        except wire.Malformed as fault:
            self.counts["malformed"] += 1
            return None if fault.code is None else wire.error(message, fault.code)

    def _keep(self, source: str, transport: Transport, message: bytes, whole: bytes, answer: wire.Answer) -> None:
        """Keep an answer ready for the same asker's same message: what most of the questions are."""
        if answer.code == wire.NOERROR and not whole[2] & 2:
            self._note((source, transport, message[2:]), wire.ready(whole, answer))

    def _note(self, key: tuple[str, Transport, bytes], ready: wire.Ready | Literal[False]) -> None:
        if len(self._ready) >= MOST_READY:
            self._ready.clear()
        self._ready[key] = ready


Handle = Callable[[bytes, str, Transport, Reply, NameServer | None], bytes | None]
