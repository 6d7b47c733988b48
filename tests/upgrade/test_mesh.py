"""A mesh of both versions on one etcd: it agrees, carries traffic and keeps its fence."""

from __future__ import annotations

import signal

import pytest

from tests.dns import test_mesh as names
from tests.mesh.etcds import Clustered
from tests.mesh.fleet import Container, Node, wait_for
from tests.upgrade.streams import lost, stream


def has_peers(node: Node, count: int) -> bool:
    return node.status().peer_count == count and not node.tool("status", check=False)["problems"]


def meets(one: Container, two: Container) -> None:
    wait_for(lambda: one.pings(two.address), f"{one.name} reaches {two.name}", 30)


@pytest.mark.parametrize("older_nodes", [{1, 2}, {3}], ids=["two-older-one-newer", "one-older-two-newer"])
def test_a_mixed_mesh(
    engine: None, clustered: Clustered, before: tuple[str, ...], now: tuple[str, ...], older_nodes: set[int]
) -> None:
    for number in (1, 2, 3):
        node = clustered.member(number, start=False)
        node.program = before if number in older_nodes else now
        node.start()
    nodes = list(clustered.nodes.values())
    for node in nodes:
        wait_for(lambda node=node: has_peers(node, 2), f"both peers on {node.name}", 60)  # type: ignore[misc]
    flat = [node.container("web") for node in nodes]
    red = [node.container("db", isolationNetwork="red") for node in nodes]
    for group in (flat, red):
        for one in group:
            for two in group:
                if one is not two:
                    meets(one, two)
    for member in red:
        for stranger in flat:
            assert not stranger.pings(member.address, wait=0.3), f"{stranger.name} reaches {member.name}"
            assert not member.pings(stranger.address, wait=0.3), f"{member.name} reaches {stranger.name}"
    subnets = [subnet for node in nodes for service in node.tool("status")["services"] for subnet in service["subnets"]]
    assert len(subnets) == len(set(subnets))

    # Every node becomes the present version, one after another, and the mesh stays whole.
    with stream(flat[0], flat[2]) as flat_stream, stream(red[0], red[2]) as red_stream:
        for node in nodes:
            if node.program == before:
                node.end(signal.SIGTERM)
                node.program = now
                node.start()
                wait_for(lambda node=node: has_peers(node, 2), f"both peers on {node.name}", 60)  # type: ignore[misc]
        unanswered = {**lost(flat_stream()), **lost(red_stream())}
    assert set(unanswered.values()) == {0}, unanswered
    for one, two in ((flat[0], flat[2]), (red[2], red[1])):
        meets(one, two)
    assert not flat[0].pings(red[2].address, wait=0.3)


def test_names_beside_an_older_node(
    engine: None, clustered: Clustered, before: tuple[str, ...], now: tuple[str, ...]
) -> None:
    """Nodes that serve DNS tell their containers' names; the older node ignores the records, and its containers have no
    name until it is upgraded."""
    for number in (1, 2, 3):
        node = clustered.member(number, start=False)
        node.program = before if number == 3 else now
        node.start()
    one, two, old = clustered.nodes.values()
    for node in (one, two, old):
        wait_for(lambda node=node: has_peers(node, 2), f"both peers on {node.name}", 60)  # type: ignore[misc]
    asker, named, unnamed = one.container("asker"), two.container("web"), old.container("web")
    wait_for(lambda: names.told(asker, "web") == {named.address}, "the name", 30)
    meets(asker, unnamed)
    assert names.told(asker, "web") == {named.address}
    assert has_peers(old, 2), "what the older node makes of the records"
    old.end(signal.SIGTERM)
    old.program = now
    old.start()
    wait_for(lambda: names.told(asker, "web") == {named.address, unnamed.address}, "the upgraded node's name", 60)
