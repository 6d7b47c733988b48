"""UDP sockets among which the kernel chooses by the sender's address alone."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest

from cni.host import source_sockets

from .conftest import Space

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
NUMBER = 4


@pytest.mark.parametrize("prefix", ["127.0.0.", "fd00::"])
def test_a_sender_has_one_queue_whatever_its_port(spaces: Callable[[], Space], prefix: str) -> None:
    host = spaces()
    host.ip("link set lo up")
    if ":" in prefix:
        host.ip(*(f"addr add {prefix}{last}/128 dev lo nodad" for last in range(1, 9)))
    six = socket.AF_INET6 if ":" in prefix else socket.AF_INET
    sockets = host.inside(lambda: source_sockets.bind(f"{prefix}1", 0, NUMBER, 1 << 16))
    port = sockets[0].getsockname()[1]
    assert {each.getsockname()[1] for each in sockets} == {port}
    found = {}
    for last in range(1, 9):
        for _ in range(6):  # each from another port
            with host.inside(lambda: socket.socket(six, socket.SOCK_DGRAM)) as sender:
                sender.bind((f"{prefix}{last}", 0))
                sender.sendto(b"x", (f"{prefix}1", port))
        found[last] = [number for number, each in enumerate(sockets) if _drain(each)]
    assert all(len(numbers) == 1 for numbers in found.values()), found
    assert {numbers[0] for numbers in found.values()} == set(range(NUMBER)), found
    for each in sockets:
        each.close()


def _drain(sock: socket.socket) -> int:
    sock.setblocking(False)
    heard = 0
    while True:
        try:
            sock.recv(10)
        except BlockingIOError:
            return heard
        heard += 1


def test_a_port_that_another_program_has_is_refused(spaces: Callable[[], Space]) -> None:
    host = spaces()
    host.ip("link set lo up")
    with host.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(OSError) as refused:
            host.inside(lambda: source_sockets.bind("127.0.0.1", port, NUMBER, 1 << 16))
        assert refused.value.errno == errno.EADDRINUSE
