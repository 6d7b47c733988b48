"""Containers without a bridge on nodes that WireGuard joins, for each mode of a service; and beside a bridged node."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from .etcds import PROGRAM, Clustered
from .fleet import Container, arrives, echoes, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]
KINDS = {1: "routed", 2: "routed", 3: "bridge"}


@pytest.fixture(scope="module")
def trio() -> Iterator[Clustered]:
    """Two nodes that attach without a bridge, and one with bridges."""
    made = Clustered("r")
    try:
        for number, attach in KINDS.items():
            made.member(number, cluster_cidr6="fd00:200::/48", attach=attach)
        for node in made.nodes.values():
            wait_for(lambda node=node: node.status().peer_count == 2, "two peers")  # type: ignore[misc]
        yield made
    finally:
        made.clean()


def kind_of(container: Container) -> str:
    """How the container is attached, by its own address: a routed one has no subnet."""
    lengths = {each["address"].partition("/")[2] for each in container.result["ips"]}
    return "routed" if lengths == {"32", "128"} else "bridge"


@pytest.mark.parametrize("mode", ["auto", "shared", "isolated", "dedicated"])
def test_every_mode_over_wireguard(trio: Clustered, mode: str) -> None:
    """A service's containers reach one another on this node and on the others, whole datagrams and streams, and the
    node address; those of mode `isolated` no other container."""
    nodes = list(trio.nodes.values())
    ours = [node.container(f"w-{mode}", mode=mode) for node in (nodes[0], *nodes)]
    flat = nodes[1].container("stranger")
    assert [kind_of(container) for container in ours] == ["routed", "routed", "routed", "bridge"]
    me, *others = ours
    for other in others:
        arrives(me, other)
        assert me.pings(other.address6)
        for six in (False, True):
            assert echoes(me, other, socket.SOCK_STREAM, 100_000, six)
            assert echoes(other, me, socket.SOCK_DGRAM, 1_200, six)
    assert me.pings(str(nodes[0].status().node_ip))
    if mode == "dedicated":  # between nodes its own device takes packets of the service alone
        return
    opens = mode != "isolated"
    for one, two in ((me, flat), (flat, me)):
        if opens:
            arrives(one, two)
        assert one.pings(two.address, wait=4.0 if opens else 0.4) == opens
        assert one.node.why(one.address, two.address) == opens


@pytest.mark.parametrize("number", KINDS)
def test_an_address_ends_with_its_container(trio: Clustered, number: int) -> None:
    """On every node, whatever the kinds of the two."""
    me, node = trio.nodes[1].container("left"), trio.nodes[number]
    gone = node.container("left")
    arrives(me, gone)
    address = gone.address
    node.remove(gone)
    assert not me.pings(address, wait=0.4)
