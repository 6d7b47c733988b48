"""Nodes whose peers stand in their YAML: who reaches whom, by what, how large, and what the underlay sees of it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from .fleet import Fleet, echoes, fleet, link, wait_for

pytestmark = pytest.mark.root
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


@pytest.fixture(scope="module")
def pair() -> Iterator[Fleet]:
    with fleet("s") as made:
        nodes = [made.node(number, start=False) for number in (1, 2)]
        link(*nodes)
        for node in nodes:
            node.start()
        yield made


def test_containers_reach_each_other(pair: Fleet) -> None:
    one, two = (pair.nodes[n].container() for n in (1, 2))
    wait_for(lambda: one.pings(two.address), "the first handshake")
    assert two.pings(one.address)
    assert one.mtu == 1420
    assert one.pings(two.address, one.mtu - 28), "as large as the MTU, unfragmented"
    assert not one.pings(two.address, one.mtu - 27)
    for size in (1, 1400, 9000):
        assert echoes(one, two, DGRAM, size)
        assert echoes(two, one, DGRAM, size)
    assert echoes(one, two, STREAM, 1 << 20)
    assert echoes(two, one, STREAM, 1 << 20)
