"""Reads the datagrams of one server's sockets, and keeps one asker from taking the places of the others.

The questions of several askers wait in one queue of the kernel. An asker that sends more than the server answers fills
that queue, and the kernel drops the questions of the others. Dropping a question costs a quarter of answering one, so
while the queue stays full, what an asker has beyond its share of a batch is dropped, and the queue empties sooner.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

BATCH = 64  # datagrams of one socket before the others get their turn
LONGEST_QUESTION = 4096  # bytes of a datagram that are read
LASTING = 8  # full batches in a row of one socket, after which its queue counts as staying full
SHARE = (
    16  # datagrams of one sender in a batch: more than the questions of a resolver that asks for several names at once
)

Received = tuple[bytes, tuple[str, int]]


class Inbox:
    """For any thread, as long as each socket is read by one."""

    def __init__(self, dropped: Callable[[int], None]) -> None:
        """`dropped` is told how many datagrams were beyond a share."""
        self._dropped = dropped
        self._full: Counter[socket.socket] = Counter()  # full batches in a row, by socket

    def read(self, sock: socket.socket) -> Iterator[Received]:
        """The datagrams that have arrived, at most a batch, without those beyond their sender's share."""
        taken: Counter[str] | None = Counter() if self._full[sock] >= LASTING else None
        kept = 0
        try:
            for _ in range(BATCH):
                received = sock.recvfrom(LONGEST_QUESTION)
                if taken is not None:
                    sender = received[1][0]
                    taken[sender] += 1
                    if taken[sender] > SHARE:
                        continue
                kept += 1
                yield received
        except OSError:  # none is left, or an ICMP error about an earlier answer
            self._full.pop(sock, None)
            return
        self._full[sock] += 1
        if kept < BATCH:
            self._dropped(BATCH - kept)

    def forget(self, sockets: Iterable[socket.socket]) -> None:
        """These sockets are closed."""
        for sock in sockets:
            self._full.pop(sock, None)
