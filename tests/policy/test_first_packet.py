"""Pods that send from their first instruction on, to a peer that a policy forbids, several at once: nothing arrives."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel.toolnode import Space, running, spaces, until
from tests.policy.test_packets import put_in_force

pytestmark = [pytest.mark.root, pytest.mark.long]
TIMES = int(os.environ.get("ZLAYER_FIRST_PACKETS", "500"))
AT_ONCE = 8  # pods that start together: more than a small machine has processors
PORT = 4444
POLICIES = [
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "net"},
        "spec": {
            "podSelector": {"matchLabels": {"role": "peer"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}],
        },
    }
]


class Sender:
    """A process of a namespace that sends to a peer as fast as it can, from before the namespace has a link."""

    def __init__(self, space: Space, address: str) -> None:
        self._ended, self.sent = threading.Event(), 0
        self._sock = space.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._thread = threading.Thread(target=self._send, args=(address,))
        self._thread.start()

    def _send(self, address: str) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError):
                self._sock.sendto(b"first", (address, PORT))
                self.sent += 1

    def stop(self, after: int) -> None:
        """End when that many datagrams were sent."""
        until(lambda: self.sent > after, 5)
        self._ended.set()
        self._thread.join()
        self._sock.close()


@pytest.mark.parametrize("attach", ["bridge", "routed"])
@pytest.mark.parametrize("friend", [False, True])
def test_no_packet_of_a_stranger_arrives(tmp_path: Path, attach: str, friend: bool) -> None:
    """On one bridge and on another; the friend shows that packets are counted where they arrive."""
    (tmp_path / "policies").mkdir()
    settings = f"policies: {tmp_path}/policies\nattach: {attach}\n"
    times = AT_ONCE if friend else TIMES
    with running(tmp_path, {}, settings=settings) as node, spaces() as make:
        node.add("peer", make(), "web", None, "net", {"role": "peer"})
        put_in_force(node, POLICIES)
        ear = node.space_of("peer").inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        ear.setblocking(False)
        arrived = sent = 0

        def start(name: str, space: Space, service: str) -> None:
            node.add(name, space, service, None, "net", {"role": "friend" if friend else "stranger"})

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for first in range(0, times, AT_ONCE):
                numbers = range(first, min(first + AT_ONCE, times))
                places = {f"box{number}": make() for number in numbers}
                senders = [Sender(space, node.address("peer")) for space in places.values()]
                services = ["web" if number % 2 else "db" for number in numbers]
                names = list(places)
                list(pool.map(start, names, places.values(), services))
                for sender in senders:
                    sender.stop(after=200)
                    sent += sender.sent
                arrived += heard(ear)
                list(pool.map(node.delete, names))
        ear.close()
        assert sent > 100 * times
        assert (arrived > 0) if friend else (arrived == 0)


def heard(ear: socket.socket) -> int:
    """How many datagrams to the port have arrived."""
    found = 0
    while True:
        try:
            frame = ear.recv(2048)
        except BlockingIOError:
            return found
        is_datagram = frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_UDP
        found += is_datagram and frame[36:38] == PORT.to_bytes(2, "big")
