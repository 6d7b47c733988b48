"""The problems of other parts, each made to happen on a real daemon: firewalls, the fence, routes, peers, versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.daemon.cluster.store_records import MOST
from cni.host import wg_engine
from tests.eyes.calls import call
from tests.eyes.test_problems import KEY, begins, ends, started, texts
from tests.kernel import toolnode
from tests.mesh.etcds import PROGRAM, Clustered
from tests.mesh.fleet import Fleet, Node, fleet, node_key, run, wait_for

needs_engine = pytest.mark.skipif(not wg_engine.find(), reason="no WireGuard engine (apt-get install wireguard-go)")


def test_a_native_firewall_denies_forwarding(tmp_path: Path) -> None:
    with started(tmp_path) as node:
        node.start()
        node.host.nft("add table inet foreign")
        node.host.nft("add chain inet foreign forward { type filter hook forward priority 0; policy drop; }")
        assert "inet foreign forward" in begins(node, "forward-denied-nftables")
        node.host.nft("delete table inet foreign")
        ends(node, "forward-denied-nftables")


def test_a_bridge_that_cannot_be_made(tmp_path: Path) -> None:
    """A link of another kind has the name of the service's bridge when the daemon starts."""
    with started(tmp_path) as node, toolnode.spaces() as make:
        node.start()
        assert call(node, "ADD", "c1", make())[0] == 0
        (service,) = node.ask("status")["services"]
        bridge = service["bridge"]
        node.close()
        node.host.ip(f"link del {bridge}", f"link add {bridge} type veth peer name aside")
        node.start()
        assert "web" in begins(node, "service-incomplete")
        node.host.ip(f"link del {bridge}")
        ends(node, "service-incomplete")


def test_a_tool_of_another_version(tmp_path: Path) -> None:
    with started(tmp_path) as node:
        node.start()
        script = (
            "import sys, cni; cni.__version__ = '99.0'; from cni.cli.main import main; sys.exit(main(sys.argv[1:]))"
        )
        command = ["nsenter", f"--net={node.host.path}", sys.executable, "-c", script, "status", "--json"]
        done = subprocess.run(
            [*command, "--run-dir", node.run_dir], cwd=toolnode.ROOT, capture_output=True, check=False
        )
        assert done.returncode == 1
        codes = [each["code"] for each in json.loads(done.stdout)["problem_details"]]
        assert "version-differs" in codes
        assert texts(node, "version-differs") == []


# --- programs and libraries that are missing -------------------------------------------------------------------------


@pytest.fixture
def single() -> Iterator[Fleet]:
    with fleet("p") as made:
        yield made


def peer(endpoint: str = "198.51.100.9:51420") -> dict[str, object]:
    return {"peers": [{"public_key": KEY, "allowed_ips": ["10.200.96.0/24"], "name": "b", "endpoint": endpoint}]}


@needs_engine
def test_a_route_of_another_program(single: Fleet) -> None:
    node = single.node(1, start=False, **peer())
    route = ("ip", "-n", node.name, "route", "add", "10.200.96.0/24", "via", "198.51.100.8")
    run(*route)
    node.start()
    assert "10.200.96.0/24" in wait_for(lambda: node.problem("route-conflict"), "the problem")
    run(*route[:4], "del", "10.200.96.0/24")
    wait_for(lambda: not node.problem("route-conflict"), "its end")


@needs_engine
def test_a_name_that_is_none(single: Fleet) -> None:
    node = single.node(1, **peer("nowhere.invalid:51420"))
    assert "nowhere.invalid" in wait_for(lambda: node.problem("name-not-found"), "the problem", 60)


@needs_engine
def test_joined_nodes_that_cannot_be_read(single: Fleet) -> None:
    node = single.node(1, start=False, **peer())
    joined = node.directory / "data" / "peers.json"
    joined.parent.mkdir()
    joined.write_text("{")
    node.start()
    assert "joined by token" in wait_for(lambda: node.problem("joined-unreadable"), "the problem")
    joined.unlink()
    wait_for(lambda: not node.problem("joined-unreadable"), "its end")


def covered(node: Node, path: str, by: Path) -> None:
    """The node's program sees another file at the path."""
    script = f'mount --bind {by} {path} && exec "$@"'
    node.program = ("unshare", "-m", "sh", "-c", script, "sh", *node.program)


def library() -> str:
    """The file of libnftables."""
    listed = run("ldconfig", "-p").splitlines()
    return str(Path(next(line for line in listed if "libnftables.so.1 " in line).split()[-1]).resolve())


def test_without_nftables(single: Fleet) -> None:
    node = single.node(1, start=False, dns={"intercept": True})
    node.start(without=library())
    for code in ("fence-not-in-force", "dns-not-intercepted"):
        wait_for(lambda code=code: node.problem(code), code)  # type: ignore[misc]
    box = node.unattached()
    done = node.call("ADD", box, check=False)
    assert json.loads(done.stdout)["code"] == 105


def test_iptables_denies_and_cannot_be_changed(single: Fleet) -> None:
    """It lists its rules and refuses every change."""
    node = single.node(1, start=False)
    run("ip", "netns", "exec", node.name, "iptables", "-P", "FORWARD", "DROP")
    real = Path("/usr/sbin/iptables").resolve()
    copy, refusing = node.directory / real.name, node.directory / "refusing"
    shutil.copy(real, copy)
    lists = f'case " $* " in *" -S "*) exec -a "${{0##*/}}" {copy} "$@";; esac'
    refusing.write_text(f"#!/bin/bash\n{lists}\necho planted refusal >&2\nexit 4\n")
    refusing.chmod(0o755)
    covered(node, str(real), refusing)
    node.start()
    assert "planted refusal" in wait_for(lambda: node.problem("forward-denied-iptables"), "the problem")


def test_a_setting_that_cannot_be_read(single: Fleet) -> None:
    node = single.node(1, start=False)
    garbage = node.directory / "garbage"
    garbage.write_text("x\n")
    covered(node, "/proc/sys/net/ipv4/conf/all/arp_ignore", garbage)
    node.start()
    wait_for(lambda: node.problem("look-incomplete"), "the problem")


# --- a cluster -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)")
def test_a_key_that_another_node_has() -> None:
    made = Clustered("key")
    try:
        one, two = made.member(1), made.member(2, start=False)
        assert node_key(two) != one.status().public_key
        file = two.directory / "data" / "identity.json"
        own, other = json.loads(file.read_text()), json.loads((one.directory / "data" / "identity.json").read_text())
        file.write_text(json.dumps({**own, "node": other["node"]}))
        two.start()
        assert "has this node's WireGuard key" in wait_for(lambda: two.problem("key-in-use"), "the problem", 30)
    finally:
        made.clean()


@pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)")
def test_a_document_with_more_than_others_read() -> None:
    made = Clustered("long")
    try:
        node = made.member(1, advertise=[f"192.0.2.{n}:51420" for n in range(1, MOST["endpoints"] + 2)])
        last = f"the endpoint '192.0.2.{MOST['endpoints'] + 1}:51420'"
        assert last in wait_for(lambda: node.problem("word-too-long"), "the problem")
    finally:
        made.clean()


@pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)")
def test_a_lease_that_cannot_be_renewed() -> None:
    made = Clustered("lease")
    try:
        node = made.member(1)
        made.etcd.end(9)
        wait_for(lambda: node.problem("lease-not-renewed"), "the problem", 40)
        made.etcd.start()
        wait_for(lambda: not node.problem("lease-not-renewed"), "its end", 40)
    finally:
        made.clean()
