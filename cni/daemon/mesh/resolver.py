"""Looks up the names of peers in a thread of its own: a resolver that does not answer blocks no other thread."""

from __future__ import annotations

import logging
import socket
import threading
import time

from cni.daemon.events import Events, PeerNamesResolved
from cni.daemon.problem_board import ProblemBoard
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

REFRESH = 60.0  # seconds after which a name is looked up again
RETRY = 5.0  # seconds after which a failed lookup is repeated
LOOKUP = 150.0  # seconds that one lookup may take: three servers, two attempts of 5 s each, in five domains
FORGET = 600.0  # seconds after which a name that is no longer requested is dropped


class Resolver:
    """The addresses of names, as of the last lookup. Thread-safe."""

    def __init__(self, crew: Crew, board: ProblemBoard, events: Events) -> None:
        self._board, self._events = board, events
        self._faults: dict[str, str] = {}
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, ...]] = {}
        self._due: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._wake = threading.Event()
        self._stop = False
        self._worker = crew.worker("resolver", self._run)
        self._started = False

    def addresses(self, name: str) -> tuple[str, ...]:
        """The addresses of the name as of the last lookup; empty before the first one. Never blocks."""
        with self._lock:
            self._asked[name] = time.monotonic()
            if name not in self._due:
                self._due[name] = 0.0
                if not self._started and not self._stop:
                    self._started = True
                    self._worker.start()
                self._wake.set()
            return self._known.get(name, ())

    def stop(self) -> None:
        """Stop the lookups."""
        self._worker.retire()
        self._stop = True
        self._wake.set()

    def _run(self) -> None:
        while not self._stop:
            now = time.monotonic()
            with self._lock:
                for name in [n for n, asked in self._asked.items() if now - asked > FORGET]:
                    self._faults.pop(name, None)
                    for book in (self._known, self._due, self._asked):
                        book.pop(name, None)
                due = [name for name, when in self._due.items() if when <= now]
            for name in due:
                beat(LOOKUP)
                self._lookup(name)
            self._board.set_all("name-not-found", dict(self._faults))
            with self._lock:
                next_time = min(self._due.values(), default=now + REFRESH)
            beat(IDLE)
            self._wake.wait(min(max(0.1, next_time - time.monotonic()), IDLE))
            self._wake.clear()

    def _lookup(self, name: str) -> None:
        try:
            infos = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that is too long, or empty
            self._faults[name] = f"the peer name {name} cannot be looked up: {error}"
            with self._lock:
                self._due[name] = time.monotonic() + RETRY
            return
        self._faults.pop(name, None)
        addresses = tuple(dict.fromkeys(str(info[4][0]) for info in infos))
        with self._lock:
            changed = set(self._known.get(name, ())) != set(addresses)
            self._due[name] = time.monotonic() + REFRESH
            if changed:
                self._known[name] = addresses
        if changed:
            log.info("the peer name %s resolves to %s", name, ", ".join(addresses))
            self._events.publish(PeerNamesResolved())
