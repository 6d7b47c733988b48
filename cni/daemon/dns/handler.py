"""One DNS message in, one out: who asks, what the names say, and what is handed to the forwarding."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable

from cni.daemon.dns import wire
from cni.daemon.dns.forward.seam import Forwarding, Reply, Transport
from cni.daemon.dns.lookup import NameLookup
from cni.daemon.model.dns_upstreams import NameServer

COUNTED = ("queries", "answered", "absent", "withheld", "forwarded", "refused", "malformed", "strangers", "truncated")
"""What is counted since the start: questions; positive answers and empty ones; names that do not exist; names that
exist for others only; questions for other servers; refused ones; messages that are no question; messages from outside
the overlay; answers that were too large for UDP."""


class Handler:
    """Answers messages, whichever socket they came by. Thread-safe, and never waits."""

    def __init__(self, lookup: NameLookup, forwarding: Forwarding | None) -> None:
        """`forwarding`: None refuses every name that is not the overlay's."""
        self._lookup, self._forwarding = lookup, forwarding
        self._lock = threading.Lock()
        self._turns = itertools.count()
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))

    def handle(
        self, message: bytes, source: str, transport: Transport, reply: Reply, asked: NameServer | None = None
    ) -> bytes | None:
        """The answer to a message, if it is known now. None: there is none, or `reply` is called with it later, by
        another thread. `source`: the address that it came from; `asked`: as in `Forwarding.answer`."""
        counts = self.counts
        with self._lock:
            asker = self._lookup.asker(source)
            if asker is None:
                counts["strangers"] += 1
                return None
            counts["queries"] += 1
            try:
                question = wire.read(message)
            except wire.Malformed as fault:
                counts["malformed"] += 1
                return None if fault.code is None else wire.error(message, fault.code)
            limit = wire.LARGEST if transport == "tcp" else question.edns.size if question.edns else wire.PLAIN
            version = question.edns.version if question.edns else 0
            if version or question.klass != wire.IN:
                counts["refused"] += 1
                code = wire.BADVERS if version else wire.REFUSED
                return wire.encode(question, wire.Answer(code), 0, limit)
            resolved = self._lookup.resolve(question, asker)
            if resolved is not None:
                counts["withheld"] += resolved.withheld
                counts["absent" if resolved.answer.code == wire.NXDOMAIN else "answered"] += 1
                whole = wire.encode(question, resolved.answer, next(self._turns), limit)
                counts["truncated"] += whole[2] >> 1 & 1
                return whole
        # A label with a zero octet is no name of a host; the forwarding takes the first zero for the end of the name.
        if self._forwarding is None or question.name.find(0) < len(question.name) - 1:
            counts["refused"] += 1
            return wire.encode(question, wire.Answer(wire.REFUSED), 0, limit)
        counts["forwarded"] += 1
        return self._forwarding.answer(message, transport, source, reply, asked)


Handle = Callable[[bytes, str, Transport, Reply, NameServer | None], bytes | None]
