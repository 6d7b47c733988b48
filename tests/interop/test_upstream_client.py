"""ZLayer's own client (`OverlaydClient` of its published crate) against our daemon.

What crosses the wire passes through ZLayer's type definitions in both directions: an answer of ours that they cannot
read would break the connection. The program is in `upstream-client/`, a few dozen lines.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cni.daemon.api import overlay_socket, sockets
from cni.overlay import wire
from tests.interop.daemons import Daemon

SETUP = {
    "op": "setup_global_overlay",
    "deployment": "prod",
    "instance_id": "42",
    "cluster_cidr": "10.200.0.0/16",
    "slice_cidr": "10.200.0.16/28",
    "wg_port": 51420,
    "nat": {"enabled": False},
}


def ask(client: str, daemon: Daemon, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers, in order, over one connection."""
    said = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run([client, daemon.socket], input=said, capture_output=True, text=True, timeout=30, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{answers[-1:]} {done.stderr}"
    assert len(answers) == len(requests)
    return answers


def attach(pid: int, service: str) -> dict[str, Any]:
    handle = {"platform": "linux_pid", "pid": pid}
    return {"op": "attach_container", "handle": handle, "service": service, "join_global": False}


def detach(pid: int) -> dict[str, Any]:
    return {"op": "detach_container", "handle": {"platform": "linux_pid", "pid": pid}}


def test_an_agents_life(upstream_client: str, ours: Daemon) -> None:
    pid = ours.machine.container()
    node, setup, service, attached, status = ask(
        upstream_client,
        ours,
        {"op": "set_local_node_id", "node_id": 3},
        SETUP,
        {"op": "setup_service_overlay", "service": "web", "mode": "auto"},
        attach(pid, "web"),
        {"op": "status"},
    )
    assert node == {"result": "ok"}
    assert setup == {"result": "bridge_name", "name": "zl-prod-42-g"}
    assert service == {"result": "service_overlay", "name": "zl-2b113f2ca5-b", "mode": "auto"}
    assert attached["result"] == "attached"
    assert (status["node_ip"], status["slice_cidr"], status["service_count"]) == ("10.200.0.17", "10.200.0.16/28", 1)
    inside = ours.machine.ip("-4", "address", "show", "eth0", pid=pid)
    assert [each["local"] for each in inside[0]["addr_info"]] == [attached["ip"]]

    again, unknown, pruned, left = ask(
        upstream_client,
        ours,
        detach(pid),
        detach(pid),
        {"op": "prune_orphan_bridges", "live_bridge_names": []},
        {"op": "status"},
    )
    assert (again, unknown) == ({"result": "ok"}, {"result": "ok"})
    assert pruned == {"result": "pruned_bridges", "reclaimed": ["zl-2b113f2ca5-b"]}
    assert left["service_count"] == 0
    assert "zl-2b113f2ca5-b" not in ours.machine.links()


def test_a_bridge_in_use_is_not_pruned(upstream_client: str, ours: Daemon) -> None:
    pid = ours.machine.container()
    prune = {"op": "prune_orphan_bridges", "live_bridge_names": []}
    setup = {"op": "setup_service_overlay", "service": "web", "mode": "auto"}
    *_, pruned = ask(upstream_client, ours, SETUP, setup, attach(pid, "web"), prune)
    assert pruned["reclaimed"] == []


def test_a_refusal_leaves_the_connection_good(upstream_client: str, ours: Daemon) -> None:
    pid = ours.machine.container()
    refused, status = ask(upstream_client, ours, attach(pid, "web"), {"op": "status"})
    assert refused == {"refused": "no service bridge for service web; call setup_service_overlay() first"}
    assert status["result"] == "status"


def test_every_kind_of_answer_is_read(upstream_client: str, ours: Daemon) -> None:
    """One request for each of the results that a Linux daemon gives, beyond those above."""
    key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
    peer = {"public_key": key, "endpoint": "203.0.113.7:51420", "allowed_ips": "10.200.0.32/28"}
    answers = ask(
        upstream_client,
        ours,
        SETUP,
        {"op": "setup_service_overlay", "service": "db", "mode": "dedicated"},
        {"op": "allocate_ip", "service": "db", "join_global": False},
        {"op": "attach_container", "handle": {"platform": "guest_managed", "id": "vm"}, "service": "db",
         "join_global": False},
        {"op": "add_peer", **peer, "persistent_keepalive_secs": 25, "scope": {"scope": "global"}},
        {"op": "mint_edge_peer", "name": "ci", "ttl_secs": 60, "node_endpoint": "192.0.2.1:51420"},
        {"op": "list_edge_peers"},
        {"op": "nat_status"},
        {"op": "status"},
        {"op": "write_scoped_resolver", "zone": "overlay.local", "node_ip": "10.200.0.17"},
        {"op": "shutdown"},
    )  # fmt: skip
    kinds = [answer.get("result", "refused") for answer in answers]
    assert kinds == [
        "bridge_name", "service_overlay", "ip", "guest_config", "ok", "edge_config", "edge_peers", "nat_status",
        "status", "refused", "ok",
    ]  # fmt: skip
    status = answers[8]
    assert [each["service"] for each in status["dedicated_services"]] == ["db"]
    assert {each["allowed_ips"] for each in status["peers"]} >= {"10.200.0.32/28"}
    assert ours.process is not None
    assert ours.process.wait(timeout=10) == 0


def test_events_before_and_behind_answers_do_it_no_harm(upstream_client: str, tmp_path: Path) -> None:
    """ZLayer's daemon sends none, its client passes over ours. Our door, with a handler that says ok and has news."""
    path, loop = str(tmp_path / "overlayd.sock"), asyncio.new_event_loop()
    events = (wire.PeerHealthChanged("key", False), wire.NatEndpointChanged("key", "203.0.113.9:51420"))

    def carry_out(request: wire.AnyRequest) -> wire.AnyReply:
        for event in events * 50:
            door.push(event)
        return wire.BridgeName(request.name) if isinstance(request, wire.UnregisterDns) else wire.Ok()

    thread = threading.Thread(target=loop.run_forever)
    with ThreadPoolExecutor(2) as pool:
        door = overlay_socket.OverlaySocket(sockets.listen(path, 0o660), carry_out, pool, pool)
        thread.start()
        asyncio.run_coroutine_threadsafe(door.open(), loop).result(30)
        requests = [{"op": "unregister_dns", "name": f"n{number}"} for number in range(100)]
        said = "".join(json.dumps(request) + "\n" for request in requests)
        try:
            done = subprocess.run(
                [upstream_client, path], input=said, capture_output=True, text=True, timeout=60, check=False
            )
        finally:
            asyncio.run_coroutine_threadsafe(door.close(2.0), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.close()
    assert done.returncode == 0, done.stdout[-500:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers == [{"result": "bridge_name", "name": f"n{number}"} for number in range(100)]
