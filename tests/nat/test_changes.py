"""What a change of the network costs a pair in use: a working path within 8 s, the best one within 70 s.

Echoes travel all the time, so both nodes send. The node that moves starts the echoes in one half of the cases, and
answers them in the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest

from tests.mesh.fleet import Node, run, wait_for

from .flow import Flow
from .lab import KINDS, Lab
from .test_paths import SERVERS, echoed, path_of

RELAY = {**SERVERS, "relay": {"ports": "40000-40099"}}
WORKS, BEST = 8.0, 70.0
"""Seconds until a path works again, and until it is the best one."""


def new_router_address(lab: Lab, node: Node) -> None:
    """The provider gives the router, or a node without one, another address."""
    number = node.number
    name, device = (f"{node.name}r", "wan") if KINDS[lab.kinds[number]].nat else (node.name, "eth0")
    outside, inside = f"203.0.114.{4 * number + 1}", f"203.0.114.{4 * number + 2}"
    run("ip", "-n", lab.underlay, "address", "flush", "dev", f"s{number}")  # nothing leads to the former address
    run("ip", "-n", lab.underlay, "address", "add", f"{outside}/30", "dev", f"s{number}")
    run("ip", "-n", name, "address", "flush", "dev", device, "scope", "global")
    run("ip", "-n", name, "address", "add", f"{inside}/30", "dev", device)
    run("ip", "-n", name, "route", "replace", "default", "via", outside)
    run("ip", "netns", "exec", name, "conntrack", "-F", check=False)


def move_beside(lab: Lab, node: Node, other: Node) -> None:
    """The node leaves its site, and gets a cable to its peer's router."""
    run("ip", "-n", node.name, "link", "delete", "eth0")
    lab.beside_again(node, other)


CASES = [
    ("public", "public", "direct"),
    ("public", "prc", "direct"),
    ("prc", "public", "hole-punched"),
    ("prc", "prc", "hole-punched"),
    ("full", "sym", "hole-punched"),
    ("sym", "full", "hole-punched"),
]


def has_path(one: Node, two: Node) -> bool:
    return path_of(one, two)["path"] not in ("", "searching") and echoed(one, two)


def use(lab: Lab, one: str, two: str) -> tuple[Node, Node]:
    """A pair with traffic, in a cluster with a STUN server and a relay."""
    lab.start_stun()
    lab.joined("public", 3, nat=RELAY)
    first, second = (lab.joined(kind, number, nat=SERVERS) for number, kind in ((1, one), (2, two)))
    for here, there in ((first, second), (second, first)):
        wait_for(partial(has_path, here, there), "a path", 30)
    return first, second


def gap_of(
    lab: Lab, sender: Node, answerer: Node, change: Callable[[], None], best: Callable[[], bool]
) -> tuple[float, float]:
    """Seconds without an echo, and until the best path."""
    with Flow(sender, str(answerer.status().node_ip)) as flow:
        time.sleep(3)
        began = time.monotonic()
        change()
        wait_for(best, "the best path", BEST + 10)
        until_best = time.monotonic() - began
        time.sleep(max(0.0, WORKS + 4 - until_best))
    return flow.gap, until_best


@pytest.mark.parametrize("sends", ["mover sends", "peer sends"])
@pytest.mark.parametrize(("mover", "peer", "path"), CASES)
def test_another_address(
    lab: Lab, mover: str, peer: str, path: str, sends: str, measured: Callable[[str], None]
) -> None:
    first, second = use(lab, mover, peer)
    sender, answerer = (first, second) if sends == "mover sends" else (second, first)

    def is_best() -> bool:
        seen = path_of(second, first)
        return str(seen["endpoint"]).startswith("203.0.114.") and seen["path"] == path

    gap, best = gap_of(lab, sender, answerer, lambda: new_router_address(lab, first), is_best)
    measured(f"{mover} gets another address, {peer}, {sends}: {gap:.1f} s without an echo, best path in {best:.1f} s")
    assert gap < WORKS
    assert best < BEST


@pytest.mark.parametrize("sends", ["mover sends", "peer sends"])
@pytest.mark.parametrize("mover", ["public", "prc"])
def test_a_move_into_the_peers_lan(lab: Lab, mover: str, sends: str, measured: Callable[[str], None]) -> None:
    first, second = use(lab, mover, "prc")
    sender, answerer = (first, second) if sends == "mover sends" else (second, first)

    def is_best() -> bool:
        return str(path_of(second, first)["endpoint"]).startswith("192.168.")

    gap, best = gap_of(lab, sender, answerer, lambda: move_beside(lab, first, second), is_best)
    measured(f"{mover} moves into its peer's LAN, {sends}: {gap:.1f} s without an echo, best path in {best:.1f} s")
    assert gap < WORKS
    assert best < BEST


def test_the_end_that_only_answers_notices_that_its_path_was_cut(lab: Lab, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    first, second = (lab.joined(kind, number, nat=SERVERS) for number, kind in ((1, "public"), (2, "prc")))
    for here, there in ((first, second), (second, first)):
        wait_for(partial(has_path, here, there), "a path", 30)
    with Flow(first, str(second.status().node_ip)):
        time.sleep(3)
        run("ip", "-n", lab.underlay, "link", "set", "s1", "down")
        time.sleep(WORKS)
        found = path_of(second, first)["path"]
    measured(f"path cut, the end that only answers, after {WORKS:.0f} s: {found}")
    assert found == "searching"
