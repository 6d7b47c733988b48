"""What one asker has of a full batch, and when that counts."""

from __future__ import annotations

import contextlib
import socket

from cni.daemon.dns.inbox import BATCH, LASTING, SHARE, Inbox


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
            return len(list(inbox.read(ear)))

        assert [batch() for _ in range(LASTING)] == [BATCH] * (LASTING)
        assert (batch(), dropped) == (SHARE, [BATCH - SHARE])
        assert batch(1) == 1  # the queue is empty: what follows is a burst again
        assert (batch(), len(dropped)) == (BATCH, 1)


def test_a_share_is_each_senders_own():
    inbox = Inbox(lambda _: None)
    with contextlib.ExitStack() as stack:
        ear, flooder, other = (stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3))
        ear.bind(("127.0.0.1", 0))
        ear.setblocking(False)
        for mouth, address in ((flooder, "127.0.0.2"), (other, "127.0.0.3")):
            mouth.bind((address, 0))
            mouth.connect(ear.getsockname())
        for turn in range(LASTING + 1):
            for number in range(BATCH):
                (other if turn == LASTING and number % 8 == 7 else flooder).send(b"question")
            received = list(inbox.read(ear))
        senders = [sender[0] for _, sender in received]
        assert (senders.count("127.0.0.2"), senders.count("127.0.0.3")) == (SHARE, BATCH // 8)
