"""What another program does to the fence's tables, or to forwarding, is undone before it matters."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mesh.fleet import Container, Node, inside, run, wait_for

MADE = Callable[..., Node]
QUICK = 0.1  # seconds within which what netlink announces is put right
LEGACY = 2.0  # and what nothing announces
PORTS = 500
TRIES = 4  # the best of so many counts where a time is measured: the machine has other work as well


def nft(node: Node, *words: str) -> str:
    return run("ip", "netns", "exec", node.name, "nft", *words)


def rules(node: Node) -> list[str]:
    """The fence's tables without counters: chains as they are, sets without an order."""
    found = []
    for family in ("bridge", "inet"):
        text = nft(node, "-s", "list", "table", family, "zlayer_cni")
        head, *blocks = re.split(r"\n\t(?=chain |set |map )", text.rstrip().removesuffix("}"))
        found.append(head)
        for block in blocks:
            said = block if block.startswith("chain ") else " ".join(sorted(re.split(r"[\s,]+", block)))
            found.append(f"{family} {said.rstrip()}")
    return sorted(found)


def daemon_cpu(node: Node) -> float:
    """Seconds of CPU that the daemon has used."""
    fields = Path(f"/proc/{pid_of(node)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12]) + int(fields[13]) + int(fields[14])) / 100


def pid_of(node: Node) -> int:
    return int((node.directory / "run/overlayd.pid").read_text())


class Stream:
    """Datagrams from one container to another, one a millisecond, and when each arrived, by the own clock."""

    def __init__(self, source: Container, target: Container) -> None:
        self._ear, self._mouth = target.socket(socket.SOCK_DGRAM), source.socket(socket.SOCK_DGRAM)
        self._ear.bind((target.address, 0))
        self._ear.settimeout(0.2)
        self._to = self._ear.getsockname()
        self.heard: list[float] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._listen, self._talk)]
        for thread in self._threads:
            thread.start()

    def _talk(self) -> None:
        while not self._stop.wait(0.001):
            with contextlib.suppress(OSError):
                self._mouth.sendto(b"x", self._to)

    def _listen(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                self._ear.recv(16)
                self.heard.append(time.monotonic())

    def since(self, moment: float) -> list[float]:
        return [at for at in self.heard if at >= moment]

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2)
        self._ear.close()
        self._mouth.close()


@contextlib.contextmanager
def stream(source: Container, target: Container) -> Iterator[Stream]:
    made = Stream(source, target)
    try:
        yield made
    finally:
        made.close()


def gap_after(flow: Stream, moment: float, seconds: float) -> float:
    """The longest silence of a stream from a moment on, watched until it has spoken again for a while."""
    wait_for(lambda: len(flow.since(moment + 0.05)) > 100, "the stream to go on", seconds)
    times = [moment, *flow.since(moment)]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


def many_ports(node: Node, container: Container, count: int) -> None:
    """So many attachments in one container, under other names of the interface."""

    def some(part: range) -> None:
        for number in part:
            conf = {
                "cniVersion": "1.1.0",
                "name": "zlt-mesh",
                "type": "zlayer-cni",
                "runDir": str(node.directory / "run"),
                "dataDir": str(node.directory / "data"),
                "autostart": False,
                "service": f"many{number % 4}",
                "isolationNetwork": f"many{number % 8}",
            }
            env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": container.name, "CNI_NETNS": container.netns}
            env |= {"CNI_IFNAME": f"x{number}", "CNI_PATH": "/opt/cni/bin", "PATH": "/usr/sbin:/usr/bin"}
            done = subprocess.run(
                ["ip", "netns", "exec", node.name, *node.program],
                input=json.dumps(conf),
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout

    crew = [threading.Thread(target=some, args=(range(n, count, 4),)) for n in range(4)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    assert len(node.tool("attachments")) >= count


@pytest.fixture
def members(frozen: MADE) -> tuple[Node, Container, Container, Container]:
    """A node with two members of one network on two bridges, and one of another."""
    node = frozen(1)
    made = (node.container("web", isolationNetwork="red"), node.container("db", isolationNetwork="red"))
    other = node.container("web", isolationNetwork="blue")
    wait_for(lambda: made[0].pings(made[1].address, wait=1), "the way")
    return node, *made, other


@pytest.mark.long
def test_a_flush_is_undone_within_100_ms_with_500_ports(members: tuple[Node, Container, Container, Container]) -> None:
    """The other network hears something for less than that, a member's stream is silent for less, and no flow ends."""
    node, red, fellow, blue = members
    many_ports(node, node.container("many", isolationNetwork="many"), PORTS)
    ear = fellow.socket(socket.SOCK_STREAM)
    ear.bind((fellow.address, 0))
    ear.listen()
    mouth = red.socket(socket.SOCK_STREAM)
    mouth.connect(ear.getsockname())
    spoken, _ = ear.accept()
    before = rules(node)
    opened, silent = [], []
    mac = json.loads(blue.run("ip", "-j", "link", "show", "eth0"))[0]["address"]
    red.run(
        "ip", "neigh", "replace", blue.address, "lladdr", mac, "dev", "eth0"
    )  # so that nothing has to be asked first
    with stream(red, blue) as across, stream(red, fellow) as along:
        wait_for(lambda: len(along.heard) > 50, "the stream")
        for _ in range(TRIES):
            assert across.since(time.monotonic() - 0.5) == []
            began = time.monotonic()
            nft(node, "flush", "ruleset")
            silent.append(gap_after(along, began, 20))
            opened.append(max((at - began for at in across.since(began)), default=0.0))
            mouth.sendall(b"still here")
            spoken.settimeout(10)
            assert spoken.recv(64) == b"still here"
            time.sleep(0.6)
    assert rules(node) == before
    assert min(opened) < QUICK, (opened, silent)
    assert min(silent) < 3 * QUICK, (opened, silent)
    for each in (mouth, spoken, ear):
        each.close()
    assert "fence-repaired" in {each["code"] for each in node.tool("status")["problem_details"]}
    assert "the isolation fence" in node.log.read_text()


DAMAGES = {
    "dormant": "add table inet zlayer_cni { flags dormant; }",
    "dormant on bridges": "add table bridge zlayer_cni { flags dormant; }",
    "one table gone": "delete table bridge zlayer_cni",
    "a policy": "add chain inet zlayer_cni forward { policy drop; }",
    "a chain emptied": "flush chain inet zlayer_cni forward",
    "a rule in front": "insert rule inet zlayer_cni forward accept",
    "a rule in front, under a name of ours": 'insert rule bridge zlayer_cni forward accept comment "from a port"',
    "the other order": "",
    "a body": "",
    "a body of a network": "",
    "another priority": "",
    "a chain of others in our table": "add chain inet zlayer_cni own; add rule inet zlayer_cni own drop",
    "a set emptied": "flush set bridge zlayer_cni macs",
    "a map emptied": "flush map inet zlayer_cni net4",
    "a member more": "",
}


def damage(node: Node, kind: str, network_of: Callable[[str], str], address: str) -> None:
    """Do it, as a text that nft runs as one transaction."""
    text = DAMAGES[kind]
    if kind == "another priority":
        listed = nft(node, "-s", "list", "chain", "inet", "zlayer_cni", "forward")
        text = "delete chain inet zlayer_cni forward\n" + listed.replace("priority filter - 10", "priority 300")
        assert "priority 300" in text
    elif kind == "a body":
        number = handle(node, "inet", "to_host", "host address")
        text = f'replace rule inet zlayer_cni to_host handle {number} accept comment "host address"'
    elif kind == "a body of a network":
        chain = network_of("red")
        number = handle(node, "inet", chain, "between networks")
        text = f'replace rule inet zlayer_cni {chain} handle {number} counter accept comment "between networks"'
    elif kind == "the other order":
        number = handle(node, "inet", "to_host", "host address")
        text = f"delete rule inet zlayer_cni to_host handle {number}\n"
        text += 'insert rule inet zlayer_cni to_host counter drop comment "host address"'
    elif kind == "a member more":
        text = f"add element inet zlayer_cni {network_of('red')}_m4 {{ {address} }}"
    nft(node, text)


def handle(node: Node, family: str, chain: str, name: str) -> str:
    listed = nft(node, "-a", "list", "chain", family, "zlayer_cni", chain)
    return next(line.rpartition(" ")[2] for line in listed.splitlines() if f'comment "{name}"' in line)


def chain_named(name: str) -> str:
    import hashlib

    return "net_" + hashlib.sha256(name.encode()).hexdigest()[:16]


@pytest.mark.parametrize("running", [True, False], ids=["heard", "found at a start"])
def test_whatever_differs_is_put_back(members: tuple[Node, Container, Container, Container], running: bool) -> None:
    """Every kind of damage in turn. Heard of by the daemon at once, found by one that begins later as well."""
    node, _, _, blue = members
    before = rules(node)
    slow = []
    for kind in DAMAGES:
        if not running:
            node.end()
        damage(node, kind, chain_named, blue.address)
        if not running:
            assert rules_or_none(node) != before, kind
            node.start()
        began = time.monotonic()
        try:
            wait_for(lambda: rules_or_none(node) == before, kind, 3)
        except AssertionError:
            slow.append(kind)
            wait_for(lambda: rules_or_none(node) == before, kind, 30)
        assert running or time.monotonic() - began < 30
    assert slow == []
    assert node.call("STATUS", blue).returncode == 0


def serves(node: Node) -> bool:
    """Whether the fence is in force, as a runtime is told by STATUS."""
    try:
        return node.call("STATUS", node.containers[0]).returncode == 0
    except RuntimeError:
        return False


def rules_or_none(node: Node) -> list[str] | None:
    try:
        return rules(node)
    except RuntimeError:
        return None


@pytest.mark.long
def test_a_repair_wakes_no_other_and_a_loop_costs_little(
    members: tuple[Node, Container, Container, Container],
) -> None:
    node, red, fellow, _ = members
    nft(node, "flush", "ruleset")
    wait_for(lambda: rules_or_none(node), "the tables")
    wait_for(lambda: red.pings(fellow.address, wait=1), "the way")
    time.sleep(0.5)
    generation = monitored(node, 1.5)
    assert generation == 0, "the daemon answers its own changes"
    log = len(node.log.read_text())
    before, began = daemon_cpu(node), time.monotonic()
    while time.monotonic() - began < 6:
        nft(node, "flush", "ruleset")
    used = daemon_cpu(node) - before
    assert used < 3.5, "of the 6 seconds: a second and a tenth of the rest for each of two threads, and a keeper's look"
    wait_for(lambda: serves(node), "the fence", 30)
    assert node.log.read_text()[log:].count("\n") < 40
    assert "fence-repaired" in {each["code"] for each in node.tool("status")["problem_details"]}
    assert red.pings(fellow.address)


def monitored(node: Node, seconds: float) -> int:
    """How many transactions of nftables there were in so many seconds."""

    def ear() -> socket.socket:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        made.bind((0, 0))
        made.setsockopt(270, 1, 7)
        return made

    sock, count = inside(node.path, ear), 0
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        sock.settimeout(left)
        with contextlib.suppress(TimeoutError):
            count += (int.from_bytes(sock.recv(1 << 17)[4:6], "little") & 0xFF) == 15
    sock.close()
    return count


def iptables(node: Node, *words: str) -> None:
    run("ip", "netns", "exec", node.name, *words)


@pytest.mark.parametrize(
    ("damage", "again", "limit"),
    [
        (["iptables -P FORWARD DROP"], ["iptables -P FORWARD ACCEPT"], 2 * QUICK),
        (["iptables -P FORWARD DROP", "wait", "iptables -D FORWARD 1"], [], 2 * QUICK),
        (["iptables-legacy -P FORWARD DROP"], ["iptables-legacy -P FORWARD ACCEPT"], LEGACY),
        (["iptables-legacy -P FORWARD DROP", "wait", "iptables-legacy -D FORWARD 1"], [], LEGACY),
        (["sysctl -qw net.ipv4.ip_forward=0"], [], QUICK),
        (["sysctl -qw net.ipv4.conf.{bridge}.forwarding=0"], [], QUICK),
    ],
    ids=["policy", "jump", "legacy policy", "legacy jump", "forwarding", "a bridge's forwarding"],
)
def test_forwarding_comes_back(
    members: tuple[Node, Container, Container, Container], damage: list[str], again: list[str], limit: float
) -> None:
    """Two members on two bridges, so that the host routes between them; what stops that is undone."""
    node, red, fellow, _ = members
    bridge = node.ip("route", "get", red.address)[0]["dev"]
    silent = []
    with stream(red, fellow) as along:
        wait_for(lambda: len(along.heard) > 50, "the stream")
        for number in range(TRIES):
            for step in damage if number == 0 else damage[-1:]:
                if step == "wait":
                    gap_after(along, time.monotonic(), 20)
                    continue
                began = time.monotonic()
                iptables(node, *step.format(bridge=bridge).split())
            silent.append(gap_after(along, began, 20))
            for step in again:
                iptables(node, *step.split())
                if "-P" in step:
                    iptables(node, step.split()[0], "-D", "FORWARD", "1")
                gap_after(along, time.monotonic(), 20)
    assert min(silent) < limit, silent


@pytest.mark.parametrize(("tool", "limit"), [("iptables", 2 * QUICK), ("iptables-legacy", LEGACY)])
def test_a_chain_that_forward_leads_to_is_followed(
    members: tuple[Node, Container, Container, Container], tool: str, limit: float
) -> None:
    """A rule there that drops every packet has the jump before it at once; without it, the jump is the last again."""
    node, red, fellow, _ = members

    def jump_is_last() -> bool:
        rules = run("ip", "netns", "exec", node.name, tool, "-S", "FORWARD").splitlines()
        return rules[-1].endswith("-j ZLAYER-CNI")

    for words in ("-N SITE", "-A SITE -j RETURN", "-A FORWARD -j SITE", "-P FORWARD DROP"):
        iptables(node, tool, *words.split())
    silent = []
    try:
        with stream(red, fellow) as along:
            wait_for(lambda: len(along.heard) > 50, "the stream")
            for _ in range(TRIES):
                wait_for(jump_is_last, "the jump at the end", limit + 1)
                began = time.monotonic()
                iptables(node, tool, *["-R", "SITE", "1", "-j", "DROP"])
                silent.append(gap_after(along, began, 20))
                assert not jump_is_last()
                iptables(node, tool, *["-R", "SITE", "1", "-j", "RETURN"])
    finally:
        for words in ("-P FORWARD ACCEPT", "-D FORWARD -j SITE", "-F SITE", "-X SITE"):
            iptables(node, tool, *words.split())
    assert min(silent) < limit, silent
