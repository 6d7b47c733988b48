"""The metrics of peers and of the store, on two nodes with WireGuard and a real etcd."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from cni.cli import metrics
from tests.eyes.calls import read
from tests.mesh.etcds import PROGRAM, Clustered
from tests.mesh.fleet import Node, wait_for

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


def counted(node: Node, met: Callable[[dict[str, float]], bool], what: str) -> dict[str, float]:
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

    before = {way: value(found, "zlayer_cni_peer_bytes_total", way) or 0 for way in ("received", "sent")}
    assert a.pings(b.address, size=1000)
    after = scraped(one)
    for way, count in before.items():
        assert (value(after, "zlayer_cni_peer_bytes_total", way) or 0) - count > 1000

    pair.etcd.end(signal.SIGKILL)
    found = counted(one, lambda seen: value(seen, "zlayer_cni_store_up") == 0, "the store is told to be down")
    assert value(found, "zlayer_cni_problem", 'code="store-unreachable"') == 1
    pair.etcd.start()
    found = counted(one, lambda seen: value(seen, "zlayer_cni_store_up") == 1, "the store is back")
    assert one.problem("clock-differs") == ""
    assert _date(one, pair.etcd.url), "etcd dates its answers, so its clock could be compared"


def _date(node: Node, url: str) -> str:
    """The header Date of an answer of etcd's gateway, asked from the node."""
    code = (
        f'import urllib.request as u; r = u.Request({url + "/v3/kv/range"!r}, data=b\'{{"key": "AA=="}}\');'
        "print(u.urlopen(r).headers['date'] or '')"
    )
    words = ["nsenter", f"--net={node.path}", sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
