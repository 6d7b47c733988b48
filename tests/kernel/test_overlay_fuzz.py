"""Mutated frames against a running daemon: it goes on serving, and keeps no memory, descriptor or connection of them.

ZLAYER_FUZZ_FRAMES says how many frames (3,000 by default; a thorough run takes 100,000), ZLAYER_FUZZ_SEED which (the
same in every run by default). The
daemon runs in a PID namespace of its own, so that a mutated PID is no process of this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cni.overlay import wire
from cni.overlay.framing import frame
from tests.kernel.overlayd import ROOT, Agent, node, wait_for

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(1800)]

FRAMES = int(os.environ.get("ZLAYER_FUZZ_FRAMES", "3000"))
SEED = int(os.environ.get("ZLAYER_FUZZ_SEED", "20261123"))
THREADS = 30  # each of the daemon's may keep a netlink socket from its first use on
KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="

SCRIPT: list[dict[str, Any]] = [
    {"op": "set_local_node_id", "node_id": 3},
    {"op": "set_local_wg_pubkey", "pubkey": KEY},
    {
        "op": "setup_global_overlay",
        "deployment": "prod",
        "instance_id": "42",
        "cluster_cidr": "10.200.0.0/16",
        "slice_cidr": "10.200.0.16/28",
        "wg_port": 51420,
        "host_adapter_mandatory": False,
        "nat": {"enabled": True, "stun_servers": [], "turn_servers": [{"addr": "t:1", "username": "u"}]},
    },
    {"op": "setup_service_overlay", "service": "web", "mode": "auto"},
    {"op": "setup_service_overlay", "service": "db", "mode": "dedicated"},
    {"op": "teardown_service_overlay", "service": "web"},
    {"op": "allocate_ip", "service": "web", "join_global": False},
    {"op": "release_ip", "ip": "10.200.5.2"},
    {
        "op": "attach_container",
        "handle": {"platform": "linux_pid", "pid": 4242},
        "service": "web",
        "join_global": False,
        "ephemeral": False,
        "isolation_network": "blue",
        "dns_server": "10.200.0.17",
    },
    {
        "op": "attach_container",
        "handle": {"platform": "guest_managed", "id": "vm-1"},
        "service": "web",
        "join_global": False,
    },
    {
        "op": "attach_container",
        "handle": {"platform": "host_shared", "id": "p-1"},
        "service": "web",
        "join_global": True,
    },
    {"op": "detach_container", "handle": {"platform": "guest_managed", "id": "vm-1"}},
    {"op": "detach_container", "handle": {"platform": "linux_pid", "pid": 4242}},
    {
        "op": "add_peer",
        "public_key": KEY,
        "endpoint": "203.0.113.7:51420",
        "allowed_ips": "10.200.0.17/32",
        "persistent_keepalive_secs": 25,
        "candidates": [{"candidate_type": "host", "address": "203.0.113.7:1", "priority": 1}],
        "scope": {"scope": "service", "service": "db"},
    },
    {"op": "remove_peer", "pubkey": KEY, "scope": {"scope": "global"}},
    {"op": "add_allowed_ip", "pubkey": KEY, "cidr": "10.200.9.0/26"},
    {"op": "mint_edge_peer", "name": "ci", "ttl_secs": 1, "allow": ["web", "10.200.5.0/26"], "node_endpoint": "e:1"},
    {"op": "revoke_edge_peer", "name": "ci"},
    {"op": "list_edge_peers"},
    {"op": "register_dns", "name": "web", "ip": "10.200.5.2"},
    {"op": "prune_orphan_bridges", "live_bridge_names": ["zl-a-0-web-b"]},
    {"op": "teardown_global_overlay"},
    {"op": "status"},
    {"op": "nat_tick"},
]
"""What takes effect on a fresh daemon: the golden frames mostly name services that were not set up."""

GOLDEN = json.loads((ROOT / "tests/vectors/golden-frames.json").read_text("utf-8"))
SEEDS = SCRIPT + [
    document["request"]
    for document in (json.loads(each["json"]) for each in GOLDEN)
    if "request" in document and document["request"]["op"] != "shutdown"
]

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**64,
    1e400,
    0.5,
    "",
    "\0",
    "a/b",
    "%d",
    "💧",
    "0.0.0.0/0",
    "::/0",
    "ff" * 5000,
    [],
    {},
]


def mutate_value(chance: random.Random, value: Any) -> Any:
    """The value with something in it changed, left out, doubled or put elsewhere."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        out = dict(value)
        key = chance.choice(list(out))
        match chance.randrange(4):
            case 0:
                del out[key]
            case 1:
                out[chance.choice(["op", "id", "frame", "scope", "x"])] = out[key]
            case _:
                out[key] = mutate_value(chance, out[key])
        return out
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], mutate_value(chance, value[at]), *value[at + 1 :]]
    if isinstance(value, str) and chance.random() < 0.5:
        at = chance.randrange(len(value) + 1)
        return value[:at] + chance.choice(["", ".", "/", "9", "\0", "é", ",", ":"]) + value[at + chance.randrange(2) :]
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
        return value + chance.choice([-1, 1, 256, 65536, 2**32])
    return chance.choice(ODD)


def mutated_frame(chance: random.Random) -> bytes:
    """One frame: a changed document mostly, sometimes changed bytes, a wrong length, or no frame at all."""
    document: Any = {"frame": "request", "id": chance.randrange(1000), "request": chance.choice(SEEDS)}
    for _ in range(chance.randrange(1, 4)):
        document = mutate_value(chance, document)
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    if b'"shutdown"' in body:
        return frame(b"{}")
    kind = chance.random()
    if kind < 0.2:
        bent = bytearray(body)
        for _ in range(chance.randrange(1, 8)):
            bent[chance.randrange(len(bent))] = chance.randrange(256)
        body = bytes(bent)
    elif kind < 0.25:
        return chance.randbytes(chance.randrange(1, 200))
    elif kind < 0.3:
        return (len(body) + chance.choice([-9, -1, 1, 2**23, 2**31])).to_bytes(8, "little", signed=True)[:4] + body
    return frame(body)


def resident(pid: int) -> int:
    """Memory of a process, bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def connections(path: str) -> int:
    """How many connections to the socket are open. Accepted ends are in the table of the client's namespace: ours."""
    rows = Path("/proc/self/net/unix").read_text().splitlines()[1:]
    return sum(1 for row in rows if path in row and row.split()[5] == "03")


def records(path: Path) -> int:
    """How many records the daemon holds."""
    with contextlib.closing(sqlite3.connect(path)) as book:
        count: int = book.execute("SELECT count(*) FROM record").fetchone()[0]
    return count


def throw(path: str, chance: random.Random, frames: int) -> int:
    """Send that many frames over as many connections as it takes; how many answers came back."""
    answers, sock, in_step = 0, None, True
    for _ in range(frames):
        if sock is None:
            sock, in_step = socket.socket(socket.AF_UNIX), True
            sock.connect(path)
        try:
            data = mutated_frame(chance)
            sock.settimeout(60)
            sock.sendall(data)
            # A whole frame is answered, or ends the connection; for the rest of one that is not, it waits.
            in_step = in_step and len(data) == 4 + int.from_bytes(data[:4], "little")
            sock.settimeout(60 if in_step else 0.05)
            heard = sock.recv(1 << 20)
            answers += 1
            if not heard:
                sock = sock.close()
        except TimeoutError:
            sock = sock.close()  # it waits for the rest of a frame
        except OSError:
            sock = sock.close()
    if sock is not None:
        sock.close()
    return answers


def test_every_operation_is_mutated() -> None:
    tags = {kind.__struct_config__.tag for kind in wire.AnyRequest.__args__}
    assert {seed["op"] for seed in SEEDS} == tags - {"shutdown"}


@pytest.mark.parametrize("seed", [SEED])  # so that a report names it
def test_mutated_frames_leave_the_daemon_serving(seed: int) -> None:
    chance = random.Random(seed)
    with node("f") as made:
        words = ["-m", "cni", "overlayd", "--run-dir", str(made.directory / "run"), "--data-dir"]
        outer = subprocess.Popen(
            [
                *("ip", "netns", "exec", made.name, "unshare", "-p", "-f", "--mount-proc", "--kill-child"),
                *(sys.executable, *words, str(made.directory / "data")),
            ],
            cwd=ROOT,
            stderr=made.log.open("wb"),
        )
        try:
            wait_for(lambda: Path(made.socket).exists(), "the daemon")
            daemon = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0])
            throw(made.socket, chance, FRAMES // 10)
            settle(made.agent())
            memory, files = resident(daemon), open_files(daemon)
            assert throw(made.socket, chance, FRAMES) > FRAMES // 4
            settle(made.agent())
            assert outer.poll() is None
            wait_for(lambda: connections(made.socket) == 0, "the connections to be forgotten")
            with contextlib.closing(made.agent()):
                wait_for(lambda: connections(made.socket) == 1, "a connection to be counted")  # once it is accepted
            grown_files = open_files(daemon) - files
            assert grown_files <= THREADS, f"{files} open files, and {grown_files} more after {FRAMES} frames"
            # Names and peers that well-formed mutants registered are still there, as they must be; of frames nothing.
            kept = records(made.directory / "run/state.db")
            grown = resident(daemon) - memory
            assert grown < (16 << 20) + kept * 4096, f"{grown} bytes more after {FRAMES} frames, {kept} records"
            assert "internal error" not in made.log.read_text()
            assert "unexpected error" not in made.log.read_text(), made.log.read_text()[-4000:]
        finally:
            outer.kill()
            outer.wait(10)


def settle(agent: Agent) -> None:
    """Take away what well-formed requests among the mutants set up, and see that it is gone."""
    agent.ok(wire.TeardownGlobalOverlay())
    agent.ask(wire.PruneOrphanBridges(()))
    assert agent.status().server is not None
    agent.close()
