"""What the server's thread and the forwarder's thread share, under one lock: the kept answers, the flights, the clients
that wait, and the counts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from cni.daemon.dns.forward.cache import Cache, Kept
from cni.daemon.dns.forward.flight import Flight
from cni.daemon.dns.forward.message import FAILURE, Answer, write_answer
from cni.daemon.dns.forward.waiting import Waiter, Waiting
from cni.daemon.durations import Durations, Times
from cni.daemon.model.dns_upstreams import NameServer

log = logging.getLogger(__name__)

MOST_FLIGHTS = 2048  # twice the clients that may wait: a flight whose clients have a stale answer goes on
MOST_READY, LARGEST_READY = 4096, 2048  # messages, and octets of one
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)  # seconds, of `took`
STALE_TTL = 30  # seconds, of the records of a stale answer (RFC 8767, 4)
COUNTS = (
    *("questions", "hits", "stale", "joined", "forwarded", "answered", "failed", "refused", "over_limit"),
    *("by_tcp", "truncated", "strange", "other_case", "loops"),
)


@dataclass(frozen=True, slots=True)
class _Ready:
    """The message with a kept answer, behind its identifier, as it is until the answer is a second older."""

    until: float
    tail: bytes


class Desk:
    """Questions that are answered, and questions that wait. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cache, self._waiting = Cache(), Waiting()
        self._flights: dict[bytes, Flight] = {}
        self._ready: dict[object, _Ready] = {}
        self._counts = dict.fromkeys(COUNTS, 0)
        self._took = Durations(BOUNDS)

    def counts(self) -> dict[str, int]:
        """The counts since the start, and how many answers are kept and questions wait now."""
        with self._lock:
            return {**self._counts, "kept": len(self._cache), "waiting": len(self._waiting)}

    def took(self) -> Times | None:
        """How long the servers' answers took, from the question on; None before the first."""
        return self._took.read().get(())

    def answered(self, flight: Flight, now: float) -> None:
        """Count the time of an answer that a server gave to a question."""
        self._took.note((), now - flight.began)

    def count(self, name: str) -> None:
        """Add one to a count."""
        with self._lock:
            self._counts[name] += 1

    def ready(self, query: bytes, transport: str, asked: NameServer | None, now: float) -> bytes | None:
        """The message with the kept answer, if the same octets were answered in the same second of its age."""
        with self._lock:
            found = self._ready.get(_key(query, transport, asked))
            if found is None or now >= found.until:
                return None
            self._counts["questions"] += 1
            self._counts["hits"] += 1
            return query[:2] + found.tail

    def kept(self, waiter: Waiter, query: bytes, transport: str, asked: NameServer | None, now: float) -> bytes | None:
        """The message with the kept answer, if there is one that may be given without asking. `waiter`: the question,
        which does not wait yet; `query`: its message."""
        question, most = waiter.question, waiter.most
        with self._lock:
            self._counts["questions"] += 1
            kept = self._cache.get(waiter.place, now)
            if kept is None:
                return None
            if now < kept.fresh:
                self._counts["hits"] += 1
                age = int(now - kept.stored)
                whole = write_answer(question, kept.answer, kept.answer.aged(age), most)
                self._keep_ready(query, transport, asked, _Ready(min(kept.fresh, kept.stored + age + 1), whole[2:]))
                return whole
            if now >= kept.settled:
                return None
            self._counts["stale"] += 1
            return write_answer(question, kept.answer, kept.answer.stale(STALE_TTL), most)

    def _keep_ready(self, query: bytes, transport: str, asked: NameServer | None, ready: _Ready) -> None:
        if len(ready.tail) + len(query) > LARGEST_READY:
            return
        if len(self._ready) >= MOST_READY:
            self._ready.clear()
        self._ready[_key(query, transport, asked)] = ready

    def join(self, waiter: Waiter, asked: NameServer | None, now: float) -> tuple[Flight | None, Waiter | None]:
        """Let a question wait; (the flight that it begins, the waiter that is refused)."""
        with self._lock:
            flight = self._flights.get(waiter.place)
            if flight is not None and flight.is_own(waiter.question.wire):
                self._counts["loops"] += 1
                return None, waiter
            full = flight is None and len(self._flights) >= MOST_FLIGHTS
            refused = waiter if full else self._waiting.admit(waiter)
            if refused is not None:
                self._counts["over_limit"] += 1
                if refused is waiter:
                    return None, waiter
                self._leave(refused)
            begun = None
            if flight is None:
                begun = flight = Flight(waiter.place, waiter.question, asked, now)
                self._flights[waiter.place] = flight
            else:
                self._counts["joined"] += 1
            flight.waiters.append(waiter)
            return begun, refused

    def is_under_way(self, flight: Flight) -> bool:
        """Whether the flight has not ended."""
        with self._lock:
            return self._flights.get(flight.place) is flight

    def give_stale(self, flight: Flight, now: float) -> None:
        """Give the waiters of a flight what is stale, if there is such an answer; the flight goes on."""
        with self._lock:
            kept = self._stale(flight, now)
            waiters = self._take(flight, "stale") if kept is not None else []
        if kept is not None:
            give(waiters, kept.answer, kept.answer.stale(STALE_TTL))

    def fail(self, flight: Flight, now: float) -> None:
        """End a flight that no server has answered, with what is stale, or the failure."""
        with self._lock:
            self._counts["failed"] += 1
            self._cache.put_failure(flight.place, FAILURE, now)
            kept = self._stale(flight, now)
            self._land(flight)
            waiters = self._take(flight, "stale" if kept is not None else "")
        if kept is not None:
            give(waiters, kept.answer, kept.answer.stale(STALE_TTL))
        else:
            give(waiters, FAILURE, b"")

    def finish(self, flight: Flight, answer: Answer, now: float) -> None:
        """End a flight with the answer of a server."""
        with self._lock:
            self._cache.put(flight.place, answer, now)
            self._land(flight)
            waiters = self._take(flight, "answered" if answer.usable else "refused")
        give(waiters, answer, answer.aged(0))

    def forget(self) -> None:
        """Drop the kept answers: they came from servers that are no longer asked."""
        with self._lock:
            self._cache.clear()
            self._ready.clear()

    def _stale(self, flight: Flight, now: float) -> Kept | None:
        kept = self._cache.get(flight.place, now)
        return kept if kept is not None and kept.is_stale_at(now) else None

    def _leave(self, waiter: Waiter) -> None:
        """Take a waiter out of its flight, which ends if no other waits."""
        flight = self._flights[waiter.place]
        flight.waiters.remove(waiter)
        if not flight.waiters:
            self._land(flight)

    def _land(self, flight: Flight) -> None:
        if self._flights.get(flight.place) is flight:
            del self._flights[flight.place]

    def _take(self, flight: Flight, counted: str) -> list[Waiter]:
        waiters = list(flight.waiters)
        flight.waiters.clear()
        for waiter in waiters:
            self._waiting.remove(waiter)
        if counted:
            self._counts[counted] += len(waiters)
        return waiters


def _key(query: bytes, transport: str, asked: NameServer | None) -> object:
    """What decides the message of an answer: its octets alone for most questions, which makes the lookup cheaper."""
    return query[2:] if asked is None and transport == "udp" else (query[2:], transport, asked)


def give(waiters: Iterable[Waiter], answer: Answer, body: bytes) -> None:
    """Give the waiters their messages."""
    for waiter in waiters:
        try:
            waiter.reply(write_answer(waiter.question, answer, body, waiter.most))
        except OSError as error:  # the client is gone
            log.debug("an answer to %s cannot be sent: %s", waiter.client, error)
