"""One question on its way to the servers: the steps that are left, the exchanges that are open, and who waits.

Equal questions of any number of clients are one flight, so that a server gets each question once. That also ends a
loop: a question that comes back while it is on its way joins its own flight, and is not sent again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from cni.daemon.dns.forward.exchange import Exchange
from cni.daemon.dns.forward.message import Question, mixed_case
from cni.daemon.dns.forward.upstreams import Step
from cni.daemon.dns.forward.waiting import Waiter
from cni.daemon.model.dns_upstreams import NameServer

DEADLINE = 4.0  # seconds until a client has an answer: less than the 5 s of resolv.conf(5) after which it asks again
STALE_AFTER = 1.8  # seconds until a stale answer is given while the servers are still asked (RFC 8767, 5)
MOST_EXCHANGES = 8  # open at once for one question
TELLING = 6  # upper-case letters, of those that were chosen at random, by which a question is known for our own


@dataclass(eq=False, slots=True)
class Flight:
    """`place`: the key of the answer; `asked`: the one server that the client itself had asked; `began`: on the
    monotonic clock, in seconds. `waiters` is guarded by the forwarder's lock, the rest is its thread's."""

    place: bytes
    question: Question
    asked: NameServer | None
    began: float
    waiters: list[Waiter] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    sent: tuple[bytes, ...] = ()
    refused: set[NameServer] = field(default_factory=set)
    tried: set[tuple[NameServer, str]] = field(default_factory=set)
    heard: set[tuple[NameServer, str]] = field(default_factory=set)
    due: float = 0.0
    stale_is_due: bool = True
    over: bool = False

    def next_step(self) -> Step | None:
        """Take the next step to a server that has not refused the question."""
        while self.steps:
            step = self.steps.pop(0)
            if step.server not in self.refused:
                return step
        return None

    def plan(self, steps: list[Step]) -> None:
        """The steps of the whole flight."""
        self.steps = steps

    def letters(self) -> bytes:
        """The question in new letters, which are known for our own before they are sent."""
        made = mixed_case(self.question.wire, int.from_bytes(os.urandom(32), "big"))
        self.sent += (made,)
        return made

    def add(self, exchange: Exchange) -> None:
        """An exchange has begun."""
        self.exchanges.append(exchange)
        self.tried.add((exchange.server, exchange.transport))

    def has_heard(self, server: NameServer) -> bool:
        """Whether a server has sent a message for this question."""
        return (server, "udp") in self.heard or (server, "tcp") in self.heard

    def took_tcp_alone(self, exchange: Exchange) -> bool:
        """Whether the server of an answer was asked by UDP too, and did not answer there."""
        by_udp = (exchange.server, "udp")
        return exchange.transport == "tcp" and by_udp in self.tried and by_udp not in self.heard

    def wait_until(self, due: float) -> None:
        """When the flight needs attention next, if no answer comes."""
        self.due = due

    def stale_given(self) -> None:
        """The waiters have had a stale answer."""
        self.stale_is_due = False

    def end(self) -> None:
        """The waiters have had their answer; what led to it is not kept."""
        self.over, self.sent = True, ()
        self.steps.clear()

    def is_own(self, wire: bytes) -> bool:
        """Whether a question is one that this flight has sent, by its letters."""
        return wire in self.sent and sum(65 <= octet <= 90 for octet in wire[:-4]) >= TELLING
