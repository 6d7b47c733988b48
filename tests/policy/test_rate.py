"""What a packet to an isolated pod costs beside 10 policies and beside 1,000: the same. `-s` shows the figures."""

from __future__ import annotations

import socket
import statistics
import sys
import time
from pathlib import Path

import pytest

from tests.kernel.test_policy import becomes
from tests.kernel.toolnode import Node, running, spaces
from tests.policy.test_packets import put_in_force

pytestmark = [pytest.mark.root, pytest.mark.long]
OTHERS = 9
ROUNDS, BATCHES, DATAGRAMS = 4, 12, 4000
FEW, MANY = 10, 1000
PORT = 5353


def policies(count: int) -> list[dict[str, object]]:
    """One policy of the pod that receives, and the rest of the other pods, in equal shares."""
    numbers = [-1, *(number % OTHERS for number in range(count - 1))]
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": f"p{index}", "namespace": "net"},
            "spec": {
                "podSelector": {"matchLabels": {"group": "peer" if number < 0 else f"g{number}"}},
                "ingress": [
                    {
                        "from": [{"podSelector": {"matchLabels": {"group": "friend"}}}],
                        "ports": [{"port": PORT + max(number, 0) * index, "protocol": "UDP"}],
                    }
                ],
            },
        }
        for index, number in enumerate(numbers)
    ]


def seconds_of_a_datagram(node: Node) -> float:
    """The time of a send, in which the kernel passes the packet through every rule: the best batch."""

    def work() -> float:
        best = float("inf")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
            mouth.connect((node.address("peer"), PORT))
            for _ in range(BATCHES):
                began = time.perf_counter()
                for _ in range(DATAGRAMS):
                    mouth.send(b"zlt")
                best = min(best, time.perf_counter() - began)
        return best / DATAGRAMS

    def listen() -> socket.socket:
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ear.bind(("", PORT))
        return ear

    with node.space_of("peer").inside(listen) as ear:
        taken = node.space_of("friend").inside(work)
        assert ear.recv(16) == b"zlt"
    return taken


def test_a_packet_pays_the_same_beside_1000_policies_as_beside_10(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    with running(tmp_path, {}, settings=f"policies: {tmp_path}/policies\n") as node, spaces() as make:
        for name in ("peer", "friend", *(f"g{number}" for number in range(OTHERS))):
            node.add(name, make(), "svc" if name != "friend" else "other", None, "net", {"group": name})
        times: dict[int, list[float]] = {FEW: [], MANY: []}
        rules = dict.fromkeys(times, 0)
        for _ in range(ROUNDS):
            for count, taken in times.items():
                put_in_force(node, policies(count))
                assert becomes(node, "g0", "peer", PORT, False)
                rules[count] = node.host.nft("list table inet zlayer_cni").count(" return comment ")
                taken.append(seconds_of_a_datagram(node))
    few, many = (statistics.median(taken) for taken in times.values())
    ratio = statistics.median(b / a for a, b in zip(times[FEW], times[MANY], strict=True))
    text = (
        f"\n{FEW} policies, {rules[FEW]} rules: {1e6 * few:.2f} us a datagram; {MANY}, {rules[MANY]}: {1e6 * many:.2f}"
    )
    sys.stderr.write(f"{text}; ratio {ratio:.3f}\n")
    assert rules[MANY] > 50 * rules[FEW]
    assert ratio < 1.15
