"""Names of peers, looked up in a thread of its own: a resolver that does not answer must keep nobody waiting."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

AGAIN = 60.0  # seconds after which a name is looked up again
SOON = 5.0  # the same, for one that could not be found
LOOKUP = 150.0  # seconds that one look may take: three servers, asked twice for 5 s each, in five domains
FORGET = 600.0  # seconds after which a name that nobody asks for is forgotten


class Resolver:
    """The addresses behind names, as of the last look. `changed` is called, in its thread, when one has changed."""

    def __init__(
        self,
        changed: Callable[[], None],
        crew: Crew | None = None,
        told: Callable[[dict[str, str]], None] = lambda faults: None,
    ) -> None:
        """`told` is called with the names that cannot be looked up, and why."""
        self._changed, self._told = changed, told
        self._faults: dict[str, str] = {}
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, ...]] = {}
        self._due: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._wake = threading.Event()
        self._stop = False
        self._worker = (crew or Crew()).worker("resolver", self._run)
        self._started = False

    def addresses(self, name: str) -> tuple[str, ...]:
        """What is known of the name now; empty at first. Never waits."""
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
        """Look no more."""
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
                self._look(name)
            self._told(dict(self._faults))
            with self._lock:
                next_time = min(self._due.values(), default=now + AGAIN)
            beat(IDLE)
            self._wake.wait(min(max(0.1, next_time - time.monotonic()), IDLE))
            self._wake.clear()

    def _look(self, name: str) -> None:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:  # the second: a label that is too long, or empty
            self._faults[name] = f"the peer name {name} cannot be looked up: {error}"
            with self._lock:
                self._due[name] = time.monotonic() + SOON
            return
        self._faults.pop(name, None)
        addresses = tuple(dict.fromkeys(str(each[4][0]) for each in found))
        with self._lock:
            changed = set(self._known.get(name, ())) != set(addresses)
            self._due[name] = time.monotonic() + AGAIN
            if changed:
                self._known[name] = addresses
        if changed:
            log.info("the peer name %s is %s", name, ", ".join(addresses))
            self._changed()
