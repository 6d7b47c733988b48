"""`drops` against the real daemon: lines with rule and names, nothing without a reader, a flood that stays cheap."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.daemon.fence.drop_log import NAME
from tests.kernel import toolnode
from tests.kernel.toolnode import Node, knock, until

CONTAINERS = {"red1": ("web", "red"), "red2": ("db", "red"), "blue1": ("web", "blue"), "flat1": ("web", None)}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with toolnode.running(tmp_path, CONTAINERS) as made:
        yield made


def log_rules(node: Node) -> int:
    return node.host.nft("list ruleset").count(NAME)


def follow(node: Node, *words: str) -> subprocess.Popen[bytes]:
    """A reader whose log rules are in force."""
    reader = node.program(
        "drops", "--follow", *words, "--run-dir", node.run_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert until(lambda: log_rules(node) > 50, 10)
    time.sleep(0.2)
    return reader


def end(reader: subprocess.Popen[bytes]) -> str:
    reader.send_signal(signal.SIGINT)
    out, err = reader.communicate(timeout=30)
    assert reader.returncode == 0, err
    return out.decode()


@pytest.mark.parametrize(("source", "protocol", "port"), [("red1", "arp", None), ("red2", "tcp", 80)])
def test_a_dropped_packet_has_its_line_with_the_names(node: Node, source: str, protocol: str, port: int | None) -> None:
    """On one bridge the question for the MAC is dropped already; a routed packet is dropped as such."""
    assert log_rules(node) == 0
    counters = {(d["family"], d["chain"], d["rule"]): d["packets"] for d in node.ask("networks")["drops"]}
    reader = follow(node, "--json")
    target = node.address("blue1")
    with knock(node.boxes[source], target, 80, socket.SOCK_STREAM, None):
        time.sleep(1.5)
    lines = [json.loads(line) for line in end(reader).splitlines()]
    echo = "group frame back to its port"  # a bridge floods every group frame to its sender's port too
    ours = [line for line in lines if (line["destination"], line["protocol"]) == (target, protocol)]
    ours = [line for line in ours if line["rule"] != echo]
    assert ours, lines
    for line in ours:
        assert (line["source"], line["destination_port"]) == (node.address(source), port)
        assert (line["rule"], line["isolation_network"], line["of_a_network"]) == ("between networks", "red", True)
        assert source in line["source_label"] and "blue1" in line["destination_label"]
        assert line["in_interface"].startswith("zl-")
    (rule,) = [path["rule"] for path in node.why(source, "blue1")["paths"] if path["family"] == 4]
    named = {(line["rule"], line["family"], line["chain"]) for line in ours}
    assert named == {(rule["name"], rule["family"], rule["chain"])}
    assert until(lambda: log_rules(node) == 0, 5)
    after = {(d["family"], d["chain"], d["rule"]): d["packets"] for d in node.ask("networks")["drops"]}
    assert all(after[key] >= number for key, number in counters.items())  # the counters went on
    assert node.ask("status")["problems"] == []


def test_a_network_that_comes_while_it_is_asked_is_logged_too(node: Node) -> None:
    reader = follow(node)
    with toolnode.spaces() as make:
        node.add("green1", make(), "web", "green")
        time.sleep(1.6)
        with knock(node.boxes["green1"], node.address("red2"), 81, socket.SOCK_STREAM, None):
            time.sleep(1.2)
        text = end(reader)
    lines = [line for line in text.splitlines() if ":81 (" in line]
    assert lines and all('rule "between networks" (network green, table inet)' in line for line in lines), text
    assert "ns/green1" in lines[0] and "ns/red2" in lines[0]


def test_a_killed_reader_leaves_nothing(node: Node) -> None:
    reader = follow(node)
    reader.kill()
    reader.communicate(timeout=10)
    assert until(lambda: log_rules(node) == 0, 8)


def test_a_killed_daemon_leaves_no_log_rule_to_its_successor(node: Node) -> None:
    reader = follow(node)
    assert node.process is not None
    node.process.kill()
    node.process.wait(10)
    reader.communicate(timeout=30)
    assert log_rules(node) > 0  # without a daemon they stay, and the kernel sends them nowhere
    node.start()
    assert until(lambda: log_rules(node) == 0, 20)
    assert node.ask("status")["fence"]["in_force"]


def test_an_ended_daemon_leaves_no_log_rule(node: Node) -> None:
    reader = follow(node)
    assert node.process is not None
    node.process.terminate()
    node.process.wait(30)
    reader.communicate(timeout=30)
    assert log_rules(node) == 0
    node.start()


def test_without_follow_it_ends(node: Node) -> None:
    started = time.monotonic()
    code, _ = node.tool("drops", "--seconds", "0.5")
    assert code == 0 and time.monotonic() - started < 10
    assert until(lambda: log_rules(node) == 0, 3)


FLOOD = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], 9))
data = b"x" * 18
n = 0
while n < int(sys.argv[2]):
    try:
        sock.send(data)
        n += 1
    except OSError:
        pass
"""


def spent(pid: int) -> float:
    """Seconds of processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_flood_of_a_million_is_cheap(node: Node) -> None:
    """A million packets that a rule drops, while a reader follows: the daemon takes a bounded share, and shows at most
    the rate."""
    target = node.address("red1")
    box = node.boxes["blue1"]
    # A static neighbour: the packets are dropped as IPv4, not as ARP.
    text = toolnode.ip("-n", node.boxes["red1"].name, "-o", "link", "show", "eth0")
    mac = text.partition("link/ether ")[2].split()[0]
    box.ip(f"neigh replace {target} lladdr {mac} dev eth0")
    reader = follow(node, "--json")
    assert node.process is not None
    pid = int(node.ask("status")["pid"])
    before, started = spent(pid), time.monotonic()
    packets = node.drops(node.why("blue1", "red1")["paths"][0]["rule"])
    subprocess.run(
        ["nsenter", f"--net={box.path}", sys.executable, "-c", FLOOD, target, "1000000"], check=True, timeout=300
    )
    seconds = time.monotonic() - started
    cost = spent(pid) - before
    lines = [json.loads(line) for line in end(reader).splitlines()]
    dropped = node.drops(node.why("blue1", "red1")["paths"][0]["rule"]) - packets
    sys.stdout.write(f"{dropped} dropped in {seconds:.1f} s, {len(lines)} lines, {cost:.2f} s of the daemon\n")
    assert dropped >= 1_000_000
    assert 20 <= len([line for line in lines if line["destination"] == target]) <= 20 * (seconds + 4)
    assert cost < 0.15 * seconds + 0.5
