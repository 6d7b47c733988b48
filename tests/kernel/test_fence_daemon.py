"""The fence in the hands of the real daemon: it fails closed and comes back, gets along with a FORWARD that denies, and
is looked after by CHECK and STATUS. The daemon and the plugin run from source, in namespaces `zlt-tool*`."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni.daemon.fence import ruleset as fence
from cni.daemon.fence.model import FencePort
from cni.host import nft as host_nft
from cni.plugin import delete_queue
from tests.kernel import toolnode
from tests.kernel.toolnode import LAN4, LAN6, OUTSIDE4, OUTSIDE6, ROOT, Node, Space, knock, reached, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PORTMAP = Path("/usr/lib/cni/portmap")
MENDED = 40.0  # seconds: the keeper waits 0.5 after a loss, or 10 without one, and a busy machine takes its time
SELDOM = (
    "import sys; from cni.daemon import main; from cni.daemon.reconcile import node; "
    "from cni.daemon.fence import watch; node.INTERVAL = 3600.0; "
    "watch.Watch.start = lambda self: None; sys.exit(main.main(sys.argv[2:]))"
)
TENTATIVE = 0x40
UNAVAILABLE, FENCE = 51, 105
Make = Callable[[], Space]


class Fenced(Node):
    """A node whose plugin may also be refused. `without` is a file that its daemon does not find; with `seldom` its
    keeper comes only when it is woken, and nothing is heard of nftables, so that nothing is mended between two lines of
    a test."""

    without: Path | None = None
    seldom = False
    mounts: subprocess.Popen[str] | None = None

    def program(self, *words: str, **how: Any) -> subprocess.Popen[bytes]:
        if self.seldom and words[:1] == ("overlayd",):
            command = ["nsenter", f"--net={self.host.path}", sys.executable, "-c", SELDOM, *words]
            return subprocess.Popen(command, cwd=ROOT, **how)
        if self.without is None or "overlayd" not in words:
            return super().program(*words, **how)
        hide = f"mount --bind /dev/null {self.without} && echo hidden && exec sleep infinity"
        command = ["unshare", "-m", "--propagation", "private", "sh", "-c", hide]
        self.mounts = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.mounts.stdout is not None
        assert self.mounts.stdout.readline() == "hidden\n"
        inside = ["nsenter", "-m", f"-t{self.mounts.pid}", f"--net={self.host.path}", f"--wd={ROOT}"]
        how["env"] = {**os.environ, **how.get("env", {})}
        return subprocess.Popen([*inside, sys.executable, "-m", "cni", *words], **how)

    def show(self) -> None:
        """The hidden file is there again."""
        assert self.mounts is not None
        subprocess.run(["nsenter", "-m", f"-t{self.mounts.pid}", "umount", str(self.without)], check=True)

    def call(self, verb: str, name: str, space: Space | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
        """The plugin as a runtime calls it: its error's code (0: none), and what it printed."""
        conf = {"cniVersion": "1.1.0", "name": "net", "type": "zlayer-cni", "service": "web", "autostart": False}
        conf |= {"runDir": self.run_dir, "dataDir": str(self.dir / "data"), **more}
        call = {"CNI_COMMAND": verb, "CNI_PATH": "/opt/cni/bin"}
        if verb != "STATUS":
            call |= {"CNI_CONTAINERID": name, "CNI_IFNAME": "eth0"}
            call |= {"CNI_NETNS": space.path} if space else {}
        with self.program(env=call, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            out, _ = process.communicate(json.dumps(conf).encode(), timeout=120)
        said = json.loads(out) if out.strip() else {}
        assert process.returncode == (1 if "code" in said else 0), said
        return said.get("code", 0), said

    def status(self) -> int:
        return self.why_not()[0]

    def why_not(self) -> tuple[int, dict[str, Any]]:
        """STATUS, asked until it was answered within its two seconds."""
        for _ in range(20):
            code, said = self.call("STATUS", "")
            if "did not answer within" not in said.get("msg", ""):
                break
        return code, said

    def check(self, name: str) -> tuple[int, dict[str, Any]]:
        result = self.results[name]
        return self.call("CHECK", name, self.boxes[name], prevResult=result, cniVersion=result["cniVersion"])

    def wake(self) -> None:
        """Have the keeper look soon: it hears that an address has gone. A /32 would be a routed port's gateway."""
        self.host.ip("addr add 198.18.0.1/24 dev up0", "addr del 198.18.0.1/24 dev up0")

    def quiet(self) -> None:
        """The keeper has looked, and does not look again until it is woken (`seldom`). Twice, since the first
        look may have been woken by something earlier; the last thing it does is to take what is unreadable out of the
        queue of deletions."""
        for _ in range(2):
            delete_queue.add(self.run_dir, ("absent", "nothing", "nowhere"), b"unreadable")
            self.wake()
            assert until(lambda: not delete_queue.names(self.run_dir), MENDED)

    def reaches(self, src: str, address: str, port: int = 18099, wait: float = 15.0) -> bool:
        with knock(self.space_of(src), address, port, socket.SOCK_STREAM, None) as sock:
            return until(lambda: reached(sock), wait)

    def close(self) -> None:
        super().close()
        if self.mounts is not None:
            self.mounts.kill()
            self.mounts.wait()


@contextlib.contextmanager
def noded(
    directory: Path, without: Path | None = None, before: str = "", seldom: bool = False
) -> Iterator[tuple[Fenced, Make]]:
    """A node with its daemon, and what makes containers; `before` is run as `sh` in its namespace beforehand."""
    with toolnode.spaces() as make:
        node = Fenced(directory, make(), make())
        node.without, node.seldom = without, seldom
        try:
            toolnode.uplink(node.host, node.outside)
            if before:
                node.host.inside(lambda: subprocess.run(["sh", "-ec", before], check=True))
            node.start()
            yield node, make
        finally:
            node.close()


@pytest.fixture(scope="module")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fenced, Make]]:
    """A node whose iptables deny forwarding, with two networks and the flat mesh."""
    policy = "for t in iptables ip6tables; do $t -P FORWARD DROP; done"
    with noded(tmp_path_factory.mktemp("f"), before=policy, seldom=True) as (node, make):
        for name, service, network in (
            ("red1", "web", "red"),
            ("red2", "db", "red"),
            ("blue1", "web", "blue"),
            ("blue2", "db", "blue"),
            ("flat1", "web", None),
        ):
            node.add(name, make(), service, network)
        yield node, make


@pytest.fixture
def node(fenced: tuple[Fenced, Make]) -> Fenced:
    return fenced[0]


def refused_clean(node: Fenced, space: Space) -> None:
    """An ADD that fails for want of a fence leaves no link, no address, no record and no element."""
    links, known = node.host.links(), node.ask("attachments")
    code, said = node.call("ADD", "late", space, isolationNetwork="red")
    assert code == FENCE, said
    assert node.host.links() - links <= {name for name in node.host.links() if name.endswith("-b")}
    assert not [name for name in node.host.links() - links if name.endswith("-v")]
    assert (space.links(), node.ask("attachments")) == (set(), known)
    assert node.status() == UNAVAILABLE
    assert node.call("DEL", "late", space)[0] == 0


def held_apart(node: Fenced) -> None:
    """One's own reached, on the other bridge; the others' not, on this bridge and on the other, in both families."""
    for version in (4, 6):
        assert node.reaches("red1", node.address("red2", version))
        assert not node.reaches("red1", node.address("blue1", version), wait=0.3)
        assert not node.reaches("red1", node.address("blue2", version), wait=0.3)


# --- fail closed ----------------------------------------------------------------------------------------------------


def library() -> Path:
    """Where this machine has libnftables."""
    host_nft._load()
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(Path(line.split()[-1]) for line in lines if "libnftables" in line)


def test_without_nftables_nobody_is_attached(tmp_path: Path) -> None:
    with noded(tmp_path, without=library()) as (node, make):
        space = make()
        refused_clean(node, space)
        assert any("nftables" in problem for problem in node.ask("status")["problems"])
        node.show()
        node.wake()
        assert until(lambda: node.status() == 0, MENDED)
        node.add("late", space, "web", "red")
        assert node.check("late")[0] == 0


def test_hairpin_mode_that_is_switched_off_comes_back(node: Fenced) -> None:
    """CHECK tells of it, and the next comparison switches it on."""
    port = node.results["red1"]["interfaces"][1]["name"]
    node.quiet()
    assert node.check("red1")[0] == 0
    node.host.ip(f"link set {port} type bridge_slave hairpin off")
    code, said = node.check("red1")
    assert code >= 100
    assert "hairpin" in json.dumps(said)
    node.wake()
    assert until(lambda: node.check("red1")[0] == 0, MENDED)


@pytest.mark.parametrize("family", ["inet", "bridge"])
def test_a_table_that_somebody_deletes(fenced: tuple[Fenced, Make], family: str) -> None:
    node, make = fenced
    node.quiet()
    node.host.nft(f"delete table {family} zlayer_cni")
    assert node.check("red1")[0] >= 100
    assert node.status() == UNAVAILABLE
    space = make()
    node.add("late", space, "web", "red")  # an ADD puts the tables right before it adds to them
    assert node.status() == 0
    assert node.call("DEL", "late", space)[0] == 0
    assert node.check("red1")[0] == 0
    held_apart(node)


def test_a_table_that_somebody_else_owns(fenced: tuple[Fenced, Make]) -> None:
    """`nft -i` owns what it makes with `flags owner`, for as long as it lives: the kernel refuses our every write."""
    node, make = fenced

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    node.quiet()
    owner = node.host.inside(start)
    try:
        assert owner.stdin is not None
        owner.stdin.write("delete table inet zlayer_cni; add table inet zlayer_cni { flags owner; }\n")
        owner.stdin.flush()
        assert until(lambda: "owner" in node.host.nft("list table inet zlayer_cni"), 30)
        refused_clean(node, make())
        node.wake()
        assert until(lambda: any("fence" in problem for problem in node.ask("status")["problems"]), MENDED)
        assert node.status() == UNAVAILABLE
    finally:
        owner.kill()
        owner.wait()
    node.wake()
    assert until(lambda: node.status() == 0, MENDED)
    held_apart(node)


def test_a_killed_daemon_leaves_the_fence_and_the_next_one_mends_it(node: Fenced) -> None:
    assert node.process is not None
    node.process.send_signal(signal.SIGKILL)
    node.process.wait()
    held_apart(node)
    line = next(each for each in elements(node, "red2") if node.address("red2") in each)
    node.host.nft(line.replace("add element", "delete element", 1))
    as_an_older_version(node)
    node.start()
    assert node.status() == 0
    assert node.check("red2")[0] == 0
    held_apart(node)
    assert "4789" in node.host.nft("list chain inet zlayer_cni to_host")
    assert "base_00000000" not in node.host.nft("list ruleset")


def as_an_older_version(node: Fenced) -> None:
    """The tables as a version would have left them that has fewer ports in a rule of the same name."""
    marker = re.findall(r"chain (base_\w+) ", node.host.nft("list table inet zlayer_cni"))
    assert len(marker) == 1
    text = node.host.nft("list chain inet zlayer_cni to_host")
    assert "4789" in text
    node.host.nft("flush chain inet zlayer_cni to_host\n" + text.replace("4789", "4788"))
    node.host.nft(f"rename chain inet zlayer_cni {marker[0]} base_00000000")


# --- CHECK ----------------------------------------------------------------------------------------------------------


def elements(node: Fenced, name: str) -> list[str]:
    """The lines that admit a container."""
    veths = [each for each in node.results[name]["interfaces"] if not each.get("sandbox") and each["name"][-1] == "v"]
    mac = next(each["mac"] for each in node.results[name]["interfaces"] if each.get("sandbox"))
    bridge = next(each["name"] for each in node.results[name]["interfaces"] if each["name"].endswith("-b"))
    addresses = tuple(node.address(name, version) for version in (4, 6))
    change = fence.add_port(FencePort(veths[0]["name"], bridge, mac, addresses, name.rstrip("0123456789")))
    return [line for line in change.text().splitlines() if line.startswith("add element")]


def test_check_notices_any_missing_element(node: Fenced) -> None:
    lines = elements(node, "blue1")
    assert len(lines) > 10
    assert node.check("blue1")[0] == 0
    node.quiet()
    for line in lines:
        node.host.nft(line.replace("add element", "delete element", 1))
        code, said = node.check("blue1")
        assert code >= 100, line
        assert "the fence is not whole" in said["msg"] + said.get("details", "")
        node.host.nft(line)
    assert node.check("blue1")[0] == 0


# --- FORWARD --------------------------------------------------------------------------------------------------------


def forward(node: Node, tool: str, *words: str) -> list[str]:
    command = [tool, "-w", *(words or ("-S", "FORWARD"))]
    run = subprocess.run
    return node.host.inside(lambda: run(command, capture_output=True, text=True, check=True)).stdout.splitlines()


def jumps(node: Node) -> list[int]:
    """How many jumps to our chain there are in each family's FORWARD; -1 where a rule before drops every packet."""
    found = []
    for tool in ("iptables", "ip6tables"):
        rules = [line for line in forward(node, tool) if line.startswith("-A")]
        count = sum(line.endswith("-j ZLAYER-CNI") for line in rules)
        before = list(itertools.takewhile(lambda line: not line.endswith("-j ZLAYER-CNI"), rules))
        found.append(count if not count or "-A FORWARD -j DROP" not in before else -1)
    return found


def test_a_denying_forward_lets_containers_through(node: Fenced) -> None:
    assert jumps(node) == [1, 1]
    for address in (OUTSIDE4, OUTSIDE6):
        assert node.reaches("flat1", address)
        assert node.reaches("red1", address)
    for version in (4, 6):
        assert node.reaches("outside", node.address("flat1", version))
        assert not node.reaches("outside", node.address("red1", version), wait=0.3)
    held_apart(node)


@pytest.mark.parametrize("how", ["-F FORWARD", "-F ZLAYER-CNI", "-I FORWARD 1 -j DROP"])
def test_the_jump_is_looked_after(node: Fenced, how: str) -> None:
    node.quiet()
    for tool in ("iptables", "ip6tables"):
        forward(node, tool, *how.split())
    try:
        assert not node.reaches("flat1", OUTSIDE4, wait=0.3)
        node.wake()
        assert until(lambda: node.reaches("flat1", OUTSIDE4, wait=0.3), MENDED)
        assert until(lambda: node.reaches("flat1", OUTSIDE6, wait=0.3), MENDED)
        assert jumps(node) == [1, 1]
    finally:
        if "DROP" in how:
            for tool in ("iptables", "ip6tables"):
                forward(node, tool, "-D", "FORWARD", "-j", "DROP")


def test_a_native_chain_that_denies_is_named_by_status(node: Fenced) -> None:
    node.host.nft("table inet theirs { chain f { type filter hook forward priority 0; policy drop; }; }")
    try:
        node.wake()
        assert until(lambda: any("inet theirs f" in each for each in node.ask("status")["problems"]), MENDED)
    finally:
        node.host.nft("delete table inet theirs")
    node.wake()
    assert until(lambda: not any("theirs" in each for each in node.ask("status")["problems"]), MENDED)


@pytest.mark.parametrize("policy", ["ACCEPT", "DROP"])
def test_uninstall_leaves_nothing_of_it(tmp_path: Path, policy: str) -> None:
    """On a host whose FORWARD accepts, nothing was ever written outside our tables."""
    before = (
        f"for t in iptables ip6tables; do $t -P FORWARD {policy}; $t -A FORWARD -s 203.0.113.1/32 -j DROP || :; done"
    )
    with noded(tmp_path, before=before) as (node, make):
        node.add("red1", make(), "web", "red")
        assert node.reaches("red1", OUTSIDE4)
        assert jumps(node) == ([1, 1] if policy == "DROP" else [0, 0])
        if policy == "DROP":  # a rule on a condition stays in force before the jump
            assert forward(node, "iptables")[1] == "-A FORWARD -s 203.0.113.1/32 -j DROP"
        assert node.process is not None
        reaper = threading.Thread(target=node.process.wait)  # `uninstall` waits for the daemon's end
        reaper.start()
        words = ("uninstall", "--force", "--root", str(tmp_path), "--run-dir", "/run", "--data-dir", "/data")
        with node.program(*words) as process:
            assert process.wait(120) == 0
        reaper.join(60)
        assert node.process.returncode is not None
        assert jumps(node) == [0, 0]
        for tool in ("iptables", "ip6tables"):
            rules = forward(node, tool, "-S")
            assert not [line for line in rules if "ZLAYER" in line]
            assert f"-P FORWARD {policy}" in rules
        assert "-A FORWARD -s 203.0.113.1/32 -j DROP" in forward(node, "iptables")
        assert "zlayer_cni" not in node.host.nft("list tables")
        assert {name for name in node.host.links() if name.startswith("zl-")} == set()


# --- both families --------------------------------------------------------------------------------------------------


def peer_seen_outside(node: Fenced, src: str, version: int) -> str:
    """Whose address a server beyond the node sees."""
    family, where = (socket.AF_INET6, OUTSIDE6) if version == 6 else (socket.AF_INET, OUTSIDE4)
    with node.outside.inside(lambda: socket.create_server((where, 0), family=family)) as server:
        server.settimeout(30)
        with knock(node.boxes[src], where, server.getsockname()[1], socket.SOCK_STREAM, None):
            far, who = server.accept()
            far.close()
    return str(who[0])


def test_both_families_from_add_to_del(fenced: tuple[Fenced, Make]) -> None:
    """Result, addresses ready at once, routes, masquerade; and no trace after DEL."""
    node, make = fenced
    space = make()
    node.add("both1", space, "web", "red")

    def tentative(beginning: str = "") -> list[str]:
        """The IPv6 addresses of eth0 that the kernel does not hold for good yet, of those that begin so."""
        inside = space.inside(lambda: Path("/proc/thread-self/net/if_inet6").read_text())
        lines = [line.split() for line in inside.splitlines() if line.endswith("eth0")]
        assert lines
        return [words[0] for words in lines if words[0].startswith(beginning) and int(words[4], 16) & TENTATIVE]

    assert tentative("fd00") == []
    assert until(lambda: tentative() == [], 15)  # the link-local one comes from a work queue of the kernel's
    found = json.loads(toolnode.ip("-n", space.name, "-j", "addr", "show", "eth0"))[0]["addr_info"]
    there = {f"{each['local']}/{each['prefixlen']}" for each in found if each["scope"] == "global"}
    assert there == {each["address"] for each in node.results["both1"]["ips"]}
    assert len(there) == 2
    for version in (4, 6):
        routes = json.loads(toolnode.ip("-n", space.name, "-j", f"-{version}", "route", "show", "default"))
        assert [route["gateway"] for route in routes] == [node.gateway("both1", version)]
        assert node.reaches("both1", node.address("red2", version))
        assert peer_seen_outside(node, "both1", version) == (LAN6 if version == 6 else LAN4)
    assert node.check("both1")[0] == 0
    for _ in range(2):
        assert node.call("DEL", "both1", space)[0] == 0
        ruleset = node.host.nft("list ruleset")
        assert not [node.address("both1", v) for v in (4, 6) if f"{node.address('both1', v)} " in ruleset]
        assert space.links() == set()


def test_a_new_bridge_finds_its_neighbours_at_once(fenced: tuple[Fenced, Make]) -> None:
    """The host forwards to a container as soon as ADD has answered: its link-local address waits for nothing."""
    node, make = fenced
    code, said = node.call("ADD", "fresh", make(), service="fresh")
    assert code == 0, said
    bridge = next(each["name"] for each in said["interfaces"] if each["name"].endswith("-b"))
    listing = json.loads(toolnode.ip("-n", node.host.name, "-j", "-6", "addr", "show", "dev", bridge))
    addresses = [each for link in listing for each in link.get("addr_info", ())]
    assert "link" in [each["scope"] for each in addresses]
    assert not [each for each in addresses if each.get("tentative")]
    assert node.call("DEL", "fresh")[0] == 0


def advertise(node: Fenced, bridge: str, prefix: str) -> None:
    """A router advertisement from the node itself, which the fence lets pass: what it offers must not be taken."""
    option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 1800, 1800, 0) + socket.inet_pton(socket.AF_INET6, prefix)
    text = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + option

    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            index = socket.if_nametoindex(bridge)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sock.sendto(text, ("ff02::1", 0, 0, index))

    node.host.inside(send)


def test_no_autoconfiguration(node: Fenced) -> None:
    box = node.boxes["flat1"]
    bridge = next(each["name"] for each in node.results["flat1"]["interfaces"] if each["name"].endswith("-b"))

    def taken() -> bool:
        return "2001:db8:bad:" in toolnode.ip("-n", box.name, "-6", "addr") + toolnode.ip("-n", box.name, "-6", "route")

    def accept(value: str) -> None:
        for name in ("accept_ra", "autoconf"):
            box.inside(functools.partial(Path("/proc/sys/net/ipv6/conf/eth0", name).write_text, value))

    advertise(node, bridge, "2001:db8:bad::")
    time.sleep(0.3)
    assert not taken()
    accept("1")  # the control: the same advertisement would have been taken
    try:
        advertise(node, bridge, "2001:db8:bad::")
        assert until(taken, 15)
    finally:
        accept("0")
        box.ip("-6 addr flush dev eth0 to 2001:db8:bad::/64", "-6 route flush 2001:db8:bad::/64")
        box.ip("-6 route flush proto ra")


# --- published ports ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not PORTMAP.exists(), reason=f"{PORTMAP} is not there (containernetworking-plugins)")
def test_a_published_port_is_for_outside_and_the_node(node: Fenced) -> None:
    """portmap publishes a member's ports, in both families, on a host that denies forwarding."""
    mapping = {"hostPort": 18080, "containerPort": 8080, "protocol": "tcp"}
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "snat": True}
    conf |= {"runtimeConfig": {"portMappings": [mapping]}, "prevResult": node.results["red1"]}
    call = {"CNI_CONTAINERID": "red1", "CNI_NETNS": node.boxes["red1"].path, "CNI_IFNAME": "eth0"}

    def portmap(verb: str) -> None:
        command = ["nsenter", f"--net={node.host.path}", str(PORTMAP)]
        env = {**os.environ, **call, "CNI_PATH": str(PORTMAP.parent), "CNI_COMMAND": verb}
        subprocess.run(command, env=env, input=json.dumps(conf).encode(), capture_output=True, timeout=30, check=True)

    def answered(src: str, address: str, wait: float = 0.4) -> bool:
        """By a server in the member: a refusal of the node's own would not do."""
        sock = knock(node.space_of(src), address, 18080, socket.SOCK_STREAM, None)
        with sock:
            state = until(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0 or connected(sock), wait)
            return state and connected(sock)

    def connected(sock: socket.socket) -> bool:
        try:
            sock.getpeername()
        except OSError as error:
            assert error.errno == errno.ENOTCONN
            return False
        return True

    def serve() -> socket.socket:
        return socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)

    with node.boxes["red1"].inside(serve):
        for host in (LAN4, LAN6):
            assert not answered("outside", host)
        portmap("ADD")
        try:
            for host in (LAN4, LAN6):
                assert answered("outside", host, 15)
                assert answered("node", host, 15)
                assert not [src for src in ("blue1", "blue2", "flat1") if answered(src, host)]
            for version in (4, 6):
                assert not answered_directly(node, node.address("red1", version))
        finally:
            portmap("DEL")
        for host in (LAN4, LAN6):
            assert not answered("outside", host)


def answered_directly(node: Fenced, address: str) -> bool:
    """Whether outside reaches the member itself, past the published port."""
    return node.reaches("outside", address, 8080, wait=0.4)
