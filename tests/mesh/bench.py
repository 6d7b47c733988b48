"""Figures of the mesh; scripts/bench-mesh runs it."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from cni.daemon import public_keys
from cni.daemon import settings as settings_module
from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.store import Put
from cni.daemon.cluster.store_records import StoreKeys
from cni.daemon.model import keys
from cni.daemon.model.cluster_records import NodeDocument, Slot
from cni.daemon.model.name_records import NamedMember, ServiceRecord
from cni.host import wg_engine

from .etcds import Clustered
from .fleet import Fleet, Node, fleet, inside, link, run, wait_for

ROUNDS = 3


def say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


# --- traffic --------------------------------------------------------------------------------------------------------


def throughput(sender: str, receiver: str, address: str, seconds: float) -> float:
    """Mbit/s of one TCP stream between two namespaces."""
    ear = inside(receiver, socket.socket)
    ear.bind((address, 0))
    ear.listen()
    mouth = inside(sender, socket.socket)
    mouth.connect(ear.getsockname())
    there, _ = ear.accept()
    end, data, heard = time.monotonic() + seconds, bytes(1 << 17), 0

    def speak() -> None:
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                mouth.sendall(data)
        mouth.close()

    thread = threading.Thread(target=speak)
    thread.start()
    began, buffer = time.monotonic(), bytearray(1 << 18)
    while size := there.recv_into(buffer):
        heard += size
    took = time.monotonic() - began
    thread.join()
    there.close()
    ear.close()
    return heard * 8 / took / 1e6


def latency(sender: str, receiver: str, address: str, count: int = 400) -> float:
    """Median round trip of a datagram of 64 bytes, in microseconds."""
    ear = inside(receiver, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    mouth = inside(sender, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    ear.bind((address, 0))
    mouth.connect(ear.getsockname())
    ear.settimeout(1)
    mouth.settimeout(1)

    def echo() -> None:
        with contextlib.suppress(OSError):
            while True:
                data, who = ear.recvfrom(128)
                ear.sendto(data, who)

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    found = []
    for _ in range(count):
        began = time.perf_counter()
        mouth.send(bytes(64))
        mouth.recv(128)
        found.append((time.perf_counter() - began) * 1e6)
    mouth.close()
    ear.close()
    thread.join(2)
    return statistics.median(found)


def by_hand(made: Fleet, one: Node, two: Node) -> tuple[str, str, str]:
    """A tunnel between two further namespaces on the same underlay, by `wg` and `ip` alone: (here, there, address)."""
    program = wg_engine.find()
    ends = []
    for number in (8, 9):
        node = made.nodes[number] = Node(made, number)
        run("ip", "netns", "add", node.name)
        run("ip", "-n", node.name, "link", "set", "lo", "up")
        run(
            "ip",
            "-n",
            node.name,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            f"n{number}",
            "netns",
            made.underlay,
        )
        run("ip", "-n", node.name, "address", "add", f"{node.underlay}/24", "dev", "eth0")
        run("ip", "-n", node.name, "link", "set", "eth0", "up")
        run("ip", "-n", made.underlay, "link", "set", f"n{number}", "master", "under0", "up")
        words = ["ip", "netns", "exec", node.name, program, *wg_engine.PROGRAMS[Path(program).name], node.device]
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda node=node: Path(f"/var/run/wireguard/{node.device}.sock").exists(), "the engine")  # type: ignore[misc]
        private = keys.generate()
        (made.directory / f"hand{number}").write_text(private)
        node.wg("set", node.device, "private-key", str(made.directory / f"hand{number}"), "listen-port", "51420")
        run("ip", "-n", node.name, "address", "add", f"10.250.0.{number}/24", "dev", node.device)
        run("ip", "-n", node.name, "link", "set", node.device, "mtu", "1420", "up")
        ends.append((node, public_keys.public_of(private)))
    for (node, _), (other, key) in (ends, reversed(ends)):
        peer = ("peer", key, "endpoint", f"{other.underlay}:51420", "allowed-ips", f"10.250.0.{other.number}/32")
        node.wg("set", node.device, *peer)
    for node, _ in ends:
        behind(made, node, 17 - node.number)
    return ends[0][0].path, ends[1][0].path, "10.250.0.9"


def behind(made: Fleet, node: Node, other: int) -> None:
    """A namespace behind a bridge of a hand-made end, as a container is, with nothing but routes between."""
    inner = made.nodes[node.number + 10] = Node(made, node.number + 10)
    run("ip", "netns", "add", inner.name)
    run("ip", "-n", node.name, "link", "add", "br0", "type", "bridge")
    run("ip", "-n", node.name, "link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", inner.name)
    for name, address, mtu in (("br0", f"10.251.{node.number}.1/26", 1420), ("veth0", "", 1420)):
        run("ip", "-n", node.name, "link", "set", name, "mtu", str(mtu), "up")
        if address:
            run("ip", "-n", node.name, "address", "add", address, "dev", name)
    run("ip", "-n", node.name, "link", "set", "veth0", "master", "br0")
    run("ip", "-n", inner.name, "address", "add", f"10.251.{node.number}.2/26", "dev", "eth0")
    run("ip", "-n", inner.name, "link", "set", "eth0", "mtu", "1420", "up")
    run("ip", "-n", inner.name, "route", "add", "default", "via", f"10.251.{node.number}.1")
    run("ip", "-n", node.name, "route", "add", f"10.251.{other}.0/26", "dev", node.device)
    run("ip", "netns", "exec", node.name, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    (key,) = node.wg("show", node.device, "peers").split()
    node.wg("set", node.device, "peer", key, "allowed-ips", f"10.250.0.{other}/32,10.251.{other}.0/26")


def traffic(seconds: float) -> None:
    """Both tunnels in turn, so that a noisy machine disturbs both."""
    with fleet("b") as made:
        nodes = [made.node(number, start=False) for number in (1, 2)]
        link(*nodes)
        for node in nodes:
            node.start()
        one, two = (node.container() for node in nodes)
        wait_for(lambda: one.pings(two.address), "the way")
        ways = {
            "containers on two nodes": (one.netns, two.netns, two.address),
            "tunnel made by hand": by_hand(made, *nodes),
        }
        ways["by hand, behind bridges"] = (made.nodes[18].path, made.nodes[19].path, "10.251.9.2")
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                found[name].append((throughput(*way, seconds), latency(*way)))
        best = {}
        for name, figures in found.items():
            best[name] = (statistics.median(f[0] for f in figures), statistics.median(f[1] for f in figures))
            say(f"{name:26} {best[name][0]:7.0f} Mbit/s   {best[name][1]:6.0f} us   (medians of {ROUNDS})")
        ours, *others = best.values()
        for (name, _), hand in zip(list(found.items())[1:], others, strict=True):
            much, late = ours[0] / hand[0], ours[1] / hand[1]
            say(f"{'beside: ' + name:34} {much:5.2f} of its throughput, {late:5.2f} of its latency")


# --- scale ----------------------------------------------------------------------------------------------------------


def synthetic(number: int, key: str, subnets: int, sequence: int = 0) -> NodeDocument:
    """What a node that is only words publishes: its own subnet, and one of each of its services."""
    first = number * (subnets + 1)
    held = [f"10.{64 + n // 1024}.{n % 1024 // 4}.{n % 4 * 64}/26" for n in range(first, first + subnets + 1)]
    identity = f"{number:032x}"
    return NodeDocument(
        identity=identity,
        name=f"synthetic{number}",
        place=identity,
        node_id=number + 1000,
        public_key=key,
        port=51420,
        hosts=(f"198.51.{101 + number // 250}.{number % 250 + 3}",),
        slices=(held[0],),
        subnets=tuple(held[1:]),
        sequence=sequence,
    )


def populate(etcd: EtcdClient, base: str, first: int, last: int, subnets: int) -> None:
    """Nodes that are only words in etcd: each with its slots and what it says of itself."""
    names = StoreKeys(base)
    for number in range(first, last):
        doc = synthetic(number, keys.generate(), subnets)
        identity = doc.identity
        held = [*doc.slices, *doc.subnets]
        steps = [
            Put(names.slot(c), msgspec.json.encode(Slot(identity, "slice" if i == 0 else f"service:s{i}")))
            for i, c in enumerate(held)
        ]
        steps += [Put(names.key(doc.public_key), identity.encode()), Put(names.id(doc.node_id), identity.encode())]
        etcd.transact([], [*steps, Put(names.node(identity), msgspec.json.encode(doc))])


def used(pid: int) -> tuple[float, float]:
    """(seconds of CPU, resident MB) of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), pages * resource.getpagesize() / 1e6


def daemon_of(node: Node) -> int:
    return int((node.directory / "run/overlayd.pid").read_text())


RANGE = "10.64.0.0/10"  # a part of 10.0.0.0/8: a resolver of the host may be in another one
COLUMNS = ("nodes", "subnets", "converged s", "CPU s", "daemon MB", "engine MB", "idle CPU %", "restart s")


def scale(subnets: int = 4) -> None:
    """One real node among 10, 100, 1,000 that are only in etcd."""
    made = Clustered("z")
    try:
        node = made.member(1, cluster_cidr=RANGE)
        say(" ".join(f"{name:>11}" for name in COLUMNS))
        before = 0
        for count in (10, 100, 1000):
            say(" ".join(f"{figure:11.1f}" for figure in grow(made, node, before, count, subnets)))
            before = count
    finally:
        made.clean()


def peers_of(node: Node) -> int:
    """How many peers the device has; 0 before its engine answers."""
    try:
        return len(node.wg("show", node.device, "peers").split())
    except RuntimeError:
        return 0


def grow(made: Clustered, node: Node, before: int, count: int, subnets: int) -> list[float]:
    """Add nodes until there are `count`; the figures of COLUMNS."""
    base = f"/zlayer-cni/{node.settings['deployment']}/"
    client = EtcdClient(settings_module.Etcd(endpoints=(made.etcd.url,)))
    cpu, began, routes = used(daemon_of(node))[0], time.monotonic(), count * (subnets + 1)
    inside(f"/run/netns/{made.underlay}", lambda: populate(client, base, before, count, subnets))
    wait_for(lambda: peers_of(node) == count, "all peers", 300, 0.1)
    wait_for(lambda: len(node.ip("route", "show", "dev", node.device)) >= routes, "all routes", 300, 0.1)
    took, spent = time.monotonic() - began, used(daemon_of(node))[0] - cpu
    memory, engine = used(daemon_of(node))[1], node.engine()
    time.sleep(1)
    idle, at = used(daemon_of(node))[0], time.monotonic()
    time.sleep(12)
    idle = (used(daemon_of(node))[0] - idle) / (time.monotonic() - at) * 100
    node.end(9)
    began = time.monotonic()
    node.start()
    wait_for(lambda: not node.tool("status", check=False)["problems"], "all is well", 120)
    restart = time.monotonic() - began
    return [count, routes, took, spent, memory, used(engine)[1] if engine else 0.0, idle, restart]


# --- names ----------------------------------------------------------------------------------------------------------

NODES, SERVICES, MEMBERS = 1000, 2, 5  # 10,000 containers with names
A_SECOND, SECONDS = 20, 15


def names() -> None:
    """One real node among 1,000 that are only in etcd, with 10,000 containers' names; 20 ADDs a second change a record
    each."""
    made = Clustered("z")
    try:
        node = made.member(1, cluster_cidr=RANGE)
        grow(made, node, 0, NODES, 1)
        pid, idle = daemon_of(node), processor_of(node)
        memory = used(pid)[1]
        base = f"/zlayer-cni/{node.settings['deployment']}/name/"
        client = EtcdClient(settings_module.Etcd(endpoints=(made.etcd.url,)))

        def put(number: int, turn: int) -> Put:
            members = tuple(
                NamedMember(container=f"c{number}-{turn}-{each}", addresses=(f"10.64.{number % 250}.{each}",))
                for each in range(MEMBERS)
            )
            record = ServiceRecord(signer="", members=members)
            return Put(f"{base}{number % NODES:032x}/s{number // NODES}", msgspec.json.encode(record))

        def fill() -> None:
            for first in range(0, NODES * SERVICES, 100):
                client.transact([], [put(number, 0) for number in range(first, first + 100)])

        def change() -> None:
            for turn in range(A_SECOND * SECONDS):
                due = began + turn / A_SECOND
                time.sleep(max(0.0, due - time.monotonic()))
                client.transact([], [put(turn, 1)])

        inside(f"/run/netns/{made.underlay}", fill)
        time.sleep(5)
        grown = used(pid)[1] - memory
        before, began = used(pid)[0], time.monotonic()
        inside(f"/run/netns/{made.underlay}", change)
        spent = used(pid)[0] - before - idle * (time.monotonic() - began)
        say(f"{NODES * SERVICES * MEMBERS} containers' names of {NODES} nodes: {grown:.1f} MB of the daemon's memory")
        say(f"an ADD on another node costs {spent / (A_SECOND * SECONDS) * 1e3:.2f} ms of a processor")
    finally:
        made.clean()


def processor_of(node: Node) -> float:
    """Seconds of a processor that the daemon takes in a second without work."""
    before, began = used(daemon_of(node))[0], time.monotonic()
    time.sleep(SECONDS)
    return (used(daemon_of(node))[0] - before) / (time.monotonic() - began)


def main() -> int:
    """The words of the command line say what is measured."""
    parser = argparse.ArgumentParser(prog="bench-mesh")
    parser.add_argument("what", nargs="?", choices=("traffic", "scale", "names"))
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    work: dict[str, Callable[[], None]] = {"traffic": lambda: traffic(options.seconds), "scale": scale, "names": names}
    for name, measure in work.items():
        if options.what in (None, name):
            say(f"--- {name}: {os.cpu_count()} CPUs, Linux {os.uname().release}")
            measure()
    return 0


if __name__ == "__main__":
    sys.exit(main())
