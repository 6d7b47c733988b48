"""An underlay below 1,360 bytes: IPv6 stays, on every device, and WireGuard's packets go in fragments."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest

from tests.mesh.etcds import Clustered
from tests.mesh.fleet import Container, Node, echoes, run, wait_for
from tests.safety.test_kernel_settings import RANGE6, bridge_of

NARROW, LEAST6 = 1300, 1280  # bytes


def narrow(clustered: Clustered, node: Node, mtu: int) -> None:
    """The node's cable carries `mtu` bytes."""
    run("ip", "-n", node.name, "link", "set", "eth0", "mtu", str(mtu))
    run("ip", "-n", clustered.underlay, "link", "set", f"n{node.number}", "mtu", str(mtu))


def sizes(box: Container) -> set[int]:
    """The MTUs of the container's interface, its host end, its bridge, and the node's WireGuard device."""
    node = box.node
    (record,) = (each for each in node.tool("attachments") if each["container_id"] == box.name)
    names = [record["host_interface"], bridge_of(node, box.service), node.device]
    outside = {int(each["mtu"]) for each in node.ip("link") if each["ifname"] in names}
    return outside | {int(json.loads(box.run("ip", "-j", "link", "show", "eth0"))[0]["mtu"])}


@pytest.mark.parametrize("later", [False, True], ids=["before the start", "later"])
def test_ipv6_stays_on_a_narrow_underlay(
    clustered: Clustered, program: tuple[str, ...], engine: None, later: bool
) -> None:
    nodes = []
    for number in (1, 2):
        node = clustered.member(number, start=False, cluster_cidr6=RANGE6)
        node.program = program
        if not later:
            narrow(clustered, node, NARROW)
        node.start()
        nodes.append(node)
    one, two = (node.container("web") for node in nodes)
    if later:
        wait_for(lambda: one.pings(two.address6, 1420 - 48, wait=0.5), "the tunnel")
        for node in nodes:
            narrow(clustered, node, NARROW)
    wait_for(lambda: sizes(one) | sizes(two) == {LEAST6}, "the size that IPv6 needs")
    wait_for(lambda: one.pings(two.address6, LEAST6 - 48, wait=0.5), "a whole packet of IPv6")
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        assert echoes(one, two, kind, 30_000, six=True)
        assert echoes(one, two, kind, 30_000)
    for node in nodes:
        assert f"MTU is {NARROW}" in wait_for(lambda: node.problem("underlay-narrow"), "the problem")  # noqa: B023
        narrow(clustered, node, 1500)
    wait_for(lambda: sizes(one) | sizes(two) == {1420}, "the former size")
    assert [node.problem("underlay-narrow") for node in nodes] == ["", ""]


def test_an_mtu_without_ipv6_is_refused(frozen: Callable[..., Node]) -> None:
    node = frozen(1, cluster_cidr6=RANGE6)
    box = node.unattached("web", mtu=1000)
    said = json.loads(node.call("ADD", box, check=False).stdout)
    assert said["code"] == 7 and "mtu: 1000" in said["msg"] and "1280" in said["msg"], said
    assert node.tool("status")["services"] == []


def test_an_overlay_without_ipv6_has_what_ipv4_needs(frozen: Callable[..., Node]) -> None:
    node = frozen(1, start=False)
    run("ip", "-n", node.name, "link", "set", "eth0", "mtu", "600")
    node.start()
    box = node.container("web")
    assert sizes(box) == {576}
    assert "MTU is 600" in node.problem("underlay-narrow")
