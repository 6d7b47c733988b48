"""Settings that the kernel combines with those of `all` and `default`: what counts is what the kernel does."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

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


def problem(node: Node, code: str) -> str:
    """The text of the problem of that code; empty if there is none."""
    return next((each["text"] for each in node.tool("status")["problem_details"] if each["code"] == code), "")


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
    assert "net.ipv4.conf.eth0.forwarding is 0" in problem(node, "forwarding-off")
    sysctl(node, ipv4__conf__eth0__forwarding=1)
    assert node.tool("status")["problems"] == []
    assert box.pings("198.51.100.254")


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
    assert "arp_ignore is 8" in problem(node, "kernel-setting")
    sysctl(node, ipv4__conf__all__arp_ignore=3)
    assert "other addresses" in problem(node, "kernel-setting")
    for value in (0, 1, 2):
        sysctl(node, ipv4__conf__all__arp_ignore=value)
        assert node.tool("status")["problems"] == []
    wait_for(lambda: box.pings(gateways(node, box)[0], wait=0.3), "the gateway")
