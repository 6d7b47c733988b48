"""Deletes links without waiting for the end of the deletion.

RTM_DELLINK blocks its sender for 15 to 19 ms, most of it after the link has become invisible and its name is free again
(docs/architecture.md, "What an attach costs"). So a few threads send the deletions, all queued ones in one message (a
group costs little more than one link), and `remove` returns as soon as the link is no longer visible.
"""

from __future__ import annotations

import logging
import queue
import time

from cni.host import links
from cni.host.interface_ioctl import InterfaceLookup
from cni.host.netlink import Netlink, NetlinkError
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

GROUP = 0x7A6C0001  # the group of links about to be deleted, set only here; unlikely to be used by another program
LOOK_AGAIN = 0.0004  # seconds between two checks whether the link has gone
WORKERS = 3  # so that a deletion does not wait for another one that blocks in the kernel
PATIENCE = 10.0  # seconds after which a link that still exists is an error


class LinkDeleter:
    """Deletes links of the namespace in which it was created. `remove` may be called from any thread."""

    def __init__(self, crew: Crew | None = None) -> None:
        self._queue: queue.SimpleQueue[tuple[int, list[Exception]] | None] = queue.SimpleQueue()
        self._lookup = InterfaceLookup()
        made_by = crew or Crew()
        self._workers = [made_by.worker(f"reaper-{n}", self._work) for n in range(WORKERS)]
        for worker in self._workers:
            worker.start()

    def remove(self, name: str) -> bool:
        """Remove the link called `name`; False if there was none. Raises NetlinkError."""
        index = self._lookup.index(name)
        if not index:
            return False
        failure: list[Exception] = []
        self._queue.put((index, failure))
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self._lookup.index(name) != index:
                return True
            if failure:
                raise failure[0]
            time.sleep(LOOK_AGAIN)
        raise NetlinkError(110, f"delete link {name}", f"still there after {PATIENCE:.0f} s")

    def close(self) -> None:
        for worker in self._workers:
            worker.retire()
            self._queue.put(None)
        for worker in self._workers:
            worker.join(PATIENCE)
        self._lookup.close()

    def _next(self) -> tuple[int, list[Exception]] | None:
        while True:
            beat(IDLE)
            try:
                return self._queue.get(timeout=IDLE)
            except queue.Empty:
                continue

    def _work(self) -> None:
        socket = Netlink()
        while (first := self._next()) is not None:
            beat()
            batch = [first]
            while not self._queue.empty():
                item = self._queue.get()
                if item is None:
                    self._queue.put(None)
                    break
                batch.append(item)
            try:
                _delete(socket, [index for index, _ in batch])
            except Exception as error:
                # A refusal has a coded error at the caller; only what is unexpected needs its traceback.
                log.warning(
                    "%d links could not be deleted: %s", len(batch), error, exc_info=not isinstance(error, OSError)
                )
                for _, failure in batch:
                    failure.append(error)
        socket.close()


def _delete(socket: Netlink, indexes: list[int]) -> None:
    if len(indexes) == 1:
        links.remove_link(socket, index=indexes[0])
    else:
        links.set_group(socket, indexes, GROUP)
        links.remove_group(socket, GROUP)
