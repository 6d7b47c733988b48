"""Deletes the tracked flows of released addresses in the background.

A walk of the kernel's table of flows takes about 10 ms, too long for a DEL to wait for; and an address is in cooldown
before its next owner gets it, so there is time.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterable

from cni.host.conntrack import Conntrack
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

GATHER = 0.2  # seconds in which released addresses are collected into one batch


class ConntrackFlusher:
    """Works in its own thread, in the network namespace it was constructed in. `forget` may be called from any
    thread.
    """

    def __init__(self, crew: Crew | None = None) -> None:
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._conntrack = Conntrack()
        self._worker = (crew or Crew()).worker("forgetter", self._work)
        self._worker.start()

    def forget(self, addresses: Iterable[str]) -> None:
        """Queues these addresses; every flow of theirs is deleted soon."""
        for address in addresses:
            self._queue.put(address)

    def close(self) -> None:
        """Finishes the queued addresses, then stops."""
        self._worker.retire()
        self._queue.put(None)
        self._worker.join(5.0)
        self._conntrack.close()

    def _next(self) -> str | None:
        while True:
            beat(IDLE)
            try:
                return self._queue.get(timeout=IDLE)
            except queue.Empty:
                continue

    def _work(self) -> None:
        failing = False
        while (first := self._next()) is not None:
            beat()
            time.sleep(GATHER)
            batch, last = [first], False
            while not self._queue.empty():
                item = self._queue.get()
                last = last or item is None
                batch += [item] if item is not None else []
            try:
                self._conntrack.forget(batch)
            except OSError as error:
                if not failing:
                    log.warning("cannot forget the tracked flows of released addresses: %s", error)
                failing = True
            if last:
                return
