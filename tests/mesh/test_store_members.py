"""Nodes whose etcd has three members, of which one hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from .etcds import ADDRESS, PROGRAM, Clustered
from .fleet import Node, seconds_until, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]


@pytest.fixture(scope="module")
def pair() -> Iterator[Clustered]:
    made = Clustered("h", members=3)
    try:
        for number in (1, 2):
            made.member(number)
        for node in made.nodes.values():
            wait_for(lambda node=node: node.status().peer_count == 1, "a peer")  # type: ignore[misc]
        yield made
    finally:
        made.clean()


def members_elsewhere(node: Node, network: str) -> set[str]:
    networks = {each["isolation_network"]: each for each in node.tool("networks")["networks"]}
    return set(networks[network]["remote_members"]) if network in networks else set()


def test_a_member_of_etcd_hangs(pair: Clustered, measured: Callable[[str], None]) -> None:
    """Both nodes write to it and watch it; what one publishes meanwhile reaches the other within seconds."""
    one, two = pair.nodes.values()
    one.container("web", isolationNetwork="red")
    pair.etcds[0].send(signal.SIGSTOP)
    late = two.container("web", isolationNetwork="red")
    took = seconds_until(lambda: late.address in members_elsewhere(one, "red"), "the new member", 12)
    for node in (one, two):
        wait_for(lambda node=node: node.tool("status")["problems"] == [], "all is well")  # type: ignore[misc]
    pair.etcds[0].send(signal.SIGCONT)
    measured(f"one of three members of etcd hangs (SIGSTOP): a change arrives after {took:.1f} s, by another member")


def test_what_answers_is_not_etcd(pair: Clustered) -> None:
    """A web server at an endpoint of etcd. The last test here, for etcd is gone after it."""
    one = pair.nodes[1]
    for etcd in pair.etcds:
        etcd.end(signal.SIGKILL)
    words = ["ip", "netns", "exec", pair.underlay, sys.executable, "-m", "http.server", "-b", ADDRESS, "2379"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            text = wait_for(lambda: one.problem("store-not-etcd"), "it is told")
        finally:
            server.kill()
    assert f"{ADDRESS}:2379: it answers HTTP 501 with text/html" in text
