"""Locks for work that takes longer than a lookup in the state: one lock per resource, while a thread uses it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Locks:
    """A lock per name, created at its first use and removed when no thread holds it or waits for it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[object, tuple[threading.RLock, int]] = {}

    @contextmanager
    def holding(self, name: object) -> Iterator[None]:
        with self._guard:
            lock, users = self._held.get(name, (threading.RLock(), 0))
            self._held[name] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._held[name]
                if users == 1:
                    del self._held[name]
                else:
                    self._held[name] = (lock, users - 1)
