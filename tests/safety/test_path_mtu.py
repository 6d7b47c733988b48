"""A forged ICMP message does nothing to the size of the routes into a tunnel.

552 bytes are net.ipv4.route.min_pmtu, the least that the kernel takes over.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable

import pytest

from tests.mesh.fleet import PORT, Fleet, Node, echoes, inside, link, run, wait_for


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def forge(fleet: Fleet, victim: Node, peer: Node, mtu: int) -> None:
    """Send "fragmentation needed" from a stranger on the underlay, about a packet between the WireGuard ports."""
    src, dst = socket.inet_aton(victim.underlay), socket.inet_aton(peer.underlay)
    quoted = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 1400, 1, 0x4000, 64, 17, 0, src, dst)
    quoted += struct.pack("!HHHH", PORT, PORT, 1380, 0)
    message = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as mouth:
            mouth.sendto(message, (victim.underlay, 0))

    inside(f"/run/netns/{fleet.underlay}", send)


def path_cache(node: Node, peer: Node) -> int:
    """The bytes that the kernel's own path cache has for the peer; 0 for none."""
    (found,) = json.loads(run("ip", "-j", "-n", node.name, "route", "get", peer.underlay))
    return next((int(each["mtu"]) for each in found.get("metrics", ()) if "mtu" in each), 0)


def least_route(node: Node) -> int:
    """The size of the narrowest route into the tunnel; the device's own where none has a size."""
    (device,) = node.ip("link", "show", node.device)
    routes = node.ip("route", "show", "dev", node.device)
    return min([int(m["mtu"]) for each in routes for m in each.get("metrics", ()) if "mtu" in m], default=device["mtu"])


@pytest.mark.parametrize(
    ("six", "forged"), [pytest.param(False, 552, marks=pytest.mark.long), (True, 1400)], ids=["552", "1400"]
)
def test_a_forged_fragmentation_needed_changes_nothing_and_is_told(
    fleet: Fleet, frozen: Callable[..., Node], engine: None, six: bool, forged: int
) -> None:
    more = {"cluster_cidr6": "fd00:200::/48"} if six else {}
    one, two = (frozen(number, start=False, **more) for number in (1, 2))
    link(one, two)
    for node in (one, two):
        node.start()
    a, b = one.container("web"), two.container("web")
    wait_for(lambda: a.pings(b.address), "the tunnel")
    wait_for(lambda: one.tool("peers")[0]["path_mtu_measured"], "the path is measured")
    forge(fleet, one, two, forged)
    wait_for(lambda: path_cache(one, two) == forged, "the kernel has taken it over", 5)
    # A look at the underlay: it follows news of its links.
    run("ip", "-n", one.name, "link", "set", "eth0", "txqueuelen", "900")
    found = wait_for(lambda: one.tool("status")["problem_details"], "the problem", 25)
    assert [each["code"] for each in found] == ["path-mtu-doubted"]
    assert str(forged) in found[0]["text"] and two.underlay in found[0]["text"]
    assert least_route(one) == a.mtu
    assert one.tool("peers")[0]["path_mtu"] == 1500
    assert a.pings(b.address, a.mtu - 28)
    assert echoes(a, b, socket.SOCK_STREAM, 300_000)
