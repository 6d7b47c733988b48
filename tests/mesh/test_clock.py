"""The wall clock is set, forward and back, under two nodes with etcd, kernel WireGuard and traffic.

Only in the emulated machine that `scripts/test vm` boots, which says so in the environment. All
nodes there share one clock, and that is the worse case: where one node's alone is set back, its peers begin the next
handshake. A tunnel made by hand beside them shows what WireGuard does by itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cni.overlay import wire

from .etcds import PROGRAM, Clustered
from .fleet import Container, Node, run, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
    pytest.mark.skipif(
        "ZLAYER_MAY_SET_CLOCK" not in os.environ, reason="sets the clock: in an emulated machine, by scripts/test vm"
    ),
]
log = logging.getLogger(__name__)
Measured = Callable[[str], None]
DAY = 86400
REJECT = 180  # seconds that a WireGuard session lives


@pytest.fixture(scope="module")
def pair() -> Iterator[Clustered]:
    made = Clustered("k")
    try:
        etcd = {"endpoints": [made.etcd.url], "lease": 20, "grace": 10}
        for number in (1, 2):
            made.member(number, cluster={"etcd": etcd})
        for node in made.nodes.values():
            wait_for(lambda node=node: node.status().peer_count == 1, "a peer")  # type: ignore[misc]
        yield made
    finally:
        made.clean()


class Asking:
    """One container asks the other every half second; when an answer came last, and the longest time without."""

    def __init__(self, one: Container, two: Container) -> None:
        self._one, self._two = one, two
        self._end = threading.Event()
        self.last, self.gap = time.monotonic(), 0.0
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._end.wait(0.5):
            if self._one.pings(self._two.address, wait=1.0):
                now = time.monotonic()
                self.gap, self.last = max(self.gap, now - self.last), now

    def begin(self) -> None:
        self.gap = 0.0

    def close(self) -> None:
        self._end.set()
        self._thread.join()


def set_clock(by: int) -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.time() + by)


class ByHand:
    """A tunnel between two nodes that no daemon maintains."""

    def __init__(self, one: Node, two: Node) -> None:
        self.one, ends = one, ((one, "192.168.77.1"), (two, "192.168.77.2"))
        for node, address in ends:
            run("ip", "-n", node.name, "link", "add", "byhand", "type", "wireguard")
            run("ip", "-n", node.name, "address", "add", f"{address}/24", "dev", "byhand")
            key = node.directory / "byhand"
            key.write_text(run("wg", "genkey"))
            node.wg("set", "byhand", "private-key", str(key), "listen-port", "5555")
            run("ip", "-n", node.name, "link", "set", "byhand", "up")
        for (node, _), (other, address) in (ends, ends[::-1]):
            key_ = other.wg("show", "byhand", "public-key").strip()
            where = ("endpoint", f"{other.underlay}:5555", "allowed-ips", f"{address}/32")
            node.wg("set", "byhand", "peer", key_, *where, "persistent-keepalive", "5")

    def passes(self) -> bool:
        words = ("ip", "netns", "exec", self.one.name, "ping", "-n", "-q", "-c", "1", "-W", "2", "192.168.77.2")
        with contextlib.suppress(RuntimeError):
            return " 1 received" in run(*words)
        return False


def _begin_anew(node: Node, device: str) -> None:
    """A device that comes up has no session, and calls; its one peer still has one, and does not."""
    before = node.wg("show", device, "latest-handshakes")
    for state in ("down", "up"):
        run("ip", "-n", node.name, "link", "set", device, state)
    wait_for(lambda: node.wg("show", device, "latest-handshakes") != before, "a handshake of its own")


def test_the_clock_is_set(pair: Clustered, measured: Measured) -> None:
    one, two = pair.nodes.values()
    a, b = one.container("web"), two.container("web")
    wait_for(lambda: a.pings(b.address), "the way")
    plain = ByHand(one, two)
    wait_for(plain.passes, "the tunnel made by hand")
    # Each end has begun a handshake once, as after some days: who never has is taken for it at any time.
    for node in (one, two):
        for device in (node.device, "byhand"):
            _begin_anew(node, device)
        wait_for(plain.passes, "the tunnel made by hand, again")
        wait_for(lambda: a.pings(b.address), "the way, again", 60)
    log.info("all is there")
    traffic = Asking(a, b)
    try:
        _forward(one, traffic, measured)
        _back(one, two, traffic, plain, measured)
    finally:
        traffic.close()


def _codes(node: Node) -> list[str]:
    return [problem["code"] for problem in node.tool("status", check=False)["problem_details"]]


def _shaken(node: Node) -> list[list[str]]:
    return [line.split() for line in node.wg("show", node.device, "latest-handshakes").splitlines()]


def _edges(node: Node) -> set[str]:
    found = node.ask(wire.ListEdgePeers())
    assert isinstance(found, wire.EdgePeers)
    return {edge.name for edge in found.peers}


def mint(node: Node, name: str, seconds: int) -> None:
    asked = wire.MintEdgePeer(name=name, ttl_secs=seconds, node_endpoint=f"{node.underlay}:51420")
    assert isinstance(node.ask(asked), wire.EdgeConfig)


def _forward(one: Node, traffic: Asking, measured: Measured) -> None:
    mint(one, "long", 3600)
    traffic.begin()
    set_clock(DAY)
    time.sleep(40)  # more than lease and grace, and a round of every reconciler
    assert _edges(one) == {"long"}, "an edge peer's time is not the wall clock's"
    assert one.status().peer_count == 2, "the other node, and the edge"
    (peer,) = [p for p in one.tool("peers") if not p["name"].startswith("edge")]
    assert peer["alive"]
    assert one.tool("status")["problems"] == []
    assert traffic.gap < REJECT / 2
    log.info("it went forward")
    measured(f"clock set forward by a day: longest gap {traffic.gap:.1f} s (asked every 0.5 s); nothing is taken down")


def _back(one: Node, two: Node, traffic: Asking, plain: ByHand, measured: Measured) -> None:
    mint(one, "short", 90)
    traffic.begin()
    set_clock(-2 * DAY)
    assert _edges(one) >= {"short"}
    wait_for(lambda: "short" not in _edges(one), "the end of an edge peer, by its own time", 120, 2.0)
    assert _codes(one) == ["clock-behind"], "of the files of its identity"
    log.info("the edge peer has ended")
    wait_for(lambda: not plain.passes(), "the end of a session that cannot be renewed", 20, 2.0)
    log.info("the tunnel made by hand is dead")
    wait_for(lambda: time.monotonic() - traffic.last < 2, "traffic, though the clock is behind", 6, 0.5)
    time.sleep(30)
    assert time.monotonic() - traffic.last < 10
    assert not plain.passes()
    assert _codes(two) == ["clock-behind"]
    (shaken,) = [int(at) for key, at in _shaken(one) if key == two.status().public_key]
    assert 0 <= time.time() - shaken < REJECT, "a handshake by the clock as it is now"
    assert one.tool("status")["wireguard"]["alive"] == 1
    measured(
        f"all clocks set back by two days: longest gap {traffic.gap:.1f} s, when the sessions of before end; a tunnel "
        "made by hand beside it is dead from then on"
    )
