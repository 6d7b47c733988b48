"""The link-local address of a container is the one that its MAC gives, whatever its namespace's settings say."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.mesh.fleet import Container, Node, wait_for
from tests.safety.test_kernel_settings import RANGE6, bridge_of, gateways

SECRET = "2001:db8::5ec:2e7"
MODES = {
    "none": {"addr_gen_mode": "1"},
    "stable-privacy": {"stable_secret": SECRET, "addr_gen_mode": "2"},
    "random": {"addr_gen_mode": "3"},
}


def attached(node: Node, settings: dict[str, str], service: str = "web") -> Container:
    """A container whose namespace had these settings of IPv6 before it was attached."""
    box = node.unattached(service)
    for key, value in settings.items():
        box.run("sysctl", "-qw", f"net.ipv6.conf.default.{key}={value}")
    box.result = json.loads(node.plugin("ADD", box))
    box.address6 = next(each["address"].partition("/")[0] for each in box.result["ips"] if ":" in each["address"])
    return box


def link_locals(box: Container) -> list[str]:
    """The link-local addresses of the container's interface."""
    return locals_of(json.loads(box.run("ip", "-j", "-6", "address", "show", "dev", "eth0")))


def locals_of(shown: list[dict[str, Any]]) -> list[str]:
    """The link-local addresses in the output of `ip -j address`."""
    return [each["local"] for link in shown for each in link.get("addr_info", ()) if each.get("scope") == "link"]


def hears(box: Container, source: str, target: str) -> bool:
    """Whether an echo from one of the container's addresses is answered."""
    words = ["nsenter", "-t", str(box.process.pid), "-n", "ping", "-6", "-n", "-q", "-c", "1", "-W", "0.5"]
    return (
        subprocess.run([*words, "-I", f"{source}%eth0", f"{target}%eth0"], capture_output=True, check=False).returncode
        == 0
    )


def local_gateway(box: Container) -> str:
    """The link-local address of the container's bridge."""
    node = box.node
    return locals_of(node.ip("-6", "address", "show", "dev", bridge_of(node, box.service)))[0]


@pytest.mark.parametrize("mode", MODES)
def test_it_is_open_and_no_other(frozen: Callable[..., Node], mode: str) -> None:
    node = frozen(1, cluster_cidr6=RANGE6)
    box, fellow = attached(node, MODES[mode]), attached(node, {})
    gateway = next(each for each in gateways(node, box) if ":" in each)
    assert box.pings(gateway, wait=1) and box.pings(fellow.address6, wait=1)
    (own,), (its,) = link_locals(box), link_locals(fellow)
    wait_for(lambda: hears(box, own, its), "the fellow's link-local address", 3)
    assert hears(fellow, its, own)
    # A container may not choose: neither a free address, nor its fellow's.
    for forged in ("fe80::bad", its):
        box.run("ip", "-6", "address", "add", f"{forged}/64", "dev", "eth0", "nodad")
        assert not hears(box, forged, local_gateway(box))
        box.run("ip", "-6", "address", "del", f"{forged}/64", "dev", "eth0")
    assert hears(box, own, its)


def test_a_mode_that_is_set_after_the_attach_closes_nothing(frozen: Callable[..., Node]) -> None:
    """The kernel adds an address; the one that was there stays, and so does what is reached from it."""
    node = frozen(1, cluster_cidr6=RANGE6)
    box, fellow = attached(node, {}), attached(node, {}, "db")
    (own,) = link_locals(box)
    box.run("sysctl", "-qw", "net.ipv6.conf.eth0.addr_gen_mode=3")
    assert len(wait_for(lambda: link_locals(box) if len(link_locals(box)) > 1 else None, "another address", 3)) == 2
    box.run("ip", "-6", "neighbour", "flush", "dev", "eth0")
    assert own in link_locals(box)
    assert box.pings(fellow.address6, wait=1)
    assert hears(box, own, local_gateway(box))
