"""What one asker has of a full batch, and when that counts."""

from __future__ import annotations

import socket
from collections import Counter

from cni.daemon.dns.inbox import BATCH, LASTING, SHARE, Inbox, Received, shared


def of(sender: str, number: int) -> list[Received]:
    return [(b"question", (sender, 1024 + each)) for each in range(number)]


def test_nobody_has_more_than_a_share_and_the_order_stays():
    received = [*of("10.0.0.1", 5), *of("10.0.0.2", SHARE + 9), *of("10.0.0.3", SHARE)]
    kept = shared(received)
    assert Counter(sender for _, (sender, _) in kept) == {"10.0.0.1": 5, "10.0.0.2": SHARE, "10.0.0.3": SHARE}
    assert [each for each in received if each in kept] == kept


def test_a_burst_is_read_whole_and_a_queue_that_stays_full_is_shared():
    dropped: list[int] = []
    inbox = Inbox(dropped.append)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth,
    ):
        ear.bind(("127.0.0.1", 0))
        ear.setblocking(False)
        mouth.connect(ear.getsockname())

        def batch(number: int = BATCH) -> int:
            for _ in range(number):
                mouth.send(b"question")
            return len(inbox.read(ear))

        assert [batch() for _ in range(LASTING - 1)] == [BATCH] * (LASTING - 1)
        assert (batch(), dropped) == (SHARE, [BATCH - SHARE])
        assert batch(1) == 1  # the queue is empty: what follows is a burst again
        assert (batch(), len(dropped)) == (BATCH, 1)
