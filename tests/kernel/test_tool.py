"""What the operator's tool says, against the real daemon and real packets: `why` must be right about every pair, and a
rule it names for a refusal must be the one that counts the packet."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cni import answers
from cni.cli import ask
from cni.cli import doctor_daemon as doctor_cli
from cni.cli import gc as gc_cli
from cni.cli import main as cli
from cni.cli import networks as networks_cli
from cni.cli import why as why_cli
from tests.kernel import toolnode
from tests.kernel.toolnode import LAN4, LAN6, ROOT, Node, Space, agrees, knock, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PORTMAP = Path("/usr/lib/cni/portmap")
# container id: service, isolation network
CONTAINERS: dict[str, tuple[str, str | None]] = {
    "red1": ("web", "red"),
    "red2": ("web", "red"),
    "red3": ("db", "red"),
    "blue1": ("web", "blue"),
    "blue2": ("db", "blue"),
    "flat1": ("web", None),
    "flat2": ("db", None),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with toolnode.running(tmp_path_factory.mktemp("node"), CONTAINERS) as made:
        yield made


@pytest.fixture
def spaces() -> Iterator[Callable[[], Space]]:
    with toolnode.spaces() as make:
        yield make


def destinations(node: Node, src: str) -> Iterator[tuple[str, bool]]:
    """(what to ask for, whether a refusal's rule must count): every kind of place there is."""
    yield from ((name, True) for name in CONTAINERS if name != src)
    for version in (4, 6):
        yield from ((node.gateway(name, version), True) for name in ("red1", "red3"))
    yield from ((address, True) for address in (LAN4, LAN6) if src != "outside" or address)
    yield from (("node", True), ("outside", True))
    yield from (("10.200.250.9", True), ("fd00:200:0:fa::9", True))  # without an owner, and by the gateway


@pytest.mark.parametrize("src", [*CONTAINERS, "node", "outside"])
def test_why_agrees_with_packets(node: Node, src: str) -> None:
    wrong, asked = [], 0
    for dst, counted in destinations(node, src):
        if dst == src:
            continue
        for path in node.why(src, dst)["paths"]:
            if src == "node" and path["to"]["kind"] in ("host", "unknown"):
                continue  # to itself; and to an address without an owner, where no packet leaves
            asked += 1
            path["rule"] = path["rule"] if counted else None
            if said := agrees(node, path, src, 18099, socket.SOCK_STREAM):
                wrong.append(f"{src} -> {dst} ({path['to']['address']}): {said}; why said: {path['reason']}")
    assert asked > 10
    assert not wrong, "\n".join(wrong)


def test_the_answers_are_the_design(node: Node) -> None:
    """The matrix as data, so that `why` and the fence cannot be wrong together."""
    may = {
        ("red1", "red2"): True,
        ("red1", "red3"): True,
        ("red1", "blue1"): False,
        ("red1", "blue2"): False,
        ("red1", "flat1"): False,
        ("flat2", "red3"): False,
        ("flat1", "flat2"): True,
        ("red1", "node"): True,
        ("red1", node.gateway("red1")): False,
        ("flat1", node.gateway("red3")): True,
        ("red1", LAN4): False,
        ("red1", "outside"): True,
        ("outside", "red1"): False,
        ("outside", "flat1"): True,
        ("node", "blue1"): True,
        ("red1", "10.200.250.9"): False,
        ("red1", "127.0.0.1"): False,
    }
    assert {pair: node.why(*pair)["allowed"] for pair in may} == may


def test_no_tunnel_into_the_node(node: Node) -> None:
    for port, allowed in ((5300, True), (4789, False)):
        for path in node.why("red1", "node", f"{port}/udp")["paths"]:
            assert path["allowed"] is allowed
            assert agrees(node, path, "red1", port, socket.SOCK_DGRAM) == ""


@pytest.mark.skipif(not PORTMAP.exists(), reason=f"{PORTMAP} is not there (containernetworking-plugins)")
def test_a_published_port(node: Node) -> None:
    """portmap itself publishes; outside reaches the member there, its own network too, and no other."""
    mapping = {"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "snat": True}
    conf |= {"runtimeConfig": {"portMappings": [mapping]}, "prevResult": node.results["red1"]}
    call = {"CNI_CONTAINERID": "red1", "CNI_NETNS": node.boxes["red1"].path, "CNI_IFNAME": "eth0"}
    call |= {"CNI_PATH": str(PORTMAP.parent)}

    def portmap(verb: str) -> None:
        command = ["nsenter", f"--net={node.host.path}", str(PORTMAP)]
        env = {**os.environ, **call, "CNI_COMMAND": verb}
        subprocess.run(command, env=env, input=json.dumps(conf).encode(), capture_output=True, timeout=30, check=True)

    portmap("ADD")
    try:
        for src, allowed, rule in (
            ("outside", True, "published port"),
            ("red3", True, "same network"),
            ("blue1", False, "between networks"),
            ("flat2", False, "between networks"),
        ):
            (path,) = node.why(src, LAN4, "18080")["paths"]
            assert (path["allowed"], path["rule"]["name"]) == (allowed, rule), src
            assert path["to"]["address"] == LAN4
            assert "published" in path["notes"][0]
            assert agrees(node, path, src, 18080, socket.SOCK_STREAM) == "", src
        assert node.why("outside", LAN4, "18081")["paths"][0]["rule"] is None
    finally:
        portmap("DEL")


def test_words_that_mean_no_place(node: Node) -> None:
    code, out = node.tool("why", "absent", "node")
    assert (code, out) == (2, "")
    for words in (("red", "node"), ("red1", "224.0.0.1"), ("red1", "fe80::1234"), ("red1", "node", "70000")):
        with pytest.raises(ask.Refused):
            node.why(*words)
    assert node.why("ns/red1", "red3")["paths"][0]["from"]["container_id"] == "red1"


def test_link_local_stays_on_its_bridge(node: Node) -> None:
    macs = {each["container_id"]: each["mac"] for each in node.ask("attachments")}

    def link_local(name: str) -> str:
        octets = bytes.fromhex(macs[name].replace(":", ""))
        eui = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
        return socket.inet_ntop(socket.AF_INET6, b"\xfe\x80" + bytes(6) + eui)

    assert node.why("red1", link_local("red2"))["allowed"]
    assert not node.why("red1", link_local("blue1"))["allowed"]
    assert not node.why("red1", link_local("red3"))["allowed"]


# --- networks -----------------------------------------------------------------------------------------------------


def test_networks(node: Node) -> None:
    found = node.ask("networks")
    members = {
        each["isolation_network"]: {member["container_id"] for member in each["members"]} for each in found["networks"]
    }
    assert members == {
        None: {"flat1", "flat2"},
        "red": {"red1", "red2", "red3"},
        "blue": {"blue1", "blue2"},
    }
    assert found["networks"][0]["isolation_network"] is None
    assert found["fence"] == {"in_force": True, "trouble": ""}


def test_drops_are_counted_for_the_network_that_sent(node: Node) -> None:
    def dropped() -> dict[str | None, int]:
        return {each["isolation_network"]: each["dropped"]["packets"] for each in node.ask("networks")["networks"]}

    before = dropped()
    with knock(node.boxes["red3"], node.address("blue1"), 18099, socket.SOCK_STREAM, None):
        assert until(lambda: (dropped()["red"] or 0) > (before["red"] or 0), 15)
    text = networks_cli.as_text(ask.ask(node.run_dir, "networks", answers.Networks))
    assert "between networks" in text
    assert "red1" in text


# --- gc -----------------------------------------------------------------------------------------------------------


def test_gc_says_then_does(node: Node, spaces: Callable[[], Space]) -> None:
    assert node.ask("gc", dry_run="1") == {"dry_run": True, "released": [], "candidates": [], "strays": []}
    node.add("dead1", spaces(), "web", "red")
    veth = next(e["host_interface"] for e in node.ask("attachments") if e["container_id"] == "dead1")
    node.host.ip(f"link del {veth}")
    found = node.ask("gc", dry_run="1")
    assert [each["container_id"] for each in found["candidates"]] == ["dead1"]
    assert "dead1" in gc_cli.as_text(msgspec.convert(found, answers.Garbage))
    assert "dead1" in {each["container_id"] for each in node.ask("attachments")}
    assert [each["container_id"] for each in node.ask("gc")["released"]] == ["dead1"]
    assert node.ask("gc")["released"] == []
    assert "dead1" not in {each["container_id"] for each in node.ask("attachments")}
    assert not node.why("red1", node.address("dead1"))["allowed"]


# --- the commands themselves ----------------------------------------------------------------------------------------


def test_the_commands(node: Node) -> None:
    for words, code in (
        (("networks",), 0),
        (("why", "red1", "red2"), 0),
        (("why", "red1", "blue1", "80/tcp"), 1),
        (("gc", "--dry-run"), 0),
    ):
        for more in ((), ("--json",)):
            found, out = node.tool(*words, *more)
            assert found == code, (words, out)
            assert out
            if more:
                json.loads(out)
    assert "NO " in why_cli.as_text(msgspec.convert(node.why("red1", "blue1"), answers.Reachability))


def test_without_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["networks"], ["why", "node", "outside"], ["gc"]):
        assert cli.main([*words, "--run-dir", str(tmp_path)]) == 3
    assert "no overlay daemon" in capsys.readouterr().err


# --- doctor ---------------------------------------------------------------------------------------------------------


def doctor(node: Node, tmp_path: Path, *more: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """The doctor's findings by check; the installation is one that the test made."""
    words = ["doctor", "--json", "--data-dir", str(node.dir / "data"), "--conf-dir", str(tmp_path / "net.d")]
    code, out = node.tool(*words, "--bin-dir", str(tmp_path / "bin"), *more)
    found: dict[str, list[dict[str, str]]] = {}
    for each in json.loads(out)["findings"]:
        found.setdefault(each["check"], []).append(each)
    assert json.loads(out)["ok"] == (code == 0)
    return code, found


def levels(found: dict[str, list[dict[str, str]]], check: str) -> set[str]:
    return {each["level"] for each in found[check]}


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A plugin and a network list, as `install` lays them down."""
    for name in ("bin", "net.d"):
        (tmp_path / name).mkdir()
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m cni "$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "bin/zlayer-cni").symlink_to(wrapper)
    (tmp_path / "bin/portmap").symlink_to("/bin/true")
    (tmp_path / "net.d/10-zlayer.conflist").write_text((ROOT / "conf/10-zlayer.conflist").read_text())
    return tmp_path


def test_doctor_finds_nothing_on_a_good_node(node: Node, installation: Path) -> None:
    code, found = doctor(node, installation)
    bad = [each for some in found.values() for each in some if each["level"] == "fail"]
    assert (code, bad) == (0, [])
    for check in ("privileges", "forward", "forwarding", "routes", "conflist", "plugin", "permissions"):
        assert levels(found, check) == {"ok"}, check
    assert levels(found, "daemon") == {"ok"}


def test_doctor_sees_what_is_wrong(node: Node, installation: Path) -> None:
    """Each fault made for real, in this node's own namespace and directories."""
    node.host.ip("link add dummy0 type bridge", "link set dummy0 up", "route add 10.200.128.0/20 dev dummy0")
    rules = "table inet other { chain f { type filter hook forward priority 0; policy drop; ip ttl 7 accept; }; }"
    node.host.nft(rules)
    (installation / "net.d/05-other.conflist").write_text('{"name":"x","cniVersion":"1.0.0","plugins":[{"type":"a"}]}')
    (node.dir / "data").mkdir(exist_ok=True)
    (node.dir / "data/spare.key").write_text("")
    (node.dir / "data/spare.key").chmod(0o644)
    try:
        code, found = doctor(node, installation)
    finally:
        node.host.ip("link del dummy0")
        node.host.nft("delete table inet other")
        (node.dir / "data/spare.key").unlink()
    assert code == 1
    for check in ("routes", "foreign firewall", "conflist", "permissions"):
        assert levels(found, check) == {"fail"}, check
    assert all(each["fix"] for some in found.values() for each in some if each["level"] == "fail")


def test_doctor_without_a_daemon(installation: Path, spaces: Callable[[], Space]) -> None:
    """What can be seen from outside is seen; nothing stands in the way but what is said."""
    alone = Node(installation, spaces(), spaces())
    (installation / "data").mkdir(mode=0o700)
    alone.host.inside(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("0"))
    code, found = doctor(alone, installation)
    assert (code, levels(found, "daemon"), levels(found, "forwarding")) == (0, {"warn"}, {"warn"})
    assert alone.host.links() == set()
    assert "zlayer_cni" not in alone.host.nft("list tables")


@pytest.mark.parametrize(
    ("name", "ours"), [("10-zlayer.conflist", True), ("05-other.conflist", False), ("05-dir.conf", False)]
)
def test_doctor_tells_of_a_list_that_is_no_json(
    installation: Path, spaces: Callable[[], Space], name: str, ours: bool
) -> None:
    alone = Node(installation, spaces(), spaces())
    (installation / "net.d" / name).unlink(missing_ok=True)
    if name.endswith(".conf"):
        (installation / "net.d" / name).mkdir()
    else:
        (installation / "net.d" / name).write_text('{"plugins": [')
    code, found = doctor(alone, installation)
    (finding,) = found["conflist"]
    assert (code, finding["level"]) == (1, "fail")
    assert "does not name" not in finding["text"]
    assert "cannot be used" in finding["text"]
    assert ("remove it" in finding["fix"]) != ours
    assert "doctor" not in found, "the other checks of the runtime are made"
    _, text = alone.tool("doctor", "--conf-dir", str(installation / "net.d"))
    assert re.fullmatch(r"not good: \d+ failed, \d+ warnings, \d+ ok", text.splitlines()[-1])


def test_who_is_a_daemon() -> None:
    assert doctor_cli.is_daemon(["/opt/zlayer-cni/1/zlayer-cni", "overlayd", "--run-dir", "/x"])
    assert doctor_cli.is_daemon(["/usr/bin/zlayer-overlayd"])
    assert doctor_cli.is_daemon(["python3", "-m", "cni", "overlayd"])
    assert not doctor_cli.is_daemon(["zlayer-cni", "doctor"])
    assert not doctor_cli.is_daemon(["vi", "overlayd"])
    assert not doctor_cli.is_daemon([])
