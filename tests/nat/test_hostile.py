"""What forged, repeated and countless datagrams do at WireGuard's port, and what an idle pair costs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from cni.daemon.model import keys, probe_message
from tests.mesh.fleet import PORT, Node, inside, wait_for

from .lab import Lab
from .test_paths import SERVERS, echoed, meet, path_of

ALL = 3  # ETH_P_ALL
FLOOD = 4.0  # seconds


def thread_time(node: Node) -> float:
    """The processor time of the daemon's thread for NAT traversal, in seconds."""
    assert node.daemon is not None
    children = Path(f"/proc/{node.daemon.pid}/task").iterdir()
    (task,) = (task for task in children if (task / "comm").read_text().strip() == "nat")
    return int((task / "schedstat").read_text().split()[0]) / 1e9


def memory(node: Node) -> int:
    """The daemon's resident memory, in kB."""
    assert node.daemon is not None
    line = next(x for x in Path(f"/proc/{node.daemon.pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1])


def capture(lab: Lab, port: str, seconds: float) -> list[tuple[str, int, str, int, bytes]]:
    """The UDP datagrams on a link of the internet, as source, port, destination, port and payload."""
    path = f"/run/netns/{lab.underlay}"
    found: dict[bytes, tuple[str, int, str, int, bytes]] = {}
    with closing(inside(path, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL)))) as sock:
        sock.bind((port, 0))
        sock.settimeout(0.2)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                frame = sock.recv(1 << 16)
            except TimeoutError:
                continue
            ip = frame[14:]
            if frame[12:14] == b"\x08\x00" and ip[9] == socket.IPPROTO_UDP:
                udp = ip[(ip[0] & 15) * 4 :]
                ends = (socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20]))
                source, destination = int.from_bytes(udp[:2], "big"), int.from_bytes(udp[2:4], "big")
                key = ip[4:6] + ends[0].encode() + udp[:4] + str(len(found)).encode()
                found[key] = (ends[0], source, ends[1], destination, udp[8:])
    return list(found.values())


def is_probe(payload: bytes) -> bool:
    return payload[:4] == probe_message.MAGIC.to_bytes(4, "big")


def flood(path: str, to: tuple[str, int], payload: bytes, seconds: float, count: multiprocessing.Queue[int]) -> None:
    """Send one datagram as often as the machine can."""
    sent = 0
    with inside(path, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.connect(to)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(100):
                sock.send(payload)
            sent += 100
    count.put(sent)


def test_floods_cost_a_bounded_share_and_move_nothing(lab: Lab, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    first, second, _ = meet(lab, "public", "prc", nat=SERVERS)
    wait_for(lambda: path_of(first, second)["path"] == "hole-punched", "the path")
    path, target = path_of(first, second), (lab.public_address(1), PORT)
    receiver, sender = (probe_message.name_of(keys.decode(str(n.status().public_key))) for n in (first, second))
    magic = probe_message.MAGIC.to_bytes(4, "big")
    for name, payload in (
        ("forged probes of a peer, for this node", magic + b"\x01\0\0\0" + receiver + sender + os.urandom(44)),
        ("forged probes of a stranger, for this node", magic + b"\x01\0\0\0" + receiver + os.urandom(52)),
        ("probes for another node", magic + b"\x01\0\0\0" + os.urandom(60)),
    ):
        count: multiprocessing.Queue[int] = multiprocessing.Queue()
        before, kept = thread_time(first), memory(first)
        arguments = (f"/run/netns/{lab.underlay}", target, payload, FLOOD, count)
        process = multiprocessing.get_context("fork").Process(target=flood, args=arguments)
        process.start()
        sent = count.get(timeout=60)
        process.join()
        share, grown = (thread_time(first) - before) / FLOOD, memory(first) - kept
        measured(f"{name}: {sent / FLOOD:,.0f} a second, {100 * share:.1f} % of a processor, {grown} kB more memory")
        assert share < 0.2
        assert grown < 4096
        assert path_of(first, second)["endpoint"] == path["endpoint"]
    assert echoed(first, second)


def test_repeated_probes_move_nothing_and_are_answered_by_no_more_than_they_are(lab: Lab) -> None:
    lab.start_stun()
    first = lab.joined("public", 1, nat=SERVERS)
    second = lab.joined("prc", 2, start=False, nat=SERVERS)
    with ThreadPoolExecutor() as threads:
        seen = threads.submit(capture, lab, "s1", 8.0)
        second.start()
        wait_for(lambda: path_of(first, second)["path"] == "hole-punched", "the path")
        recorded = [payload for *_, payload in seen.result() if is_probe(payload)]
    assert len(recorded) >= 4, "pings and pongs of both"
    path = path_of(first, second)
    path_to_attacker = f"/run/netns/{lab.underlay}"
    with inside(path_to_attacker, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(0.3)
        for payload in recorded:
            sock.sendto(payload, (lab.public_address(1), PORT))
            with contextlib.suppress(TimeoutError):
                assert len(sock.recv(2048)) <= len(payload)
        time.sleep(2)
    assert path_of(first, second)["endpoint"] == path["endpoint"]
    assert echoed(first, second)


def test_an_idle_pair_costs_next_to_nothing(lab: Lab, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    first, second, _ = meet(lab, "prc", "prc", nat=SERVERS)
    wait_for(lambda: path_of(first, second)["path"] == "hole-punched", "the path")
    time.sleep(12)  # the attempts end
    began, before = time.monotonic(), thread_time(first)
    seen = capture(lab, "s1", 75)
    seconds = time.monotonic() - began
    between = [payload for source, _, to, _, payload in seen if {source, to} == {lab.public_address(n) for n in (1, 2)}]
    probes = sum(map(is_probe, between))
    cost = (thread_time(first) - before) / seconds * 1000
    measured(
        f"idle pair, {seconds:.0f} s: {len(between)} datagrams, {probes} probes; {cost:.2f} ms of a processor a second"
    )
    assert probes == 0
