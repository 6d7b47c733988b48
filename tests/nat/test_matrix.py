"""Every kind of site against every kind: how long a node takes from the start of its daemon until each other one
answers through the tunnel, and by which path.

A node of each kind runs. One more of each kind is started, `ZLAYER_NAT_STARTS` times (3 by default), each time a new
node: each start gives one value for each kind of the others.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping

import pytest

from tests.mesh.fleet import Node, run

from .lab import KINDS, Lab
from .test_paths import MEET, SERVERS, path_of

STARTS = int(os.environ.get("ZLAYER_NAT_STARTS", "3"))
NAMED = [kind for kind in KINDS if kind != "blocked"]
OPEN = {"public", "full", "arc"}
"""What lets in the unknown port of a symmetric NAT, once the node has sent to its address."""
WAIT = 30.0  # seconds until a pair counts as one that never meets
SETTLE = 20.0  # seconds until a pair has its best path


def wanted(one: str, two: str) -> str:
    """The best path that a pair can have, as `two` names it: a public node is reached at its own address."""
    if "one-port" in (one, two):
        return "relayed"
    if one == "public":
        return "direct"
    if "sym" in (one, two) and not OPEN & {one, two}:
        return "relayed"
    return "hole-punched"


def settings(lab: Lab, kind: str) -> dict[str, object]:
    """The node of kind `public` relays, in its kernel and by ZLayer's protocol; all others may use both."""
    secret = lab.directory / "credential"
    secret.write_text("of-the-relay")
    if kind == "relay":
        return {**SERVERS, "relay": {"ports": "40000-40399", "credential_file": str(secret)}}
    return {**SERVERS, "relays": [{"address": f"{lab.public_address(1)}:3478", "credential_file": str(secret)}]}


def answering(node: Node, others: Mapping[str, Node], began: float) -> dict[str, float]:
    """By kind, the seconds since `began` at which each of the others has reached the node's own address."""
    seconds: dict[str, float] = {}
    address = ""
    while len(seconds) < len(others) and time.monotonic() - began < WAIT:
        address = address or str(node.status().node_ip or "")
        if not address:
            time.sleep(0.05)
            continue
        pings = {
            kind: subprocess.Popen(
                ["ip", "netns", "exec", other.name, "ping", "-n", "-q", "-c", "1", "-W", "0.3", address],
                stdout=subprocess.DEVNULL,
            )
            for kind, other in others.items()
            if kind not in seconds
        }
        for kind, ping in pings.items():
            if ping.wait() == 0:
                seconds[kind] = time.monotonic() - began
    return seconds


def settled(kind: str, node: Node, others: Mapping[str, Node]) -> dict[tuple[str, str], str]:
    """The path of each other node to the node, when it is the wanted one, or after `SETTLE` seconds."""
    end, paths = time.monotonic() + SETTLE, {}
    for name, other in others.items():
        while (found := str(path_of(other, node)["path"])) != wanted(kind, name) and time.monotonic() < end:
            time.sleep(0.2)
        paths[kind, name] = found
    return paths


def retire(node: Node) -> None:
    """End a node with its engine."""
    node.end()
    for pid in run("ip", "netns", "pids", node.name).split():
        run("kill", pid, check=False)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_kind_meets_every_kind(lab: Lab, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    nodes = {
        kind: lab.joined(kind, number, nat=settings(lab, "relay" if kind == "public" else kind))
        for number, kind in enumerate(NAMED, 1)
    }
    times: dict[tuple[str, str], list[float]] = {}
    paths: dict[tuple[str, str], str] = {}
    number = len(NAMED)
    for kind in NAMED:
        for start in range(STARTS):
            number += 1
            node = lab.joined(kind, number, start=False, nat=settings(lab, kind))
            began = time.monotonic()
            node.start()
            for other, seconds in answering(node, nodes, began).items():
                times.setdefault((kind, other), []).append(seconds)
            if start == STARTS - 1:
                paths |= settled(kind, node, nodes)
            retire(node)
    measured(f"seconds, the slowest of {STARTS} starts, and the path (d direct, h hole-punched, r relayed, ! another)")
    measured(f"{'':9}" + "".join(f"{other:>11}" for other in NAMED))
    for kind in NAMED:
        measured(f"{kind:9}" + "".join(f"{cell(kind, other, times, paths):>11}" for other in NAMED))
    every = sorted(value for values in times.values() for value in values)
    measured(f"{len(every)} values: median {every[len(every) // 2]:.1f} s, p95 {every[int(len(every) * 0.95)]:.1f} s")
    missing = [(kind, other) for kind in NAMED for other in NAMED if len(times.get((kind, other), [])) < STARTS]
    assert missing == [], "pairs that did not meet in each start"
    assert {pair: path for pair, path in paths.items() if path != wanted(*pair)} == {}
    assert every[int(len(every) * 0.95)] < MEET


def cell(
    kind: str, other: str, times: Mapping[tuple[str, str], list[float]], paths: Mapping[tuple[str, str], str]
) -> str:
    """One cell of the table."""
    values, path = times.get((kind, other), []), paths.get((kind, other), "")
    letter = path[:1] + ("" if path == wanted(kind, other) else "!")
    return f"{max(values):.1f} {letter}" if len(values) == STARTS else f"{len(values)}/{STARTS} {letter}"
