"""The connectivity test on real nodes: green on a good mesh, and each planted fault by its own code and no other."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cni import answers
from cni.cli import ask
from cni.cli.connectivity.causes import CAUSES
from cni.host import wg_engine
from tests.mesh.fleet import ROOT, Fleet, Node, fleet, link, run, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not wg_engine.find(), reason="no WireGuard engine here (apt-get install wireguard-go)"),
]
FAULTS = (
    "mtu",
    "rp-filter",
    "route-missing",
    "udp-dropped",
    "bridge-nf-call",
    "foreign-drop",
    "stale-address",
    "clock",
    "wrong-key",
    "pool-full",
    "wrong-subnet",
    "fence-dormant",
)
OTHER_KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="


def start(node: Node, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A command of the tool on a node, in the background."""
    command = ["ip", "netns", "exec", node.name, *node.program, *words, "--run-dir", str(node.directory / "run")]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(env or {})}
    )


@contextlib.contextmanager
def accepting(*nodes: Node, env: dict[str, str] | None = None) -> Iterator[None]:
    """The nodes take part in tests."""
    running = [start(node, "connectivity", "accept", "--seconds", "120", env=env) for node in nodes]
    try:
        for node in nodes:
            wait_for(partial(listens, node), "the port")
        yield
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=90)


def check(node: Node, *words: str) -> Any:
    """The test's result; its exit code agrees with it."""
    done = node.cli("connectivity", "test", "--json", "--quiet", *words, "--run-dir", str(node.directory / "run"))
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert done.returncode == (0 if result["ok"] else 1)
    return result


def failed(result: Any) -> list[str]:
    return [
        f"{c['kind']} {c['source']}->{c['destination']}: {c['code']}: {c['text']}"
        for c in result["cells"]
        if not c["ok"]
    ]


def succeeds(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def listens(node: Node) -> bool:
    return ":9474" in run("ip", "netns", "exec", node.name, "ss", "-ltn")


def ready(*nodes: Node) -> None:
    """Every node reaches every other."""
    for one in nodes:
        for other in nodes:
            if one is not other:
                address = str(other.status().node_ip)
                words = ["ip", "netns", "exec", one.name, "ping", "-c", "1", "-W", "1", address]
                wait_for(partial(succeeds, *words), "the tunnel")


def left(node: Node) -> list[str]:
    """What a test has left on a node."""
    services = [s["service"] for s in node.tool("status")["services"] if s["service"].startswith("ct-")]
    attached = [a["container_id"] for a in node.tool("attachments") if a["container_id"].startswith("connectivity-")]
    return services + attached


@pytest.fixture(scope="module")
def pair() -> Iterator[Fleet]:
    with fleet("e") as made:
        nodes = [made.node(number, start=False) for number in (1, 2)]
        link(*nodes)
        for node in nodes:
            node.start()
        ready(*nodes)
        yield made


def test_a_good_mesh_is_green_and_nothing_is_left() -> None:
    with fleet("g") as made:
        nodes = [made.node(number, start=False) for number in (1, 2, 3)]
        link(*nodes)
        for node in nodes:
            node.start()
        ready(*nodes)
        one, two, three = nodes
        links = {node.name: {each["ifname"] for each in node.ip("link")} for node in nodes}
        # As portmap leaves it after its first port.
        run("ip", "netns", "exec", one.name, "iptables", "-t", "nat", "-N", "CNI-HOSTPORT-DNAT")
        with accepting(two, three):
            report = one.directory / "junit.xml"
            result = check(one, "--outside", three.underlay, "--junit", str(report))
        assert result["ok"], failed(result)
        assert result["codes"] == [] and result["seconds"] < 60
        kinds = {cell["kind"] for cell in result["cells"] if cell["got"] is not None}
        assert {"same bridge, mtu", "other node, mtu", "other node, udp 60 kB", "clocks", "outside, echo"} <= kinds
        (port,) = [cell for cell in result["cells"] if cell["kind"].startswith("host port")]
        assert (port["got"], port["predicted"]) == (True, True), port
        assert "CNI-DN-" not in run("ip", "netns", "exec", one.name, "iptables-save")
        assert sum(cell["kind"] == "other node, tcp" for cell in result["cells"]) == 2
        for cell in result["cells"]:
            if cell["kind"] == "other node, mtu":
                assert cell["text"] == "1280 to 1420 bytes arrive, one more is refused"
        suite = ElementTree.parse(report).getroot()
        assert (suite.get("failures"), suite.get("tests")) == ("0", str(len(result["cells"])))
        for node in nodes:
            assert left(node) == []
            assert {each["ifname"] for each in node.ip("link")} == links[node.name]


def test_a_node_that_takes_no_part_is_no_fault(pair: Fleet) -> None:
    result = check(pair.nodes[1])
    assert result["ok"], failed(result)
    skipped = [cell["text"] for cell in result["cells"] if cell["kind"] == "other node"]
    (port,) = [cell["text"] for cell in result["cells"] if cell["kind"] == "host port"]
    assert port == "no host port has been in use on this node, and portmap would leave its chains here"
    assert skipped == ["it takes no part (`zlayer-cni connectivity accept` there)"]


def test_a_container_may_ask_for_no_part(pair: Fleet) -> None:
    """The port answers nodes of the mesh alone: a container elsewhere reaches it, and is refused."""
    one, two = pair.nodes.values()
    box = one.container()
    with accepting(two):
        request = json.dumps({"test": 1, "tag": "x", "network": "y"}) + "\n"
        script = (
            f"import socket; s = socket.create_connection(('{two.status().node_ip}', 9474), 5); "
            f"s.sendall({request.encode()!r}); print(s.recv(999).decode())"
        )
        said = box.run("python3", "-c", script)
    assert "is the node address of no peer" in said
    assert left(two) == []


def test_a_node_whose_settings_allow_it_takes_part_at_any_time() -> None:
    """No command runs there until a test comes, and none some time after it; a daemon that ends takes it along."""
    with fleet("a") as made:
        one, two = (made.node(number, start=False) for number in (1, 2))
        two.settings["connectivity"] = "allow"
        link(one, two)
        for node in (one, two):
            node.start()
        ready(one, two)
        wait_for(partial(listens, two), "the port")
        assert helpers(two) == []
        result = check(one)
        assert result["ok"], failed(result)
        assert sum(cell["kind"] == "other node, tcp" for cell in result["cells"]) == 1
        assert left(two) == [] and len(helpers(two)) == 1
        assert check(one)["ok"], "a second one meanwhile"
        wait_for(lambda: not helpers(two), "the end of the command", 60)
        assert check(one)["ok"], "and one afterwards"
        two.end(signal.SIGTERM)
        wait_for(lambda: not helpers(two), "its end with the daemon")
        assert not listens(two)


def helpers(node: Node) -> list[int]:
    """The processes of `connectivity accept` on a node."""
    found = []
    for pid in node.pids():
        with contextlib.suppress(OSError):
            if b"\0accept\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_a_killed_test_leaves_nothing(pair: Fleet) -> None:
    one, two = pair.nodes.values()
    with accepting(two):
        process = start(one, "connectivity", "test")
        wait_for(
            lambda: any(name.endswith("-far-flat") for name in left(two)) or process.poll() is not None, "its part"
        )
        assert process.poll() is None
        process.kill()
        process.communicate()
        assert left(one)
        wait_for(lambda: not left(two), "the other node's end", 20)
    wait_for(lambda: not left(one), "garbage collection", 45)
    assert not [each["ifname"] for each in one.ip("link") if each["ifname"].startswith("veth")]


def test_an_interrupted_test_leaves_nothing_at_once(pair: Fleet) -> None:
    one = pair.nodes[1]
    process = start(one, "connectivity", "test")
    wait_for(lambda: left(one), "its namespaces")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert left(one) == []


# --- planted faults --------------------------------------------------------------------------------------------------


def inside(node: Node, *words: str) -> str:
    return run("ip", "netns", "exec", node.name, *words)


def nft(node: Node, text: str) -> None:
    subprocess.run(["ip", "netns", "exec", node.name, "nft", "-f", "-"], input=text, text=True, check=True)


def plant_rp_filter(one: Node, two: Node) -> Callable[[], object]:
    """Strict, and the route back to the containers is another one for the host's own look-ups."""
    services = one.settings["service_cidr"]
    inside(one, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
    inside(one, "ip", "route", "replace", "default", "dev", "eth0", "table", "99")
    inside(one, "ip", "rule", "add", "pref", "5", "iif", "lo", "to", services, "lookup", "99")

    def undo() -> None:
        inside(one, "ip", "rule", "del", "pref", "5")
        inside(one, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")

    return undo


def plant_route_missing(one: Node, two: Node) -> Callable[[], object]:
    """Another program's rule takes the other node's containers out of the table."""
    inside(one, "ip", "rule", "add", "pref", "5", "to", two.settings["service_cidr"], "unreachable")
    return lambda: inside(one, "ip", "rule", "del", "pref", "5")


def plant_bridge_nf_call(one: Node, two: Node) -> Callable[[], object]:
    """A rule that drops what is forwarded without a hop: what stays on a bridge."""
    inside(one, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1")
    text = 'iifname "zl-*" oifname "zl-*" ip ttl 64 drop'
    nft(one, f"table inet planted {{ chain f {{ type filter hook forward priority 5; {text}; }}; }}")

    def undo() -> None:
        inside(one, "nft", "delete table inet planted")
        inside(one, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0")

    return undo


def plant_foreign_drop(one: Node, two: Node) -> Callable[[], object]:
    nft(one, "table inet planted { chain f { type filter hook forward priority 5; policy drop; }; }")
    return lambda: inside(one, "nft", "delete table inet planted")


def repeated(step: Callable[[], object], pause: float) -> Callable[[], None]:
    """Repeats a step every `pause` seconds in a thread of its own; returns what ends that."""
    ended = threading.Event()

    def body() -> None:
        while not ended.is_set():
            step()
            time.sleep(pause)

    thread = threading.Thread(target=body)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join()

    return end


def plant_stale_address(one: Node, two: Node) -> Callable[[], object]:
    """The host gets the address of a container that has just been attached. (An address that it has before is no
    container's: the daemon gives out none in the host's networks.)"""
    planted: list[str] = []

    def step() -> None:
        for each in ask.ask(str(one.directory / "run"), "attachments", list[answers.Attachment]) if not planted else ():
            if each.container_id.endswith("-other"):
                address = each.addresses[0].partition("/")[0]
                inside(one, "ip", "route", "add", "local", address, "dev", "lo", "table", "local")
                planted.append(address)

    end = repeated(step, 0.002)

    def undo() -> None:
        end()
        for address in planted:
            inside(one, "ip", "route", "del", "local", address, "dev", "lo", "table", "local")

    return undo


def plant_dormant(one: Node, two: Node) -> Callable[[], object]:
    """A program switches the fence's tables off again and again: the daemon repairs them."""
    command = ["ip", "netns", "exec", one.name, "nft", "-f", "-"]
    text = "".join(f"add table {family} zlayer_cni {{ flags dormant; }}\n" for family in ("inet", "bridge"))
    end = repeated(lambda: subprocess.run(command, input=text, text=True, check=False), 0.01)

    def undo() -> None:
        end()
        wait_for(lambda: one.tool("status")["fence"]["in_force"], "the fence", 30)

    return undo


PLANTED: dict[str, Callable[[Node, Node], Callable[[], object]]] = {
    "rp-filter": plant_rp_filter,
    "route-missing": plant_route_missing,
    "bridge-nf-call": plant_bridge_nf_call,
    "foreign-drop": plant_foreign_drop,
    "stale-address": plant_stale_address,
    "fence-dormant": plant_dormant,
}


def judged(result: Any, fault: str) -> None:
    """The fault's code, and none of the eleven others; a remedy with each failed cell."""
    assert not result["ok"]
    assert result["codes"] == [fault], failed(result)
    assert all(cell["remedy"] for cell in result["cells"] if not cell["ok"])


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_has_its_code(pair: Fleet, fault: str) -> None:
    one, two = pair.nodes.values()
    for node in (one, two):
        inside(node, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0")
    ready(one, two)
    with accepting(two):
        undo = PLANTED[fault](one, two)
        try:
            result = check(one)
        finally:
            undo()
    judged(result, fault)
    wait_for(lambda: not left(one) and not left(two), "the end", 45)


def test_another_clock_has_its_code(pair: Fleet) -> None:
    library = next(iter(Path("/usr/lib").rglob("libfaketime.so.1")), None)
    if library is None or shutil.which("ss") is None:
        pytest.skip("no libfaketime here (apt-get install libfaketime)")
    one, two = pair.nodes.values()
    ready(one, two)
    with accepting(two, env={"LD_PRELOAD": str(library), "FAKETIME": "-3h"}):
        result = check(one)
        assert [c["text"] for c in result["cells"] if c["kind"] == "other node"] == []
        judged(result, "clock")


@contextlib.contextmanager
def nodes_with(change: Callable[[Node, Node], None]) -> Iterator[tuple[Node, Node]]:
    """Two nodes whose settings were changed before they started."""
    with fleet("f") as made:
        one, two = (made.node(number, start=False) for number in (1, 2))
        link(one, two)
        change(one, two)
        for node in (one, two):
            node.start()
        yield one, two


def test_a_narrow_path_has_its_code() -> None:
    """The underlay drops large datagrams, and says nothing."""
    with nodes_with(lambda one, two: None) as (one, two):
        ready(one, two)
        rule = "type filter hook input priority 0; udp dport 51420 udp length > 1400 drop;"
        nft(two, f"table ip planted {{ chain in {{ {rule} }}; }}")
        with accepting(two):
            judged(check(one), "mtu")


def test_dropped_datagrams_have_their_code() -> None:
    """Nothing of WireGuard leaves the other node."""

    def change(one: Node, two: Node) -> None:
        nft(two, "table ip planted { chain out { type filter hook output priority 0; udp sport 51420 drop; }; }")

    with nodes_with(change) as (one, _):
        wait_for(lambda: one.tool("peers"), "the peer")
        judged(check(one), "udp-dropped")


def test_a_wrong_key_has_its_code() -> None:
    def change(one: Node, two: Node) -> None:
        one.settings["peers"][0]["public_key"] = OTHER_KEY

    with nodes_with(change) as (one, _):
        wait_for(lambda: one.tool("peers"), "the peer")
        judged(check(one), "wrong-key")


def test_a_wrong_subnet_has_its_code() -> None:
    """This node takes another range for the other node's containers."""

    def change(one: Node, two: Node) -> None:
        one.settings["peers"][0]["allowed_ips"] = [two.settings["slice_cidr"], "10.200.224.0/19"]

    with nodes_with(change) as (one, two):
        ready(one, two)
        with accepting(two):
            judged(check(one), "wrong-subnet")


def test_a_full_pool_has_its_code() -> None:
    def change(one: Node, two: Node) -> None:
        one.settings["service_cidr"] = "10.200.32.0/25"

    with nodes_with(change) as (one, _):
        one.container("web"), one.container("db")  # a subnet each, and there is no third
        judged(check(one), "pool-full")


def test_every_fault_has_a_test_and_a_meaning() -> None:
    tested = {*PLANTED, "clock", "wrong-key", "wrong-subnet", "pool-full", "mtu", "udp-dropped"}
    assert tested == set(FAULTS)
    assert set(FAULTS) <= set(CAUSES)
