"""The host's own packets reach containers on other nodes with any of its source addresses."""

from __future__ import annotations

import socket
import threading

import pytest

from .etcds import Clustered
from .fixtures import clustered, engine
from .fleet import Container, Node, arrives, inside, run

__all__ = ["clustered", "engine"]

pytestmark = pytest.mark.root
SERVICE = ("203.0.113.9", 80)  # an address that the node translates to a remote container's


def answers(node: Node, source: str, target: tuple[str, int]) -> str:
    """The address under which the container sees a connection of the node's; "" if there is none."""

    def ask() -> str:
        with socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(3)
            if source:
                sock.bind((source, 0))
            try:
                sock.connect(target)
                return sock.recv(100).decode()
            except OSError:
                return ""

    return inside(node.path, ask)


def serve(container: Container, family: socket.AddressFamily) -> int:
    """A server in the container that tells each client its address; returns the port."""
    ear = container.socket(socket.SOCK_STREAM, family)
    ear.settimeout(None)
    ear.bind((container.address6 if family == socket.AF_INET6 else container.address, 0))
    ear.listen()

    def body() -> None:
        while True:
            speaker, peer = ear.accept()
            with speaker:
                speaker.sendall(str(peer[0]).encode())

    threading.Thread(target=body, daemon=True).start()
    return int(ear.getsockname()[1])


def test_the_hosts_packets_reach_remote_containers_from_any_of_its_addresses(
    clustered: Clustered, engine: None
) -> None:
    one, two = (clustered.member(number, cluster_cidr6="fd00:200::/48") for number in (1, 2))
    a, b = one.container(), two.container()
    member = two.container(isolationNetwork="red")
    arrives(a, b)
    port, port6, closed = serve(b, socket.AF_INET), serve(b, socket.AF_INET6), serve(member, socket.AF_INET)
    own = answers(one, "", (b.address, port))
    assert own.startswith("10.200."), "by its overlay address"
    assert answers(one, one.underlay, (b.address, port)) == own, "bound to its underlay address"
    run("ip", "-n", one.name, "address", "add", "2001:db8::1/128", "dev", "lo")
    seen = answers(one, "", (b.address6, port6))
    assert seen.startswith("fd00:200:")
    assert answers(one, "2001:db8::1", (b.address6, port6)) == seen, "bound to an IPv6 address"
    text = f"""table ip zlt {{ chain out {{ type nat hook output priority -100; policy accept;
        ip daddr {SERVICE[0]} tcp dport {SERVICE[1]} dnat to {b.address}:{port}
    }}; }}"""
    run("ip", "netns", "exec", one.name, "nft", text)
    assert answers(one, "", SERVICE) == own, "by DNAT in the hook output"
    # The fence is as it was: a member there hears nothing, and what another machine sends is not translated.
    assert answers(one, one.underlay, (member.address, closed)) == answers(one, "", (member.address, closed)) == ""
    run("ip", "-n", clustered.underlay, "route", "add", f"{b.address}/32", "via", one.underlay)
    with pytest.raises(OSError):
        inside(f"/run/netns/{clustered.underlay}", lambda: socket.create_connection((b.address, port), 1))
