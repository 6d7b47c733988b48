"""What the fence lets through and looks after on a real node: SCTP, path MTU discovery, other people's rulesets while
it runs, a single rule that is deleted, and an INPUT that closes the node address. The daemon and the plugin run
from source, in namespaces `zlt-tool*`."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cni.daemon.fence.model import chain_of
from tests.kernel import toolnode
from tests.kernel.fence import packets
from tests.kernel.test_fence_daemon import MENDED, Fenced, Make, forward, jumps, noded
from tests.kernel.toolnode import LAN4, LAN6, OUTSIDE4, OUTSIDE6, knock, reached, until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

FOREIGN = Path(__file__).parent / "fence" / "foreign"
RULESETS = ("docker", "ufw", "kube-proxy")
TOOLS = ("iptables", "ip6tables")
BOXES = {  # container id: service, isolation network
    "red1": ("web", "red"),
    "red2": ("db", "red"),
    "red3": ("web", "red"),
    "blue1": ("web", "blue"),
    "blue2": ("db", "blue"),
}
SCTP = 132
LEAK = 0.3  # seconds after the last expected packet in which a leak would have shown
# Of <linux/in.h> and <linux/in6.h>: Python has no names for them.
IP_MTU_DISCOVER, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU, PMTUDISC_DO = 10, 14, 23, 24, 2


@pytest.fixture(scope="module")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fenced, Make]]:
    """Two networks on two bridges; no rules of other programs."""
    with noded(tmp_path_factory.mktemp("p")) as (node, make):
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(node.add, name, make(), *how) for name, how in BOXES.items()]
            for job in jobs:
                job.result()
        yield node, make


@pytest.fixture
def node(fenced: tuple[Fenced, Make]) -> Fenced:
    return fenced[0]


def node_address(node: Fenced, version: int) -> str:
    paths = node.why("red1", "node")["paths"]
    return str(next(p["to"]["address"] for p in paths if (":" in p["to"]["address"]) == (version == 6)))


# --- SCTP -----------------------------------------------------------------------------------------------------------


def sctp_init(number: int) -> bytes:
    """An INIT to port `number`."""
    return packets.sctp(40000, number, 1, 0, b"")


class Raw:
    """A raw SCTP socket in a namespace: hears every SCTP packet that its stack is given."""

    def __init__(self, space: toolnode.Space, version: int) -> None:
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        self.sock = space.inside(lambda: socket.socket(family, socket.SOCK_RAW, SCTP))
        self.sock.setblocking(False)
        self.heard: set[int] = set()
        self._skip = 20 if version == 4 else 0  # IPv4 hands out its header too

    def hears(self, number: int) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.add(struct.unpack_from("!HH", self.sock.recv(2048), self._skip)[1])
        return number in self.heard


@pytest.mark.parametrize("version", [4, 6])
def test_sctp_stays_in_its_network(node: Fenced, version: int) -> None:
    """On one bridge and across; the node address and outside are reached, the other network is not."""
    outside = OUTSIDE6 if version == 6 else OUTSIDE4
    may = {"red2": node.address("red2", version), "red3": node.address("red3", version)}
    may |= {"node": node_address(node, version), "outside": outside}
    may_not = {name: node.address(name, version) for name in ("blue1", "blue2")}
    ears = {name: Raw(node.space_of(name), version) for name in ("red1", *may, *may_not)}
    try:
        numbers = {name: 7000 + i for i, name in enumerate((*may_not, *may))}
        for name, address in (may_not | may).items():
            ears["red1"].sock.sendto(sctp_init(numbers[name]), (address, 0))
        for name in may:
            assert until(partial(ears[name].hears, numbers[name]), 15), name
        assert not until(lambda: any(ears[name].hears(numbers[name]) for name in may_not), LEAK)
        # The control: the same ears hear their own network's.
        for name, peer in (("blue1", "blue2"), ("blue2", "blue1")):
            ears[name].sock.sendto(sctp_init(7100), (node.address(peer, version), 0))
            assert until(partial(ears[peer].hears, 7100), 15), peer
    finally:
        for ear in ears.values():
            ear.sock.close()


# --- path MTU discovery ---------------------------------------------------------------------------------------------

NARROW = 1300
FAR = {4: "198.51.100.9", 6: "2001:db8:3::9"}


@pytest.fixture(scope="module")
def far(fenced: tuple[Fenced, Make]) -> toolnode.Space:
    """A host behind the one outside; the way to it is narrow, and neither end of a flow can see that it is."""
    node, make = fenced
    space, router = make(), node.outside
    router.ip(f"link add narrow type veth peer name eth0 netns {space.name}", "link set narrow addrgenmode none")
    space.ip("link set eth0 addrgenmode none", "addr add fe80::9/64 dev eth0 nodad")
    router.ip("addr add fe80::1/64 dev narrow nodad")
    router.ip(f"link set narrow up mtu {NARROW}", "addr add 198.51.100.1/24 dev narrow")
    router.ip("addr add 2001:db8:3::1/64 dev narrow nodad")
    space.ip("link set lo up", "link set eth0 up", "addr add 198.51.100.9/24 dev eth0")
    space.ip("addr add 2001:db8:3::9/64 dev eth0 nodad")
    space.ip("route add default via 198.51.100.1", "-6 route add default via 2001:db8:3::1")
    for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        router.inside(partial(Path("/proc/sys/net", key).write_text, "1"))
    return space


def path_mtu(sock: socket.socket) -> int:
    """What a connected socket believes its path takes; bytes."""
    six = sock.family == socket.AF_INET6
    return sock.getsockopt(socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP, IPV6_MTU if six else IP_MTU)


@pytest.mark.parametrize("version", [4, 6])
def test_udp_learns_a_narrow_path(node: Fenced, far: toolnode.Space, version: int) -> None:
    """The first datagram that may not be fragmented comes back as an ICMP error; the next is too long, a shorter one
    arrives."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    server, sock = (
        space.inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) for space in (far, node.boxes["red1"])
    )
    with server, sock:
        server.bind((FAR[version], 0))
        server.settimeout(30)
        level, option = (
            (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) if version == 6 else (socket.IPPROTO_IP, IP_MTU_DISCOVER)
        )
        sock.setsockopt(level, option, PMTUDISC_DO)
        sock.connect(server.getsockname()[:2])
        head = 48 if version == 6 else 28
        assert path_mtu(sock) > 1400
        sock.send(bytes(1400 - head))
        assert until(lambda: path_mtu(sock) == NARROW, 15)
        with pytest.raises(OSError) as refused:
            sock.send(bytes(1400 - head))
        assert refused.value.errno == errno.EMSGSIZE
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        sock.send(bytes(NARROW - head))
        assert len(server.recv(2048)) == NARROW - head


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_gets_through_a_narrow_path(node: Fenced, far: toolnode.Space, version: int) -> None:
    """Another member, who has not learnt the path: both ends agree on segments that do not fit."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    size, got = 1 << 20, []
    with far.inside(lambda: socket.create_server((FAR[version], 0), family=family)) as server:
        server.settimeout(60)

        def drain() -> None:
            with contextlib.suppress(OSError):
                taken, _ = server.accept()
                taken.settimeout(60)
                with taken:
                    while data := taken.recv(65536):
                        got.append(len(data))

        reader = threading.Thread(target=drain)
        reader.start()
        sock = node.boxes["red2"].inside(lambda: socket.socket(family))
        with sock:
            sock.settimeout(60)
            sock.connect(server.getsockname()[:2])
            assert path_mtu(sock) > NARROW
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > NARROW
            sock.sendall(bytes(size))
            sock.shutdown(socket.SHUT_WR)
            reader.join(60)
            assert path_mtu(sock) == NARROW
    assert sum(got) == size


# --- other people's rulesets ----------------------------------------------------------------------------------------


def six_of(text: str) -> str:
    """A ruleset for ip6tables: without the lines that have an IPv4 address."""
    lines = text.replace("-p icmp -m icmp --icmp-type 8", "-p ipv6-icmp").splitlines()
    return "\n".join(line for line in lines if not any("." in w and w[0].isdigit() for w in line.split())) + "\n"


def load(space: toolnode.Space, name: str) -> None:
    text = (FOREIGN / f"{name}.iptables").read_text()
    for tool, rules in zip(TOOLS, (text, six_of(text)), strict=True):
        space.inside(partial(subprocess.run, [f"{tool}-restore"], input=rules, text=True, check=True))


def flush(node: Fenced, policy: bool = False) -> None:
    """As their owner does it: everything in filter and nat, ours with it; policies stay unless asked.

    One transaction a table: the daemon puts its jump back within some 50 ms, while FORWARD denies.
    """
    for tool in TOOLS:
        policies = {line.split()[1]: line.split()[2] for line in forward_policies(node, tool)}
        chains = "".join(f":{name} {'ACCEPT' if policy else verdict} [0:0]\n" for name, verdict in policies.items())
        text = f"*filter\n{chains}COMMIT\n*nat\nCOMMIT\n"
        node.host.inside(
            functools.partial(subprocess.run, [f"{tool}-restore"], input=text, text=True, check=True)  # type: ignore[arg-type]
        )


def is_clear(node: Fenced) -> bool:
    """Flush with policies that accept; whether no jump of ours is left.

    The daemon may have put one back while the other family still denied.
    """
    flush(node, policy=True)
    return jumps(node) == [0, 0]


def forward_policies(node: Fenced, tool: str) -> list[str]:
    """The policies of the filter table, as `-P CHAIN VERDICT`."""
    listed = node.host.inside(functools.partial(subprocess.check_output, [tool, "-S"], text=True))  # type: ignore[arg-type]
    return [line for line in str(listed).splitlines() if line.startswith("-P")]


def seen(
    node: Fenced, expected: set[tuple[str, str]], pairs: set[tuple[str, str]], wait: float
) -> set[tuple[str, str]]:
    """Which of the pairs (source, address) get there: after `expected` have, or `wait`, and a while for a leak."""
    with contextlib.ExitStack() as stack:
        socks = {
            pair: stack.enter_context(knock(node.space_of(pair[0]), pair[1], 18099, socket.SOCK_STREAM, None))
            for pair in pairs
        }
        found: set[tuple[str, str]] = set()

        def look() -> bool:
            found.update(pair for pair in socks.keys() - found if reached(socks[pair]))
            return expected <= found

        until(look, wait)
        until(lambda: look() and found != expected, LEAK)
        return found


def fence_holds(node: Fenced, open_: bool = True) -> None:
    """Nothing to another network nor in from outside; one's own on both bridges and egress, unless `open_` is false."""
    both = (4, 6)
    may = {("red1", node.address(name, version)) for name in ("red2", "red3") for version in both}
    may |= {("red1", address) for address in (OUTSIDE4, OUTSIDE6)}
    may_not = {("red1", node.address(name, version)) for name in ("blue1", "blue2") for version in both}
    may_not |= {("outside", node.address("red1", version)) for version in both}
    may_not |= {("red1", address) for address in (LAN4, LAN6)}
    found = seen(node, may if open_ else set(), may | may_not, 15 if open_ else 0)
    assert not found & may_not
    if open_:
        assert found == may


def fence_recovers(node: Fenced, jump: list[int]) -> None:
    """Isolation at once, whatever became of our jump; the rest after the keeper's look."""
    fence_holds(node, open_=False)
    node.wake()
    assert until(lambda: jumps(node) == jump, MENDED)
    fence_holds(node)


@pytest.mark.parametrize("name", RULESETS)
def test_other_rulesets(node: Fenced, name: str) -> None:
    """Loaded after the daemon, flushed and loaded again while it runs, and there before it and its tables are."""
    denies = ":FORWARD DROP" in (FOREIGN / f"{name}.iptables").read_text()
    jump = [1, 1] if denies else [0, 0]
    assert until(lambda: is_clear(node), MENDED)
    try:
        load(node.host, name)
        fence_recovers(node, jump)
        flush(node)
        fence_recovers(node, jump)
        load(node.host, name)
        fence_recovers(node, jump)
        assert node.process is not None
        node.process.terminate()
        node.process.wait(60)
        flush(node)
        for family in ("inet", "bridge"):
            node.host.nft(f"delete table {family} zlayer_cni")
        load(node.host, name)
        node.start()
        assert jumps(node) == jump
        fence_holds(node)
    finally:
        flush(node, policy=True)
        node.wake()
    fence_holds(node)


# --- one rule -------------------------------------------------------------------------------------------------------


def rules(node: Fenced, family: str, chain: str) -> list[tuple[str, int]]:
    """(name, handle) of a chain's rules in order."""
    command = ["nft", "-j", "list", "chain", family, "zlayer_cni", chain]
    listed = json.loads(node.host.inside(lambda: subprocess.check_output(command)))["nftables"]
    return [(item["rule"]["comment"], item["rule"]["handle"]) for item in listed if "rule" in item]


@pytest.mark.parametrize(
    ("family", "chain"),
    [("inet", "to_host"), ("inet", "to_overlay4"), ("bridge", chain_of("red")), ("inet", chain_of("red"))],
)
def test_a_rule_that_somebody_deletes(node: Fenced, family: str, chain: str) -> None:
    """The chain's last: the daemon hears of it, brings it back and says so; STATUS stays or becomes 0."""
    names = [name for name, _ in rules(node, family, chain)]
    assert until(lambda: node.status() == 0, MENDED)
    handle = rules(node, family, chain)[-1][1]
    node.host.nft(f"delete rule {family} zlayer_cni {chain} handle {handle}")
    assert until(lambda: [name for name, _ in rules(node, family, chain)] == names, MENDED)
    assert until(lambda: "fence-repaired" in [each["code"] for each in node.ask("status")["problem_details"]], MENDED)
    assert node.status() == 0


# --- INPUT ----------------------------------------------------------------------------------------------------------


def doctor_on_input(node: Fenced, directory: Path) -> dict[str, Any]:
    """The doctor's one finding about INPUT."""
    words = ["doctor", "--json", "--data-dir", str(node.dir / "data"), "--conf-dir", str(directory)]
    _, out = node.tool(*words, "--bin-dir", str(directory))
    (found,) = [each for each in json.loads(out)["findings"] if each["check"] == "input"]
    return dict(found)


def test_doctor_says_that_input_closes_the_node_address(node: Fenced, tmp_path: Path) -> None:
    """And it does close it: a container reaches the node address only without that policy."""
    pairs = {("red1", node_address(node, version)) for version in (4, 6)}

    def policy(what: str) -> None:
        for tool in TOOLS:
            forward(node, tool, "-P", "INPUT", what)

    assert doctor_on_input(node, tmp_path)["level"] == "ok"  # the control
    assert seen(node, pairs, pairs, 15) == pairs
    try:
        policy("DROP")
        found = doctor_on_input(node, tmp_path)
        assert found["level"] == "warn"
        assert "INPUT of iptables and ip6tables denies" in found["text"]
        assert "node address" in found["text"]
        assert "node address" in found["fix"]
        assert seen(node, set(), pairs, 0) == set()
    finally:
        policy("ACCEPT")
    assert seen(node, pairs, pairs, 15) == pairs
