"""Three nodes that know nothing of each other but where etcd is: they find ids, subnets and peers, and keep them."""

from __future__ import annotations

import ipaddress
import itertools
import socket
from collections.abc import Iterator

import pytest

from .etcds import PROGRAM, EtcdServer
from .fleet import Container, Fleet, Node, echoes, fleet, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
LEASE, GRACE = 5, 4


class Clustered(Fleet):
    """A fleet with an etcd on its underlay."""

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.etcd = EtcdServer(self.directory, "192.0.2.254", self.underlay)
        self.etcd.start()

    def member(self, number: int, start: bool = True, **more: object) -> Node:
        etcd = {"endpoints": [self.etcd.url], "lease": LEASE, "grace": GRACE}
        free = {"node_id": 0, "slice_cidr": None, "service_cidr": None}
        return self.node(number, start, **{**free, "cluster": {"etcd": etcd}, **more})


@pytest.fixture(scope="module")
def trio() -> Iterator[Clustered]:
    made = Clustered("c")
    try:
        for number in (1, 2, 3):
            made.member(number, cluster_cidr6="fd00:200::/48")
        for node in made.nodes.values():
            wait_for(lambda node=node: node.status().peer_count == 2, "two peers")  # type: ignore[misc]
        yield made
    finally:
        made.clean()
        made.etcd.end()


def pair(a: Node, b: Node, **conf: object) -> tuple[Container, Container]:
    one, two = a.container(**conf), b.container(**conf)
    wait_for(lambda: one.pings(two.address), "the way there")
    return one, two


def test_no_two_nodes_have_the_same(trio: Clustered) -> None:
    found = [node.status() for node in trio.nodes.values()]
    slices = [ipaddress.ip_network(str(status.slice_cidr)) for status in found]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(slices, 2))
    assert len({status.node_ip for status in found}) == 3
    assert len({node.tool("status")["node"]["node_id"] for node in trio.nodes.values()}) == 3


@pytest.mark.parametrize("mode", ["auto", "shared", "isolated", "dedicated"])
def test_containers_on_any_two_nodes_reach_each_other(trio: Clustered, mode: str) -> None:
    service = f"svc-{mode}"
    there = [node.container(service, mode=mode) for node in trio.nodes.values()]
    for one, two in itertools.permutations(there, 2):
        wait_for(lambda one=one, two=two: one.pings(two.address), f"{one.name} -> {two.name}")  # type: ignore[misc]
        wait_for(lambda one=one, two=two: one.pings(two.address6), "IPv6")  # type: ignore[misc]
        assert one.pings(two.address, one.mtu - 28)
        assert not one.pings(two.address, one.mtu - 27)
    for one, two in itertools.combinations(there, 2):
        assert echoes(one, two, DGRAM, 1300)
        assert echoes(one, two, DGRAM, 20000)
        assert echoes(one, two, STREAM, 300_000)
        assert echoes(two, one, STREAM, 300_000, six=True)
