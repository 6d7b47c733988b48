"""Settings that the kernel combines with those of `all` and `default`: what counts is what the kernel does."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.mesh.fleet import Container, Node, inside, run, wait_for

RANGE6 = "fd00:200::/48"
REDIRECTS = {4: (socket.AF_INET, socket.IPPROTO_ICMP, 5), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, 137)}
PATIENCE = 0.6  # seconds; a redirect answers the first packet


def sysctl(node: Node, **values: object) -> None:
    """Settings of the node's namespace, below net; two underscores are a dot."""
    words = [f"net.{key.replace('__', '.')}={value}" for key, value in values.items()]
    run("ip", "netns", "exec", node.name, "sysctl", "-qw", *words)


def bridge_of(node: Node, service: str) -> str:
    """The bridge of a service."""
    return str(next(each["bridge"] for each in node.tool("status")["services"] if each["service"] == service))


def gateways(node: Node, box: Container) -> list[str]:
    """A container's gateways."""
    return list(next(e["gateways"] for e in node.tool("attachments") if e["container_id"] == box.name))


def daemon_of(node: Node) -> int:
    """The process id of the node's daemon."""
    return int((node.directory / "run" / "overlayd.pid").read_text())


def answer(node: Node, verb: str, box: Container, code: int) -> dict[str, Any]:
    """What a verb answers; it must have this code (0: success)."""
    box.conf = {**box.conf, "prevResult": box.result}
    done = node.call(verb, box, check=False)
    found: dict[str, Any] = json.loads(done.stdout or "{}")
    assert found.get("code", 0) == code and (done.returncode != 0) == bool(code), done
    return found


def redirected(box: Container, address: str, gateway: str) -> bool:
    """Whether the node tells the container of a better way to an address, to which it sends by the gateway."""
    version = 6 if ":" in address else 4
    family, protocol, kind = REDIRECTS[version]
    box.run("ip", "route", "replace", f"{address}/{128 if version == 6 else 32}", "via", gateway)
    ear = inside(box.netns, lambda: socket.socket(family, socket.SOCK_RAW, protocol))
    with ear, box.socket(socket.SOCK_DGRAM, family) as mouth:
        ear.settimeout(0.05)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            mouth.sendto(b"?", (address, 9))
            try:
                said = ear.recv(2048)
            except TimeoutError:
                continue
            if said[0 if version == 6 else (said[0] & 15) * 4] == kind:
                return True
    return False


def test_no_redirects_tell_who_else_is_on_a_bridge(frozen: Callable[..., Node]) -> None:
    """send_redirects is on for a link while it is on for `all`, the kernel's default."""
    node = frozen(1, start=False, cluster_cidr6=RANGE6, masquerade=False)
    sysctl(node, ipv4__conf__all__send_redirects=1)
    node.start()
    red, blue, fellow = (node.container("web", isolationNetwork=name) for name in ("red", "blue", "red"))
    for gateway in gateways(node, red):
        six = ":" in gateway
        assert not redirected(red, blue.address6 if six else blue.address, gateway)
        assert not redirected(red, fellow.address6 if six else fellow.address, gateway)


def test_links_forward_whatever_the_default_is(frozen: Callable[..., Node]) -> None:
    """A new link has the setting of `default`; the kernel asks the link by which an IPv4 packet came in."""
    node = frozen(1, start=False, cluster_cidr6=RANGE6)
    sysctl(node, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
    sysctl(node, ipv4__conf__default__forwarding=0, ipv6__conf__default__forwarding=0)
    node.start()
    web, db = node.container("web"), node.container("db")
    assert web.pings(db.address)
    assert web.pings(db.address6)
    assert node.tool("status")["problems"] == []
    bridge = bridge_of(node, "web")
    node.end()
    sysctl(node, **{f"ipv4__conf__{bridge}__forwarding": 0})
    assert not web.pings(db.address, wait=0.3)
    node.start()
    assert web.pings(db.address)


def test_an_uplink_that_forwards_nothing_is_told(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    assert node.tool("status")["problems"] == []
    sysctl(node, ipv4__conf__eth0__forwarding=0)
    box = node.container("web")
    assert not box.pings("198.51.100.254", wait=0.3)
    key = "net.ipv4.conf.eth0.forwarding"
    assert f"{key} is 0" in node.problem("forwarding-off")
    assert key in answer(node, "CHECK", box, 102)["msg"]
    assert key in answer(node, "STATUS", box, 51)["msg"]
    assert f"{key}=1" in node.cli("doctor", "--run-dir", str(node.directory / "run")).stdout
    sysctl(node, ipv4__conf__eth0__forwarding=1)
    assert node.tool("status")["problems"] == []
    for verb in ("CHECK", "STATUS"):
        answer(node, verb, box, 0)
    assert box.pings("198.51.100.254")


def test_forwarding_that_cannot_be_restored_is_told(frozen: Callable[..., Node]) -> None:
    """Each link is what counts: a bridge that forwards nothing, while ip_forward is 1."""
    node = frozen(1)
    web, db = node.container("web"), node.container("db")
    shut = f"net.ipv4.conf.{bridge_of(node, 'web')}.forwarding"
    os.kill(daemon_of(node), signal.SIGSTOP)  # it would switch it on again within milliseconds
    sysctl(node, **{shut.removeprefix("net.").replace(".", "__"): 0})
    assert not web.pings(db.address, wait=0.3)
    found = node.cli("doctor", "--run-dir", str(node.directory / "run")).stdout
    os.kill(daemon_of(node), signal.SIGCONT)
    assert f"{shut} is 0" in found
    wait_for(lambda: web.pings(db.address, wait=0.3), "the bridge forwards again")


@pytest.mark.parametrize("hears", [True, False], ids=["a host that hears routers", "a router"])
def test_a_network_card_that_comes_later_hears_routers(frozen: Callable[..., Node], hears: bool) -> None:
    """With IPv6 forwarding on, the kernel ignores router advertisements where accept_ra is not 2."""
    node = frozen(1, start=False, cluster_cidr6=RANGE6)
    sysctl(node, ipv6__conf__all__forwarding=int(not hears))
    node.start()
    underlay = node.fleet.underlay
    run("ip", "-n", node.name, "link", "add", "foreign0", "type", "bridge")
    run("ip", "-n", node.name, "link", "add", "foreign1", "master", "foreign0", "type", "veth")
    run("ip", "-n", node.name, "link", "add", "eth1", "type", "veth", "peer", "name", "router1", "netns", underlay)
    for name, link in ((node.name, "eth1"), (underlay, "router1")):
        run("ip", "-n", name, "link", "set", link, "addrgenmode", "eui64")
        run("ip", "-n", name, "link", "set", link, "up")

    def has_route() -> bool:
        with suppress(OSError):  # the router's link-local address is tentative
            advertise(underlay, "router1")
        return bool(node.ip("-6", "route", "show", "default", "dev", "eth1"))

    if hears:
        wait_for(has_route, "a default route by the new card", 10, 0.1)
    else:
        end = time.monotonic() + 3
        assert not any(has_route() or time.sleep(0.1) for _ in iter(lambda: time.monotonic() < end, False))
    for link in ("foreign0", "foreign1"):
        path = f"/proc/sys/net/ipv6/conf/{link}/accept_ra"
        assert run("ip", "netns", "exec", node.name, "cat", path).strip() == "1"


def advertise(underlay: str, link: str) -> None:
    """Send a router advertisement from a link of the underlay (RFC 4861, section 4.2), for half an hour."""

    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as mouth:
            mouth.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
            mouth.sendto(message, ("ff02::1", 0, 0, socket.if_nametoindex(link)))

    inside(f"/run/netns/{underlay}", send)


def test_no_address_of_a_bridge_waits_for_duplicate_detection(frozen: Callable[..., Node]) -> None:
    """accept_dad is on for a link while it is on for `all`."""
    node = frozen(1, start=False, cluster_cidr6=RANGE6)
    sysctl(node, ipv6__conf__all__accept_dad=1)
    node.start()
    box = node.container("web")
    assert node.ip("-6", "address", "show", "dev", bridge_of(node, "web"), "tentative") == []
    assert node.ip("-6", "address", "show", "dev", bridge_of(node, "web"))
    assert box.pings(next(each for each in gateways(node, box) if ":" in each), wait=0.5)


def test_arp_ignore_of_all_that_overrules_ours_is_told(frozen: Callable[..., Node]) -> None:
    """Of arp_ignore the larger value counts: 8 answers for nothing, 3 for the host's other addresses too."""
    node = frozen(1)
    sysctl(node, ipv4__conf__all__arp_ignore=8)
    box = node.container("web")
    assert not box.pings(gateways(node, box)[0], wait=0.3)
    assert "arp_ignore is 8" in node.problem("kernel-setting")
    sysctl(node, ipv4__conf__all__arp_ignore=3)
    assert "other addresses" in node.problem("kernel-setting")
    for value in (0, 1, 2):
        sysctl(node, ipv4__conf__all__arp_ignore=value)
        assert node.tool("status")["problems"] == []
    wait_for(lambda: box.pings(gateways(node, box)[0], wait=0.3), "the gateway")
