"""A relay in the kernel: pairs that have no direct path, and what its daemon's end costs them."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cni.cli import metrics
from tests.eyes.calls import read
from tests.mesh.fleet import Node, run, wait_for

from .lab import Lab
from .test_paths import MEET, SERVERS, echoed, meet, path_of

RELAY = {**SERVERS, "relay": {"ports": "40000-40019"}}
PAIRS = [("sym", "sym"), ("prc", "sym"), ("shift", "sym")]


def pinged(node: Node, address: str, seconds: float) -> tuple[int, int]:
    """How many echoes were sent, one each 20 ms, and how many were answered."""
    count = str(int(seconds * 50))
    words = ["ip", "netns", "exec", node.name, "ping", "-n", "-q", "-i", "0.02", "-W", "1", "-c", count, address]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) packets transmitted, (\d+) received", done.stdout)
    assert found is not None, done.stdout
    return int(found[1]), int(found[2])


def relayed_pair(lab: Lab) -> tuple[Node, Node]:
    """Two nodes behind symmetric NATs, with a path by a relay."""
    first, second, _ = meet(lab, "sym", "sym", nat=SERVERS)
    wait_for(lambda: path_of(first, second)["path"] == "relayed", "the relay")
    return first, second


def cut_off(lab: Lab, relay: Node, first: Node, second: Node, most: float) -> float:
    """Seconds from the end of the relay's link until the pair exchanges packets again, `most` at most."""
    run("ip", "-n", lab.underlay, "link", "set", f"s{relay.number}", "down")
    began = time.monotonic()
    wait_for(lambda: echoed(first, second), "the other relay", most)
    return time.monotonic() - began


@pytest.mark.parametrize(("one", "two"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_a_pair_without_a_direct_path_meets(lab: Lab, one: str, two: str, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    lab.joined("public", 3, nat=RELAY)
    first, second, seconds = meet(lab, one, two, nat=SERVERS)
    found = path_of(first, second)
    measured(f"{one:8} {two:8} {seconds:5.1f} s  {found['path']}: {found['path_why']}")
    assert seconds < MEET
    assert found["path"] == "relayed"
    assert str(found["endpoint"]).startswith(f"{lab.public_address(3)}:400")
    assert ("both sides are" if one == "sym" else "the peer is") in str(found["path_why"])
    assert all(lab.public_address(3) not in place for place in lab.document(second)["nat"]["outside"])


def test_the_kernel_carries_it_and_the_daemons_end_costs_nothing(lab: Lab, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    relay = lab.joined("public", 3, nat=RELAY)
    first, second = relayed_pair(lab)
    address = str(second.status().node_ip)
    time.sleep(2)
    queued = drops(relay)
    assert pinged(first, address, 2) == (100, 100)
    assert drops(relay) == queued
    found = scraped(relay)
    assert found["zlayer_cni_relay_sessions"] == 1
    before = found["zlayer_cni_relay_bytes_total"]
    assert pinged(first, address, 1) == (50, 50)
    carried = scraped(relay)["zlayer_cni_relay_bytes_total"] - before
    assert 2 * 50 * 84 < carried < 2 * 50 * 400, carried
    path = [series for series in scraped(first) if series.startswith("zlayer_cni_peer_bytes_total{")]
    assert any('path="relayed"' in series for series in path), path
    relay.end(signal.SIGKILL)
    sent, answered = pinged(first, address, 3)
    measured(f"relay's daemon killed: {sent - answered} of {sent} echoes lost")
    assert (sent, answered) == (150, 150)
    relay.start()
    assert pinged(first, address, 3) == (150, 150)


def scraped(node: Node) -> dict[str, float]:
    """The series of the node's metrics."""
    answer = metrics.scrape(str(node.directory / "run/metrics.sock"))
    return read(answer.partition(b"\r\n\r\n")[2].decode())


def drops(relay: Node) -> int:
    """The datagrams that UDP sockets of the relay's namespace have received."""
    text = run("ip", "netns", "exec", relay.name, "cat", "/proc/net/snmp")
    names, values = (line.split() for line in text.splitlines() if line.startswith("Udp:"))
    return int(dict(zip(names, values, strict=True))["InDatagrams"])


def test_a_mapping_that_changes_is_bound_again(lab: Lab, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    lab.joined("public", 3, nat=RELAY)
    first, second = relayed_pair(lab)
    run("ip", "netns", "exec", f"{first.name}r", "conntrack", "-D", "-p", "udp", check=False)
    began = time.monotonic()
    wait_for(lambda: echoed(first, second), "the tunnel again", 20)
    measured(f"symmetric NAT forgot its mappings: {time.monotonic() - began:.1f} s until an echo passed")
    assert time.monotonic() - began < 8


def test_a_relay_that_dies_is_replaced_and_a_direct_path_replaces_a_relay(
    lab: Lab, measured: Callable[[str], None]
) -> None:
    lab.start_stun()
    relays = {lab.public_address(n): lab.joined("public", n, nat=RELAY) for n in (3, 4)}
    first, second = relayed_pair(lab)
    address = str(second.status().node_ip)
    used = path_of(first, second)
    pinged(first, address, 4)  # both relays are bound by now
    dead = relays[str(used["endpoint"]).partition(":")[0]]
    gap = cut_off(lab, dead, first, second, 20)
    for number in (1, 2):
        lab.load(f"{lab.nodes[number].name}r", "cone", number)
    began = time.monotonic()
    with subprocess.Popen(
        ["ip", "netns", "exec", first.name, "ping", "-q", "-i", "0.2", address], stdout=subprocess.DEVNULL
    ) as traffic:
        try:
            wait_for(lambda: path_of(first, second)["path"] == "hole-punched", "a direct path", 80)
        finally:
            traffic.terminate()
    back = time.monotonic() - began
    measured(f"relay cut off: {gap:.1f} s until the other one; NATs became cones: {back:.1f} s until direct")
    assert gap < 8
    assert back < 70


def test_a_relay_that_joined_later_replaces_one_that_dies(lab: Lab, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    only = lab.joined("public", 3, nat=RELAY)
    first, second = relayed_pair(lab)
    address = str(second.status().node_ip)
    later = lab.joined("public", 4, nat=RELAY)
    wait_for(lambda: path_of(first, later)["path"] != "searching", "the path to the other relay")
    wait_for(lambda: path_of(second, later)["path"] != "searching", "the path to the other relay")
    pinged(first, address, 4)
    gap = cut_off(lab, only, first, second, 40)
    measured(f"relay cut off 4 s after another one had joined: {gap:.1f} s until the other one")
    assert gap < 8


def test_a_relay_without_room_says_so(lab: Lab) -> None:
    lab.start_stun()
    full = {**SERVERS, "relay": {"ports": "40000-40019", "max_pairs": 1}}
    relay = lab.joined("public", 3, nat=full)
    meet(lab, "sym", "sym", nat=SERVERS)
    lab.joined("sym", 4, nat=SERVERS)
    wait_for(lambda: relay.problem("relay-full"), "the problem", 20)


def test_what_keeps_a_node_from_traversal_is_told(lab: Lab) -> None:
    barred = lab.joined("prc", 1, start=False, nat={})
    barred.program = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", *barred.program)
    barred.start()
    wait_for(lambda: barred.problem("nat-unavailable"), "the problem")
    relay = lab.joined("public", 3, start=False, nat=RELAY)
    library = run("sh", "-c", "ldconfig -p | awk '/libnftables.so.1/ {print $NF; exit}'").strip()
    relay.start(without=str(Path(library).resolve()))
    wait_for(lambda: relay.problem("relay-unavailable"), "the problem")
