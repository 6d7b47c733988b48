"""SCTP as docs/services.md has TCP and UDP: directly, by virtual addresses, and to another node by WireGuard of the
kernel; in both kinds of attach.

It needs a kernel with SCTP (`scripts/test vm` boots one). The rules are those of kube-proxy's nftables mode for one
endpoint each.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.mesh.fleet import SLOW, Container, Node, arrives, inside, link, run

RANGE6 = "fd00:200::/48"
PORT, TARGET = 80, 8080
QUIET = 2.0  # seconds in which nothing is answered where nothing may be


def _has_sctp() -> bool:
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", "sctp"], check=False, capture_output=True)
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not _has_sctp(), reason="this kernel has no SCTP (scripts/test vm)"),
]


@contextlib.contextmanager
def answering(*containers: Container) -> Iterator[None]:
    """Each container tells its name to everyone who connects."""
    with contextlib.ExitStack() as stack:
        for container in containers:
            for family, address in ((socket.AF_INET, container.address), (socket.AF_INET6, container.address6)):
                ear = stack.enter_context(inside(container.netns, lambda f=family: _socket(f)))  # type: ignore[misc]
                ear.bind((address, TARGET))
                ear.listen(16)
                ear.settimeout(None)
                threading.Thread(target=_serve, args=(ear, container.name.encode()), daemon=True).start()
        yield


def _socket(family: int) -> socket.socket:
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP)


def _serve(ear: socket.socket, name: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            speaker, _ = ear.accept()
            with speaker:
                speaker.sendall(name)


def ask(path: str, address: str, port: int, wait: float = 4.0 * SLOW) -> str:
    """Who answers; "" for none."""
    with inside(path, lambda: _socket(socket.AF_INET6 if ":" in address else socket.AF_INET)) as sock:
        sock.settimeout(wait)
        try:
            sock.connect((address, port))
            return sock.recv(200).decode()
        except OSError:
            return ""


def services(*targets: tuple[str, str]) -> str:
    """Rules that lead virtual addresses to containers; a container that calls itself has the node's address there."""
    lines = []
    for virtual, real in targets:
        ip, there = ("ip6", f"[{real}]") if ":" in real else ("ip", real)
        lines.append(f"{ip} daddr {virtual} sctp dport {PORT} dnat {ip} to {there}:{TARGET};")
    hairpin = [
        f"{'ip6' if ':' in real else 'ip'} saddr {real} {'ip6' if ':' in real else 'ip'} daddr {real} masquerade;"
        for _, real in targets
    ]
    led = " ".join(lines)
    return (
        f"table inet zlt_services {{ chain pre {{ type nat hook prerouting priority -100; {led} }}; "
        f"chain out {{ type nat hook output priority -100; {led} }}; "
        f"chain post {{ type nat hook postrouting priority 100; {' '.join(hairpin)} }}; }}"
    )


@pytest.mark.parametrize("attach", ["bridge", "routed"])
def test_sctp(frozen: Callable[..., Node], attach: str) -> None:
    one, two = (frozen(number, start=False, cluster_cidr6=RANGE6, attach=attach) for number in (1, 2))
    link(one, two)
    for node in (one, two):
        node.start()
    for tool in ("iptables", "ip6tables"):
        key = f"net.bridge.bridge-nf-call-{tool}={int(attach == 'bridge')}"
        run("ip", "netns", "exec", one.name, "sysctl", "-qw", key)
    me, same, other, far = one.container("web"), one.container("web"), one.container("db"), two.container("web")
    red = one.container("db", isolationNetwork="red")
    arrives(me, far)
    ends = {"self": me, "same": same, "other": other, "red": red}
    virtual = {name: (f"10.96.0.{number}", f"fd00:96::{number}") for number, name in enumerate(ends, 11)}
    pairs = [(virtual[name][six], (c.address, c.address6)[six]) for name, c in ends.items() for six in (0, 1)]
    run("ip", "netns", "exec", one.name, "nft", services(*pairs))
    seen, wanted = {}, {}
    with answering(me, same, other, far, red):
        cells = [
            ("far", me.netns, far.address, TARGET, far.name),
            ("node", one.path, virtual["other"][0], PORT, other.name),
        ]
        for six in (0, 1):
            cells.append((f"direct {six}", me.netns, (same.address, same.address6)[six], TARGET, same.name))
            cells += [(f"{name} {six}", me.netns, virtual[name][six], PORT, c.name) for name, c in ends.items()]
        for cell, path, address, port, name in cells:
            closed = cell.startswith("red")
            seen[cell] = ask(path, address, port, QUIET if closed else 4.0 * SLOW)
            wanted[cell] = "" if closed else name
    assert seen == wanted
