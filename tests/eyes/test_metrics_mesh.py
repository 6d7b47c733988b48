"""The metrics of peers and of the store, on two nodes with WireGuard and a real etcd."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cni.cli import metrics
from tests.eyes.calls import read
from tests.mesh.etcds import PROGRAM, Clustered
from tests.mesh.fleet import Node, inside, wait_for

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)")


@pytest.fixture
def pair() -> Iterator[Clustered]:
    made = Clustered("eyes")
    try:
        for number in (1, 2):
            made.member(number)
        for node in made.nodes.values():
            wait_for(lambda node=node: node.status().peer_count == 1, "a peer")  # type: ignore[misc]
        yield made
    finally:
        made.clean()


def scraped(node: Node) -> dict[str, float]:
    answer = metrics.scrape(str(node.directory / "run/metrics.sock"))
    return read(answer.partition(b"\r\n\r\n")[2].decode())


def value(found: dict[str, float], name: str, *labels: str) -> float | None:
    """The one series of a metric that has all of these labels."""
    series = [s for s in found if s.partition("{")[0] == name and all(label in s for label in labels)]
    return found[series[0]] if len(series) == 1 else None


def counted(node: Node, met: Callable[[dict[str, float]], bool], what: str, seconds: float = 20) -> dict[str, float]:
    wait_for(lambda: met(scraped(node)), what)
    return scraped(node)


def test_peers_and_the_store(pair: Clustered) -> None:
    one, two = pair.nodes.values()
    a, b = one.container(), two.container()
    wait_for(lambda: a.pings(b.address), "the way there")
    began = time.time()
    found = counted(one, lambda seen: value(seen, "zlayer_cni_peers_alive") == 1, "the peer answers")
    assert value(found, "zlayer_cni_peers") == 1
    shaken = value(found, "zlayer_cni_peer_handshake_timestamp_seconds")
    assert shaken is not None
    assert began - 120 < shaken <= time.time()
    assert value(found, "zlayer_cni_peer_path", 'path="direct"') == 1
    assert (value(found, "zlayer_cni_peer_path_mtu_bytes") or 0) >= 1280
    assert value(found, "zlayer_cni_store_up") == 1
    assert not any(two.underlay in series for series in found), "no endpoint is a label"

    assert value(found, "zlayer_cni_store_revision_lag") is not None
    ways = {way: ('path="direct"', f'direction="{way}"') for way in ("received", "sent")}
    before = {way: value(found, "zlayer_cni_peer_bytes_total", *labels) or 0 for way, labels in ways.items()}
    assert a.pings(b.address, size=1000)
    after = scraped(one)
    for way, count in before.items():
        assert (value(after, "zlayer_cni_peer_bytes_total", *ways[way]) or 0) - count > 1000

    pair.etcd.end(signal.SIGKILL)
    found = counted(one, lambda seen: value(seen, "zlayer_cni_store_up") == 0, "the store is told to be down")
    assert value(found, "zlayer_cni_problem", 'code="store-unreachable"') == 1
    pair.etcd.start()
    found = counted(one, lambda seen: value(seen, "zlayer_cni_store_up") == 1, "the store is back")
    assert one.problem("clock-differs") == ""
    assert _date(one, pair.etcd.url), "etcd dates its answers, so its clock could be compared"


class HeldWatch:
    """Passes connections on to etcd, until it holds what comes back on those that watch."""

    def __init__(self, fleet: Clustered, port: int) -> None:
        self.etcd, self.held = (fleet.etcd.address, 2379), False
        self._space = f"/run/netns/{fleet.underlay}"
        self._listener = inside(self._space, lambda: socket.create_server((fleet.etcd.address, port)))
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = inside(self._space, lambda: socket.create_connection(self.etcd, 5))
                self._sockets += [client, server]
                watches = threading.Event()
                for one, other, back in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=(one, other, back, watches), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, back: bool, watches: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                if not back and b"/v3/watch" in data:
                    watches.set()
                while back and watches.is_set() and self.held:
                    time.sleep(0.05)
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


def test_a_watch_that_tells_nothing_is_behind() -> None:
    """Its connection lives, and every other exchange with etcd works: no problem says so, the lag does."""
    made = Clustered("lag")
    proxy = HeldWatch(made, 2400)
    try:
        where = {"endpoints": [f"http://{made.etcd.address}:2400"], "lease": 10, "grace": 10}
        node = made.member(1, cluster={"etcd": where})
        found = counted(node, lambda seen: value(seen, "zlayer_cni_store_revision_lag") == 0, "all is told")
        assert value(found, "zlayer_cni_store_up") == 1
        proxy.held = True
        for number in range(5):
            made.put(f"{made.base(node)}name/x/{number}", b"x")
        counted(node, lambda seen: (value(seen, "zlayer_cni_store_revision_lag") or 0) >= 5, "the lag")
        proxy.held = False
        counted(node, lambda seen: value(seen, "zlayer_cni_store_revision_lag") == 0, "all is told again")
    finally:
        made.clean()
        proxy.close()


def _date(node: Node, url: str) -> str:
    """The header Date of an answer of etcd's gateway, asked from the node."""
    code = (
        f'import urllib.request as u; r = u.Request({url + "/v3/kv/range"!r}, data=b\'{{"key": "AA=="}}\');'
        "print(u.urlopen(r).headers['date'] or '')"
    )
    words = ["nsenter", f"--net={node.path}", sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
