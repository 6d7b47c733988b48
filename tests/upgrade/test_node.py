"""One node: the present program takes over what the older one left, under a running stream, and gives it back."""

from __future__ import annotations

import signal

import pytest

from tests.mesh.fleet import Container, Fleet, Node, wait_for
from tests.upgrade.streams import lost, stream


def replace(node: Node, program: tuple[str, ...], how: int) -> None:
    """Another version's daemon in place of the one that runs."""
    node.end(how)
    node.program = program
    node.start()


def check(container: Container) -> None:
    """CHECK with the result of ADD. Raises RuntimeError with what the plugin said."""
    container.conf["prevResult"] = container.result
    container.node.plugin("CHECK", container)
    del container.conf["prevResult"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
@pytest.mark.parametrize("back", [False, True], ids=["up", "up-and-back"])
def test_attachments_are_taken_over_under_a_stream(
    fleet: Fleet, before: tuple[str, ...], now: tuple[str, ...], how: int, back: bool
) -> None:
    node = fleet.node(1, start=False)
    node.program = before
    node.start()
    flat, other = node.container(), node.container()
    red = node.container("db", isolationNetwork="red")
    twin = node.container("db", isolationNetwork="red")
    dead = node.container()
    identity = node.tool("status")["node"]
    addresses = {each.name: each.address for each in (flat, other, red, twin)}
    with stream(flat, other) as flat_stream, stream(red, twin) as red_stream:
        node.end(how)
        node.plugin("DEL", dead)  # while no daemon runs: DEL goes into the delete queue
        node.program = now
        node.start()
        if back:
            replace(node, before, how)
            replace(node, now, how)
        assert not flat.pings(red.address, wait=0.5)
        assert not red.pings(flat.address, wait=0.5)
        unanswered = {**lost(flat_stream()), **lost(red_stream())}
    assert set(unanswered.values()) == {0}, unanswered
    found = {a["container_id"]: a["addresses"][0].partition("/")[0] for a in node.tool("attachments")}
    assert found == addresses
    assert node.tool("status")["node"] == identity
    assert node.tool("status")["problems"] == []
    for container in (flat, other, red, twin):
        check(container)
    ports = [
        link["linkinfo"] for link in node.ip("-d", "link", "show", "type", "veth") if link["ifname"].endswith("-v")
    ]
    assert [port["info_slave_data"]["hairpin"] for port in ports] == [True] * 4  # the older version sets none
    fresh = node.container()
    assert fresh.address not in addresses.values()
    for container in (flat, other, red, twin, fresh):
        node.remove(container)
    assert node.tool("attachments") == []


def test_keys_and_joined_peers_survive(
    fleet: Fleet, engine: None, before: tuple[str, ...], now: tuple[str, ...]
) -> None:
    """The identity and the peers that a token brought are read from the older program's files."""
    one, two = fleet.node(1, start=False), fleet.node(2, start=False)
    for node in (one, two):
        node.program = before
        node.start()
    assert one.tool("join", two.tool("peer", "token")["token"])
    assert two.tool("join", one.tool("peer", "token")["token"])
    here, there = one.container(), two.container()
    wait_for(lambda: here.pings(there.address), "the tunnel")
    key = one.status().public_key
    with stream(here, there) as told:
        replace(one, now, signal.SIGKILL)
        wait_for(lambda: one.status().peer_count == 1, "the joined peer")
        unanswered = lost(told())
    assert set(unanswered.values()) == {0}, unanswered
    assert one.status().public_key == key
    replace(one, before, signal.SIGTERM)
    wait_for(lambda: here.pings(there.address), "the tunnel, with the older program again")
    assert one.status().public_key == key


@pytest.mark.parametrize("newer", ["plugin", "daemon"])
def test_a_plugin_of_one_version_speaks_to_a_daemon_of_the_other(
    fleet: Fleet, before: tuple[str, ...], now: tuple[str, ...], newer: str
) -> None:
    plugin, daemon = (now, before) if newer == "plugin" else (before, now)
    node = fleet.node(1, start=False)
    node.program = daemon
    node.start()
    node.program = plugin
    one, two = node.container(), node.container()
    assert one.pings(two.address)
    for container in (one, two):
        check(container)
    for container in (one, two):
        node.remove(container)
    assert node.tool("attachments") == []
    problems = node.tool("status")["problems"]  # an older daemon tells no codes
    assert all("this program is" in text for text in problems), "only that the versions differ"
    assert len(problems) <= 1
