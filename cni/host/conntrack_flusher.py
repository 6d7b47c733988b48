"""Deletes the tracked flows of released addresses in the background.

A walk of the kernel's table of flows takes about 10 ms, too long for a DEL to wait for. An attach that gets an address
whose flows are not deleted yet waits for the deletion (`finish`): a deletion afterwards would take the flows of the new
owner.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection

from cni.host.conntrack import Conntrack
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

GATHER = 1.0  # seconds in which released addresses are collected into one batch, which is two walks
PATIENCE = 5.0  # seconds that an attach waits for a deletion that another thread has begun


class ConntrackFlusher:
    """Works in its own thread, in the network namespace it was constructed in. `forget` and `finish` may be called from
    any thread.
    """

    def __init__(self, crew: Crew | None = None) -> None:
        self._change = threading.Condition()
        self._queued: dict[str, None] = {}
        self._under_way: dict[str, int] = {}  # how many threads delete the flows of the address now
        self._ended = False
        self._failing = False
        self._conntrack = Conntrack()
        self._one_at_a_time = threading.Lock()
        self._worker = (crew or Crew()).worker("forgetter", self._work)
        self._worker.start()

    def forget(self, addresses: Collection[str]) -> None:
        """Queues these addresses; every flow of theirs is deleted soon."""
        if not addresses:
            return
        with self._change:
            self._queued.update(dict.fromkeys(addresses))
            self._change.notify_all()

    def finish(self, addresses: Collection[str]) -> None:
        """Deletes the flows of those of `addresses` that are queued, and waits for a deletion that another thread has
        begun: afterwards no deletion concerns a flow that these addresses open. Never raises.
        """
        self._delete(self._take(addresses))
        with self._change:
            if not self._change.wait_for(lambda: not any(a in self._under_way for a in addresses), PATIENCE):
                log.warning("the tracked flows of %s are still being forgotten", ", ".join(addresses))

    def close(self) -> None:
        """Finishes the queued addresses, then stops."""
        self._worker.retire()
        with self._change:
            self._ended = True
            self._change.notify_all()
        self._worker.join(PATIENCE)
        self._conntrack.close()

    def _take(self, addresses: Collection[str] | None = None) -> list[str]:
        """Moves the queued addresses, or those of `addresses` only, to those under way; returns them."""
        with self._change:
            taken = [a for a in self._queued if addresses is None or a in addresses]
            for address in taken:
                del self._queued[address]
                self._under_way[address] = self._under_way.get(address, 0) + 1
            return taken

    def _delete(self, taken: list[str]) -> None:
        """Deletes the flows of addresses that `_take` returned. Never raises OSError."""
        if not taken:
            return
        try:
            with self._one_at_a_time:
                self._conntrack.forget(taken)
        except OSError as error:
            if not self._failing:
                log.warning("cannot forget the tracked flows of released addresses: %s", error)
            self._failing = True
        finally:
            with self._change:
                for address in taken:
                    self._under_way[address] -= 1
                    if not self._under_way[address]:
                        del self._under_way[address]
                self._change.notify_all()

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._queued and not self._ended:
                    beat(IDLE)
                    self._change.wait(IDLE)
                beat(PATIENCE)
                self._change.wait_for(lambda: self._ended, GATHER)
                ended = self._ended
            self._delete(self._take())
            if ended:
                return
