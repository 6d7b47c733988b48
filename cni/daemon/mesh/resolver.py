"""Names of peers, looked up in a thread of its own: a resolver that does not answer must keep nobody waiting."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

AGAIN = 60.0  # seconds after which a name is looked up again
SOON = 5.0  # the same, for one that could not be found
FORGET = 600.0  # seconds after which a name that nobody asks for is forgotten


class Resolver:
    """The addresses behind names, as of the last look. `changed` is called, in its thread, when one has changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, ...]] = {}
        self._due: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._wake = threading.Event()
        self._stop = False
        self._thread: threading.Thread | None = None

    def addresses(self, name: str) -> tuple[str, ...]:
        """What is known of the name now; empty at first. Never waits."""
        with self._lock:
            self._asked[name] = time.monotonic()
            if name not in self._due:
                self._due[name] = 0.0
                if self._thread is None and not self._stop:
                    self._thread = threading.Thread(target=self._run, name="resolver", daemon=True)
                    self._thread.start()
                self._wake.set()
            return self._known.get(name, ())

    def stop(self) -> None:
        """Look no more."""
        self._stop = True
        self._wake.set()

    def _run(self) -> None:
        while not self._stop:
            now = time.monotonic()
            with self._lock:
                for name in [n for n, asked in self._asked.items() if now - asked > FORGET]:
                    for book in (self._known, self._due, self._asked):
                        book.pop(name, None)
                due = [name for name, when in self._due.items() if when <= now]
            for name in due:
                self._look(name)
            with self._lock:
                next_time = min(self._due.values(), default=now + AGAIN)
            self._wake.wait(max(0.1, next_time - time.monotonic()))
            self._wake.clear()

    def _look(self, name: str) -> None:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
        except OSError as error:
            log.info("the peer name %s cannot be looked up: %s", name, error)
            with self._lock:
                self._due[name] = time.monotonic() + SOON
            return
        addresses = tuple(dict.fromkeys(str(each[4][0]) for each in found))
        with self._lock:
            changed = set(self._known.get(name, ())) != set(addresses)
            self._due[name] = time.monotonic() + AGAIN
            if changed:
                self._known[name] = addresses
        if changed:
            log.info("the peer name %s is %s", name, ", ".join(addresses))
            self._changed()
