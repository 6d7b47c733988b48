"""IPVS hands packets on from the hook output: a container reaches a real server by IPVS exactly if it may reach it
without.

It needs a kernel with IPVS (`scripts/test vm` boots one) and ipvsadm.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.mesh.fleet import SLOW, Container, Node, inside, run, wait_for

VIP, VIP6 = "198.51.100.1", "2001:db8:51::1"  # addresses of the host
OUTSIDE = "198.51.100.254"
RANGE6 = "fd00:200::/48"
PORT = 7000
QUIET = 0.4  # seconds without a datagram where none may come

_HAVE = bool(shutil.which("modprobe")) and not subprocess.run(["modprobe", "-q", "ip_vs_rr"], check=False).returncode
pytestmark = pytest.mark.skipif(
    not (_HAVE and shutil.which("ipvsadm")), reason="this kernel has no IPVS, or there is no ipvsadm (scripts/test vm)"
)


class Echo:
    """A socket that answers each datagram with the same, and remembers who sent it. A context manager."""

    def __init__(self, path: str, address: str, port: int = PORT) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.heard: list[bytes] = []
        self._socket = inside(path, lambda: socket.socket(family, socket.SOCK_DGRAM))
        self._socket.bind((address, port))
        self._socket.settimeout(0.05)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                data, sender = self._socket.recvfrom(2048)
                self.heard.append(data)
                self._socket.sendto(data, sender)

    def __enter__(self) -> Echo:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._socket.close()


def answered(path: str, address: str, port: int, words: bytes, seconds: float) -> bool:
    """Whether a datagram from the namespace at `path` is answered."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(path, lambda: socket.socket(family, socket.SOCK_DGRAM)) as mouth:
        mouth.settimeout(seconds)
        mouth.connect((address, port))
        try:
            mouth.send(words)
            return mouth.recv(2048) == words
        except OSError:
            return False


def reaches(path: str, address: str, port: int, words: bytes) -> bool:
    """That it is answered, now or soon: the first packet may wait for a neighbour."""
    return any(answered(path, address, port, words, QUIET * SLOW) for _ in range(10))


def balance(node: Node, virtual: str, port: int, real: str, how: str = "-m", real_port: int = PORT) -> None:
    """A service of IPVS with one real server."""
    where, there = ((f"[{a}]" if ":" in a else a) for a in (virtual, real))
    for words in (
        ("-A", "-u", f"{where}:{port}", "-s", "rr"),
        ("-a", "-u", f"{where}:{port}", "-r", f"{there}:{real_port}", how),
    ):
        run("ip", "netns", "exec", node.name, "ipvsadm", *words)


@pytest.fixture
def boxes(frozen: Callable[..., Node]) -> Iterator[tuple[Node, dict[str, Container]]]:
    """A node with members of two networks and one of none, each on a bridge of its own."""
    node = frozen(1, start=False, cluster_cidr6=RANGE6)
    run("ip", "-n", node.name, "address", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
    run("ip", "netns", "exec", node.name, "sysctl", "-qw", "net.ipv4.vs.conntrack=1")
    node.start()
    found = {
        "server": node.container("a", isolationNetwork="red"),
        "red": node.container("b", isolationNetwork="red"),
        "blue": node.container("c", isolationNetwork="blue"),
        "flat": node.container("d"),
    }
    yield node, found
    run("ip", "netns", "exec", node.name, "ipvsadm", "-C")


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_a_real_server_is_reached_by_whom_it_may_be(boxes: tuple[Node, dict[str, Container]], six: bool) -> None:
    node, box = boxes
    vip, real = (VIP6, box["server"].address6) if six else (VIP, box["server"].address)
    balance(node, vip, PORT, real)
    with Echo(box["server"].netns, real) as server:
        assert reaches(box["red"].netns, vip, PORT, b"red")
        assert reaches(node.path, vip, PORT, b"node")
        for name in ("flat", "blue"):
            assert not answered(box[name].netns, vip, PORT, name.encode(), QUIET)
            assert not node.tool("why", box[name].name, vip, f"{PORT}/udp")["allowed"]
        assert node.tool("why", box["red"].name, vip, f"{PORT}/udp")["allowed"]
        assert set(server.heard) == {b"red", b"node"}
    listing = run("ip", "netns", "exec", node.name, "nft", "list", "table", "inet", "zlayer_cni")
    assert f"goto handed_on{6 if six else 4}" in listing


def test_what_ipvs_does_not_take_is_for_the_host(boxes: tuple[Node, dict[str, Container]]) -> None:
    """Another port of the virtual address, and a real server that is the host: closed to a member, open to the rest."""
    node, box = boxes
    balance(node, VIP, PORT, VIP, real_port=PORT + 1)
    with Echo(node.path, VIP, PORT + 1) as host:
        for port in (PORT, PORT + 1):
            assert not answered(box["red"].netns, VIP, port, b"red", QUIET)
            assert not node.tool("why", box["red"].name, VIP, f"{port}/udp")["allowed"]
            assert reaches(box["flat"].netns, VIP, port, b"flat")
            assert node.tool("why", box["flat"].name, VIP, f"{port}/udp")["allowed"]
        assert set(host.heard) == {b"flat"}


def test_a_member_uses_a_service_that_leads_outside(boxes: tuple[Node, dict[str, Container]]) -> None:
    node, box = boxes
    balance(node, VIP, PORT, OUTSIDE)
    with Echo(f"/run/netns/{node.fleet.underlay}", OUTSIDE) as server:
        assert reaches(box["red"].netns, VIP, PORT, b"red")
        wait_for(lambda: b"red" in server.heard, "the datagram")
    assert node.tool("why", box["red"].name, VIP, f"{PORT}/udp")["allowed"]


@pytest.mark.parametrize("how", ["-g", "-i"], ids=["direct", "tunnel"])
def test_no_other_way_of_ipvs_leads_to_a_member(boxes: tuple[Node, dict[str, Container]], how: str) -> None:
    """Direct routing and tunnels keep the source or the destination from being seen: closed to every container."""
    node, box = boxes
    server = box["server"]
    balance(node, VIP, PORT, server.address, how)
    ear = inside(server.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    with ear:
        ear.settimeout(QUIET)
        for name in ("flat", "blue", "red"):
            assert not answered(box[name].netns, VIP, PORT, b"by ipvs", QUIET)
            assert not node.tool("why", box[name].name, VIP, f"{PORT}/udp")["allowed"]
        assert server.pings(box["red"].address)
        frames = []
        with contextlib.suppress(TimeoutError):
            while True:
                frames.append(ear.recv(2048))
    assert frames
    assert not any(b"by ipvs" in frame for frame in frames)
