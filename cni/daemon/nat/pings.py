"""The pings that people ask for: each waits for the answer to a probe of the path in use."""

from __future__ import annotations

import threading

PATIENCE = 1.0  # seconds that a person waits for an answer
MOST = 16  # pings of one peer that are under way


class Pings:
    """The pings under way. `ask` may be called from any thread, the others from the thread that probes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: list[tuple[str, threading.Event]] = []
        self._sent: dict[str, list[threading.Event]] = {}

    def ask(self, key: str) -> threading.Event:
        """Have a peer probed; the event is set with its answer."""
        answered = threading.Event()
        with self._lock:
            self._asked.append((key, answered))
        return answered

    def begin(self) -> list[str]:
        """The peers that are to be probed now."""
        with self._lock:
            asked, self._asked = self._asked, []
        for key, answered in asked:
            self._sent[key] = [*self._sent.get(key, [])[-MOST:], answered]
        return [key for key, _ in asked]

    def is_waited_for(self, key: str) -> bool:
        """Whether a person waits for a peer's answer."""
        return key in self._sent

    def answered(self, key: str) -> None:
        """Tell those who wait for a peer."""
        for event in self._sent.pop(key, ()):
            event.set()
