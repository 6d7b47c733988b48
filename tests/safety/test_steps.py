"""One step that fails does not end the rest: of a start, of a look, of a mesh, of the cluster's news; nor a thread."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.model.cluster_records import NodeDocument
from cni.daemon.model.keys import generate
from cni.daemon.public_keys import public_of
from cni.daemon.settings import Etcd as Where
from tests.mesh.etcds import Clustered
from tests.mesh.fleet import Fleet, Node, arrives, inside, link, run, wait_for
from tests.safety import threads

SIX = {"cluster_cidr6": "fd00:c200::/48"}
LONG = "a" * 64


def codes(node: Node) -> set[str]:
    return {each["code"] for each in node.tool("status")["problem_details"]}


def set_six(node: Node, off: bool) -> None:
    run("ip", "netns", "exec", node.name, "sysctl", "-qw", f"net.ipv6.conf.all.disable_ipv6={int(off)}")


def host_end(node: Node, name: str) -> str:
    found = [each for each in node.tool("attachments") if each["container_id"] == name]
    return str(found[0]["host_interface"])


def looks_go_on(node: Node) -> None:
    """A dead attachment is collected, and a deleted bridge comes back."""
    gone, stays = node.container("web"), node.container("web")
    bridge = next(each["bridge"] for each in node.tool("status")["services"] if each["service"] == "web")
    run("ip", "-n", node.name, "link", "delete", host_end(node, gone.name))
    run("ip", "-n", node.name, "link", "delete", bridge)
    left = lambda: [each["container_id"] for each in node.tool("attachments")]  # noqa: E731
    try:
        wait_for(lambda: gone.name not in left(), "the dead attachment to be collected", 35, step=0.2)
    except AssertionError as error:
        raise AssertionError(node.log.read_text()[-4000:]) from error
    arrives(node.container("web"), stays)


@pytest.mark.long
def test_ipv6_switched_off_later_costs_ipv4_nothing(frozen: Callable[..., Node]) -> None:
    node = frozen(1, **SIX)
    one, two = node.container("web"), node.container("web")
    set_six(node, off=True)
    wait_for(lambda: "node-address" in codes(node), "a problem with a code", 15)
    arrives(one, two)
    looks_go_on(node)
    set_six(node, off=False)
    wait_for(lambda: not codes(node), f"the end of {node.tool('status')['problem_details']}", 15)


@pytest.mark.long
def test_ipv6_switched_off_before_the_start_costs_ipv4_nothing(frozen: Callable[..., Node]) -> None:
    node = frozen(1, start=False, **SIX)
    set_six(node, off=True)
    node.start()
    assert "node-address" in codes(node)
    arrives(node.container("web"), node.container("web"))
    looks_go_on(node)


def test_ipv6_switched_off_leaves_the_mesh_its_ipv4(frozen: Callable[..., Node], engine: None) -> None:
    one, two = frozen(1, start=False, **SIX), frozen(2, start=False, **SIX)
    link(one, two)
    set_six(one, off=True)
    one.start()
    two.start()
    arrives(one.container("web"), two.container("db"))


def test_a_name_that_cannot_be_looked_up_costs_no_other_peer_its_own(frozen: Callable[..., Node], engine: None) -> None:
    one, two = frozen(1, start=False), frozen(2, start=False)
    link(one, two)
    resolver = Path("/etc/netns", one.name)
    resolver.mkdir(parents=True)
    try:
        (resolver / "hosts").write_text(f"{two.underlay} two.example\n")
        one.settings["peers"][0]["endpoint"] = f"two.example:{two.settings['wg_port']}"
        one.settings["peers"].insert(
            0,
            {
                "public_key": public_of(generate()),
                "endpoint": f"{LONG}.example:51420",
                "allowed_ips": ["10.200.250.0/26"],
            },
        )
        one.start()
        two.start()
        assert "peer-refused" in codes(one)
        arrives(one.container("web"), two.container("db"))
    finally:
        (resolver / "hosts").unlink()
        resolver.rmdir()


# --- other nodes' records ------------------------------------------------------------------------------------------


def strange(**changes: Any) -> NodeDocument:
    doc = NodeDocument(
        identity="f" * 32, name="strange", place="", node_id=99, public_key=public_of(generate()), port=51420,
        hosts=("198.51.100.99",), slices=("10.200.99.0/26",),
    )  # fmt: skip
    return msgspec.structs.replace(doc, **changes)


@pytest.mark.parametrize("changes", [{"port": 70000}, {"hosts": (f"{LONG}.example",)}], ids=["port", "label"])
def test_a_record_that_cannot_be_used_costs_no_other_node_anything(
    clustered: Clustered, program: tuple[str, ...], engine: None, changes: dict[str, Any]
) -> None:
    nodes = [clustered.member(number, start=False) for number in (1, 2)]
    for node in nodes:
        node.program = program
    nodes[0].start()
    doc = strange(**changes)
    key = f"/zlayer-cni/{nodes[0].settings['deployment']}/node/{doc.identity}"
    where = f"/run/netns/{clustered.underlay}"
    inside(where, lambda: EtcdClient(Where(endpoints=(clustered.etcd.url,))).put(key, msgspec.json.encode(doc)))
    wait_for(lambda: codes(nodes[0]) & {"record-refused", "peer-refused"}, "a problem with a code", 10)
    nodes[1].start()  # and who joins afterwards has its mesh all the same
    arrives(nodes[0].container("web"), nodes[1].container("db"))
    assert "mesh-out-of-order" not in codes(nodes[0]) | codes(nodes[1])


# --- threads ------------------------------------------------------------------------------------------------


def daemon_of(node: Node) -> int:
    return int(node.tool("status")["pid"])


@pytest.mark.parametrize("name", ["keeper", "mesh", "reaper-0", "forgetter", "announcer", "tuned", "ends", "monitor"])
def test_a_thread_that_ended_is_told_and_started_again(frozen: Callable[..., Node], name: str) -> None:
    node = frozen(1)
    before = threads.thread_of(daemon_of(node), name)
    threads.end(before)
    wait_for(lambda: "thread-ended" in codes(node), "a problem with a code", 10)
    assert threads.thread_of(daemon_of(node), name) != before
    if name == "keeper":
        looks_go_on(node)


def _hangs(node: Node) -> bool:
    return "thread-hangs" in codes(node)


def _was_replaced(node: Node) -> bool:
    return "takes the place of" in node.log.read_text() and node.serves()


@pytest.mark.long
def test_a_thread_that_hangs_is_told_and_the_daemon_replaces_itself(frozen: Callable[..., Node]) -> None:
    """Where the thread goes when it is killed the process stays, with its number; where not another takes its place."""
    nodes = frozen(1), frozen(2)
    pids = [daemon_of(node) for node in nodes]
    pairs = [(node.container("web"), node.container("web")) for node in nodes]
    pings = []
    for one, two in pairs:
        arrives(one, two)
        words = ("nsenter", "-t", str(one.process.pid), "-n", "ping", "-n", "-q", "-i", "0.02", two.address)
        pings.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
    try:
        with (
            threads.stopped(threads.thread_of(pids[0], "keeper")),
            threads.stopped(threads.thread_of(pids[1], "mesh"), lets_go=False),
        ):
            for node in nodes:
                wait_for(functools.partial(_hangs, node), "a problem with a code", 40)
            for node in nodes:
                wait_for(functools.partial(_was_replaced, node), "another daemon", 90)
                assert codes(node) == set()
    finally:
        for ping in pings:
            ping.send_signal(signal.SIGINT)
    for ping in pings:
        said = ping.communicate(timeout=10)[0]
        assert " 0% packet loss" in said, said
    assert daemon_of(nodes[0]) == pids[0], "a service manager would have lost sight of it"
    assert daemon_of(nodes[1]) != pids[1]


# --- a plugin in another network namespace -------------------------------------------------------------------------


def test_a_plugin_in_another_network_namespace_is_refused(
    fleet: Fleet, either_form: tuple[str, ...], frozen: Callable[..., Node]
) -> None:
    here, there = frozen(1), frozen(2, start=False)
    container = here.container("web")
    own = {name: Path(f"/run/netns/{name}").stat().st_ino for name in (here.name, there.name)}

    def call(verb: str, name: str, **more: object) -> tuple[int, dict[str, Any]]:
        conf = {"cniVersion": "1.1.0", "name": "zlt-mesh", "type": "zlayer-cni", "autostart": False, "service": "web"}
        conf |= {"runDir": str(here.directory / "run"), "dataDir": str(here.directory / "data"), **more}
        env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": name, "CNI_NETNS": container.netns, "CNI_IFNAME": "eth1"}
        done = subprocess.run(
            ["ip", "netns", "exec", there.name, *either_form],
            input=json.dumps(conf), env={**os.environ, **env, "CNI_PATH": "/opt/cni/bin"}, capture_output=True,
            text=True, check=False, timeout=30,
        )  # fmt: skip
        return done.returncode, json.loads(done.stdout or "{}")

    for verb, more in (
        ("ADD", {}),
        ("STATUS", {}),
        ("GC", {"cni.dev/valid-attachments": []}),
        ("CHECK", {"prevResult": {"cniVersion": "1.1.0", "interfaces": [], "ips": []}}),
    ):
        code, said = call(verb, "stray", **more)
        assert (code, said["code"]) == (1, 7), (verb, said)
        for inode in own.values():
            assert f"net:[{inode}]" in said["msg"], (verb, said)
    assert [each["container_id"] for each in here.tool("attachments")] == [container.name]
    assert "eth1" not in container.run("ip", "link")
    assert call("DEL", "stray") == (0, {})
