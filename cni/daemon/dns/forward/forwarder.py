"""Answers the questions of clients from the answers of other servers.

`answer` runs in the thread of the node's DNS server and finds what is kept. All sockets to servers belong to one thread
(`_run`), which sends, waits and gives up: a slow server occupies no thread, and a question costs one small object.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import time
from collections import deque

from cni.daemon.dns.forward import exchange as exchanges
from cni.daemon.dns.forward import message as wire
from cni.daemon.dns.forward.conditions import Conditions
from cni.daemon.dns.forward.desk import Desk, give
from cni.daemon.dns.forward.exchange import Exchange, Fit, fit_of
from cni.daemon.dns.forward.flight import DEADLINE, MOST_EXCHANGES, STALE_AFTER, Flight
from cni.daemon.dns.forward.message import FAILURE, NO_SERVER, Answer, Question
from cni.daemon.dns.forward.seam import Reply, Transport
from cni.daemon.dns.forward.upstreams import PATIENCE, Upstreams
from cni.daemon.dns.forward.waiting import Waiter
from cni.daemon.durations import Times
from cni.daemon.model.dns_upstreams import NameServer
from cni.host.worker import IDLE, Crew, beat

MOST_SOCKETS = 2048  # of the 20,000 descriptors that the daemon may have


class Forwarder:
    """The `Forwarding` of the node's DNS server."""

    def __init__(self, upstreams: Upstreams, conditions: Conditions, crew: Crew) -> None:
        self._upstreams, self._conditions = upstreams, conditions
        self._desk = Desk()
        self._begun: deque[Flight] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._due: list[tuple[float, int, Flight]] = []
        self._numbers = itertools.count()
        self._sockets = 0
        self._stop = False
        self._worker = crew.worker("dns-forward", self._run)

    def start(self) -> None:
        """Start the thread that asks the servers."""
        self._worker.start()

    def stop(self) -> None:
        """End the thread; questions that wait get no answer."""
        self._worker.retire()
        self._stop = True
        os.eventfd_write(self._wake, 1)
        self._worker.join(1.0)

    def counts(self) -> dict[str, int]:
        """`Forwarding.counts`."""
        return self._desk.counts()

    def took(self) -> Times | None:
        """How long the servers' answers took, from the question on; None before the first."""
        return self._desk.took()

    def answer(
        self, query: bytes, transport: Transport, client: str, reply: Reply, asked: NameServer | None = None
    ) -> bytes | None:
        """`Forwarding.answer`."""
        now = time.monotonic()
        ready = self._desk.ready(query, transport, asked, now)
        if ready is not None:
            return ready
        question = wire.read_question(query)
        if not isinstance(question, Question):
            return None if question is None else wire.refusal(query, question)
        most = question.size if transport == "udp" else wire.MOST_OVER_TCP
        place = question.key if asked is None else question.key + str(asked).encode()
        waiter = Waiter(place, question, most, client, reply)
        kept = self._desk.kept(waiter, query, transport, asked, now)
        if kept is not None:
            return kept
        code = wire.well_formed(question)
        if code:
            return wire.write_answer(question, Answer(code, (0, 0, 0), b""), b"", most)
        begun, refused = self._desk.join(waiter, asked, now)
        if begun is not None:
            self._begun.append(begun)
            os.eventfd_write(self._wake, 1)
        if refused is waiter:
            return wire.write_answer(question, FAILURE, b"", most)
        if refused is not None:
            give([refused], FAILURE, b"")
        return None

    # --- the thread of the sockets ---

    def _run(self) -> None:
        while not self._stop:
            beat(IDLE)
            pause = self._due[0][0] - time.monotonic() if self._due else IDLE
            for key, events in self._selector.select(max(0.0, min(pause, IDLE))):
                if key.data is None:
                    os.eventfd_read(self._wake)
                else:
                    flight, exchange = key.data
                    self._attend(flight, exchange, events)
            while self._begun:
                self._begin(self._begun.popleft())
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                flight = heapq.heappop(self._due)[2]
                if self._desk.is_under_way(flight):
                    self._remind(flight, now)
                else:
                    self._close_all(flight)
            self._conditions.settle(self._desk.counts()["loops"], now)

    def _begin(self, flight: Flight) -> None:
        if self._upstreams.follow(flight.began):
            self._desk.forget()
            self._conditions.changed()
        servers = (flight.asked,) if flight.asked is not None else self._upstreams.servers(flight.question.name)
        self._conditions.named(servers)
        if not servers:
            self._desk.finish(flight, NO_SERVER, time.monotonic())
            return
        self._desk.count("forwarded")
        flight.plan(self._upstreams.steps(servers))
        self._remind_at(flight, flight.began + STALE_AFTER)
        self._advance(flight)

    def _remind(self, flight: Flight, now: float) -> None:
        """The time has come for which a flight was noted."""
        if flight.stale_is_due and now >= flight.began + STALE_AFTER:
            flight.stale_given()
            self._desk.give_stale(flight, now)
        if now >= flight.due:
            self._advance(flight)

    def _remind_at(self, flight: Flight, when: float) -> None:
        heapq.heappush(self._due, (when, next(self._numbers), flight))

    def _advance(self, flight: Flight) -> None:
        """Take the steps that are due; give up when none is left or the time is over."""
        end = flight.began + DEADLINE
        while True:
            now = time.monotonic()
            for exchange in flight.exchanges:
                if not flight.has_heard(exchange.server):
                    self._upstreams.health(exchange.server).silent(now)
            step = flight.next_step() if now < end else None
            if step is None and (now >= end or not flight.exchanges):
                self._fail(flight, now)
                return
            sent = step is not None and self._ask(flight, step.server, step.transport)
            if step is None or (sent and step.patience):
                flight.wait_until(min(now + step.patience, end) if step is not None else end)
                self._remind_at(flight, flight.due)
                return

    def _ask(self, flight: Flight, server: NameServer, transport: Transport, edns: bool = True) -> bool:
        """Send the question to a server; whether it could be sent."""
        health, now = self._upstreams.health(server), time.monotonic()
        if len(flight.exchanges) >= MOST_EXCHANGES:
            self._close(flight, flight.exchanges[0])
        if self._sockets >= MOST_SOCKETS:
            return False
        try:
            made = exchanges.begin(server, transport, flight.question, flight.letters(), edns and health.plain <= now)
        except OSError:
            health.silent(now)
            return False
        self._sockets += 1
        flight.add(made)
        events = selectors.EVENT_WRITE if made.outgoing else selectors.EVENT_READ
        self._selector.register(made.socket, events, (flight, made))
        if transport == "tcp":
            self._desk.count("by_tcp")
        return True

    def _attend(self, flight: Flight, exchange: Exchange, events: int) -> None:
        """Read or write at the socket of an exchange, which an earlier event of the same turn may have ended."""
        if exchange not in flight.exchanges:
            return
        try:
            if events & selectors.EVENT_WRITE:
                if exchange.write():
                    self._selector.modify(exchange.socket, selectors.EVENT_READ, (flight, exchange))
                return
            messages = exchange.read()
        except OSError:
            self._upstreams.health(exchange.server).silent(time.monotonic())
            if flight.over:
                self._close(flight, exchange)
            else:
                self._go_on(flight, exchange)
            return
        for message in messages:
            if exchange in flight.exchanges:
                self._received(flight, exchange, message)

    def _received(self, flight: Flight, exchange: Exchange, message: bytes) -> None:
        fit = fit_of(message, exchange.ident, exchange.wire)
        if fit is Fit.STRANGE:
            self._desk.count("strange")
            if exchange.is_flooded() and not flight.over:
                self._by_tcp(flight, exchange)
            return
        health, now = self._upstreams.health(exchange.server), time.monotonic()
        health.answered()
        flight.heard.add((exchange.server, exchange.transport))
        self._conditions.answered(exchange.server)
        if flight.over:
            self._close(flight, exchange)
            return
        if exchange.transport == "udp" and (fit is Fit.OTHER_CASE or wire.is_truncated(message)):
            self._desk.count("truncated" if fit is Fit.ANSWER else "other_case")
            self._by_tcp(flight, exchange)
            return
        try:
            answer = wire.read_answer(message, wire.HEADER + len(exchange.wire))
        except ValueError:
            answer = FAILURE
        if answer.code in (wire.FORMERR, wire.NOTIMP) and exchange.edns:
            health.refused_edns(now)
            self._close(flight, exchange)
            if not self._ask(flight, exchange.server, exchange.transport, edns=False):
                self._advance(flight)
        elif not answer.usable:
            flight.refused.add(exchange.server)
            self._go_on(flight, exchange)
        else:
            if flight.took_tcp_alone(exchange):
                health.took_tcp_alone(now)
            self._land(flight, now)
            self._desk.answered(flight, now)
            self._desk.finish(flight, answer, now)

    def _land(self, flight: Flight, now: float) -> None:
        """Close what is open, but for the question to a server that is tested: its answer is waited for a while."""
        for exchange in tuple(flight.exchanges):
            if flight.has_heard(exchange.server) or not self._upstreams.health(exchange.server).tested:
                self._close(flight, exchange)
        flight.end()
        if flight.exchanges:
            self._remind_at(flight, now + PATIENCE)

    def _by_tcp(self, flight: Flight, exchange: Exchange) -> None:
        """Ask the same server by TCP at once."""
        self._close(flight, exchange)
        if not self._ask(flight, exchange.server, "tcp"):
            self._advance(flight)

    def _go_on(self, flight: Flight, exchange: Exchange) -> None:
        """An exchange has ended without an answer: take the next step now, unless a later one is under way."""
        latest = exchange is flight.exchanges[-1]
        self._close(flight, exchange)
        if latest or not flight.exchanges:
            self._advance(flight)

    def _fail(self, flight: Flight, now: float) -> None:
        self._close_all(flight)
        if not flight.heard and flight.asked is None:
            self._conditions.unanswered(self._upstreams.servers(flight.question.name))
        self._desk.fail(flight, now)

    def _close_all(self, flight: Flight) -> None:
        for exchange in tuple(flight.exchanges):
            self._close(flight, exchange)

    def _close(self, flight: Flight, exchange: Exchange) -> None:
        flight.exchanges.remove(exchange)
        self._selector.unregister(exchange.socket)
        exchange.socket.close()
        self._sockets -= 1
