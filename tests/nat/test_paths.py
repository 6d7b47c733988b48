"""Nodes behind NATs of each kind meet: the time from the start of the second node to its first answered echo, and by
which path."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import pytest

from cni.daemon.nat.sought_peers import HOLD
from tests.mesh.fleet import Node, run, wait_for

from .flow import Flow
from .lab import ADDRESS, SECOND, STUN, Lab

SERVERS = {"stun": [f"{ADDRESS}:{STUN[0]}", f"{SECOND}:{STUN[0]}"]}
MEET = 10.0  # seconds


def path_of(node: Node, other: Node) -> dict[str, object]:
    """What `peers` says of the other node on this one."""
    key = other.status().public_key
    return next(peer for peer in node.tool("peers") if peer["public_key"] == key)


def echoed(node: Node, other: Node) -> bool:
    """Whether the other node's own address answers through the tunnel."""
    address = other.status().node_ip
    return bool(address) and not node_ping(node, str(address))


def raw_sockets(node: Node) -> int:
    """How many sockets the node's namespace has that receive raw UDP over IPv4."""
    table = run("ip", "netns", "exec", node.name, "cat", "/proc/net/raw").splitlines()[1:]
    return sum(line.split()[1].endswith(":0011") for line in table)


def node_ping(node: Node, address: str, wait: float = 0.3) -> int:
    """0 if one echo is answered within `wait` seconds."""
    words = ["ip", "netns", "exec", node.name, "ping", "-n", "-q", "-c", "1", "-W", f"{wait:g}", address]
    return subprocess.run(words, capture_output=True, check=False).returncode


def meet(lab: Lab, one: str, two: str, **settings: object) -> tuple[Node, Node, float]:
    """Start two nodes at sites of these kinds; returns them, and how long they took from the start of the second."""
    first = lab.joined(one, 1, **settings)
    second = lab.joined(two, 2, **settings)
    began = time.monotonic()
    wait_for(lambda: echoed(first, second), f"{one} and {two}", 30)
    return first, second, time.monotonic() - began


DIRECT = [
    ("public", "public", "direct"),
    ("public", "prc", "hole-punched"),
    ("public", "sym", "hole-punched"),
    ("prc", "prc", "hole-punched"),
    ("shift", "shift", "hole-punched"),
    ("full", "sym", "hole-punched"),
    ("arc", "sym", "hole-punched"),
    ("open", "open", "hole-punched"),
    ("double", "prc", "hole-punched"),
]


@pytest.mark.parametrize(("one", "two", "path"), DIRECT, ids=[f"{one}-{two}" for one, two, _ in DIRECT])
def test_two_nodes_meet(lab: Lab, one: str, two: str, path: str, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    first, second, seconds = meet(lab, one, two, nat=SERVERS)
    found = path_of(first, second)
    measured(f"{one:8} {two:8} {seconds:5.1f} s  {found['path']}: {found['path_why']}")
    assert seconds < MEET
    assert found["path"] == path


def test_a_public_node_is_witness_enough(lab: Lab, measured: Callable[[str], None]) -> None:
    lab.joined("public", 3, nat={})
    first, second, seconds = meet(lab, "prc", "shift", nat={})
    measured(f"no STUN server, a public node as witness: {seconds:5.1f} s  {path_of(first, second)['path_why']}")
    assert seconds < MEET
    assert path_of(first, second)["endpoint"] == f"{lab.public_address(2)}:33331"
    assert lab.document(second)["nat"]["outside"] == [f"{lab.public_address(2)}:33331"]


def test_a_node_without_nat_traversal_is_called_as_before(lab: Lab) -> None:
    plain = lab.joined("public", 1)
    asking = lab.joined("prc", 2, nat={})
    wait_for(lambda: echoed(asking, plain), "the tunnel")
    assert path_of(plain, asking)["path"] == ""
    assert lab.document(plain)["nat"] is None
    assert raw_sockets(plain) == 0
    assert raw_sockets(asking) == 1


@pytest.mark.parametrize(("one", "two"), [("prc", "shift"), ("arc", "sym")], ids=["prc-shift", "arc-sym"])
def test_a_restarted_daemon_keeps_the_path(lab: Lab, one: str, two: str, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    first, second, _ = meet(lab, one, two, nat=SERVERS)
    wait_for(lambda: path_of(first, second)["path"] == "hole-punched", "the path")
    with Flow(first, str(second.status().node_ip)) as flow:
        first.end()
        first.start()
        wait_for(lambda: path_of(first, second)["path"] == "hole-punched", "the path again")
        time.sleep(HOLD + 2)  # longer than a peer is held at an endpoint that no probe has found
    measured(f"daemon of {one} restarted, peer {two}: {flow.lost} of {flow.sent} echoes lost, gap {flow.gap:.2f} s")
    assert path_of(first, second)["path"] == "hole-punched"
    assert flow.gap < 0.5


def test_two_nodes_behind_one_router_meet_behind_it(lab: Lab, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    first = lab.joined("sym", 1, nat=SERVERS)
    second = lab.beside(first, 2, nat=SERVERS)
    began = time.monotonic()
    wait_for(lambda: echoed(first, second), "the tunnel", 30)
    seconds = time.monotonic() - began
    wait_for(lambda: path_of(first, second)["path"] == "direct", "a direct path")
    found = path_of(first, second)
    measured(f"behind one symmetric router: {seconds:.1f} s  {found['path']}: {found['path_why']}")
    assert seconds < MEET
    assert found["endpoint"] == f"{second.underlay}:51420"
