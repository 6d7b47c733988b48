"""Reads the host's networks again only after a change that may concern them.

A full node has a thousand links with routes of their own, and to read all routes takes some 6 ms. Changes are announced
on a socket that is read only when the networks are asked for: the kernel queues a notification before the system call
that made the change returns, so the answer is never older than the question.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from cni.host import monitor, nlmsg, own_networks
from cni.host.own_networks import Surroundings

ANEW = 60.0  # seconds after which everything is read again, whatever was announced
ROOM = 1 << 20  # bytes of notifications that may wait


class NetworksReader:
    """The networks of the constructing thread's namespace. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds. Raises OSError."""
        self._clock = clock
        self._guard = threading.Lock()
        self._seen: Surroundings | None = None
        self._read_at = 0.0
        self._news = monitor.opened()
        nlmsg.widen(self._news, socket.SO_RCVBUF, ROOM)

    def close(self) -> None:
        """Close the socket."""
        self._news.close()

    def now(self) -> Surroundings:
        """The host's addresses, routes and resolvers. Addresses and routes of the overlay's links may be of an earlier
        call. Raises OSError."""
        with self._guard:
            outdated = self._has_changed() or self._clock() - self._read_at >= ANEW
            seen, self._seen = self._seen, None  # a read that fails is repeated
            if seen is None or outdated:
                seen, self._read_at = own_networks.read(), self._clock()
            else:
                seen = replace(seen, resolvers=tuple(own_networks.resolvers()))
            self._seen = seen
            return seen

    def _has_changed(self) -> bool:
        """Whether a change since the last call may concern the host's networks."""
        changed = False
        try:
            for data in nlmsg.at_hand(self._news):
                changed = changed or any(monitor.is_of_the_host(change.link) for change in monitor.changes(data))
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return True
        return changed
