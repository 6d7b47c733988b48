"""What is there already follows the underlay's MTU: bridges, hosts' ends, containers' own interfaces and their routes.

No peers, so no engine is needed. The other end of each change, real packets between nodes, is in test_static.py.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from .fleet import Container, Node, echoes, fleet, run, wait_for

pytestmark = pytest.mark.root
WIDE, NARROW, JUMBO = 1500, 1400, 9000
OVERHEAD = 80


@pytest.fixture
def node() -> Iterator[Node]:
    with fleet("z") as made:
        yield made.node(1, cluster_cidr6="fd00:200::/48")


def underlay(node: Node, mtu: int) -> None:
    run("ip", "-n", node.name, "link", "set", "eth0", "mtu", str(mtu))


def inside(container: Container) -> int:
    return int(json.loads(container.run("ip", "-j", "link", "show", "eth0"))[0]["mtu"])


def host_end(container: Container) -> int:
    return int(container.node.ip("link", "show", record(container)["host_interface"])[0]["mtu"])


def bridge(container: Container) -> int:
    return int(container.node.ip("link", "show", record(container)["bridge"])[0]["mtu"])


def record(container: Container) -> dict[str, str]:
    (found,) = [a for a in container.node.tool("attachments") if a["container_id"] == container.name]
    return dict(found)


def sizes(container: Container) -> tuple[int, int, int]:
    return inside(container), host_end(container), bridge(container)


def becomes(container: Container, mtu: int) -> None:
    """Everything of the container has this size, soon."""
    wait_for(lambda: sizes(container) == (mtu, mtu, mtu), f"{container.name} has {mtu}, not {sizes(container)}")


def test_running_containers_follow_down_and_up(node: Node) -> None:
    a, b, other = node.container("web"), node.container("web"), node.container("db")
    assert sizes(a) == (1420, 1420, 1420)
    for mtu in (NARROW, JUMBO, WIDE):
        underlay(node, mtu)
        for each in (a, b, other):
            becomes(each, mtu - OVERHEAD)
            assert int(record(each)["mtu"]) == mtu - OVERHEAD
        assert f"mtu {mtu - OVERHEAD}" not in a.run("ip", "route"), "the routes have no size of their own to go stale"
        assert a.pings(b.address, mtu - OVERHEAD - 28)
        assert a.pings(other.address, mtu - OVERHEAD - 28)
        assert a.pings(other.address6, mtu - OVERHEAD - 48)
        assert not a.pings(other.address, mtu - OVERHEAD - 27)
        assert echoes(a, other, socket.SOCK_STREAM, 100_000)
    late = node.container("web")
    assert sizes(late) == (1420, 1420, 1420)
    # Once more, with nothing to do, by a daemon that begins.
    before = node.ip("link")
    node.end()
    node.start()
    assert [(each["ifname"], each["mtu"]) for each in node.ip("link")] == [(e["ifname"], e["mtu"]) for e in before]


def test_what_somebody_chose_is_not_touched(node: Node) -> None:
    chosen, tuned, plain = node.container("web", mtu=1300), node.container("web"), node.container("web")
    tuned.run("ip", "link", "set", "eth0", "mtu", "1390")
    underlay(node, NARROW)
    becomes(plain, 1320)
    assert (inside(chosen), host_end(chosen)) == (1300, 1300)
    assert (inside(tuned), host_end(tuned)) == (1390, 1420)
    underlay(node, WIDE)
    becomes_inside(plain, 1420)
    assert (inside(chosen), inside(tuned)) == (1300, 1390)


def becomes_inside(container: Container, mtu: int) -> None:
    wait_for(lambda: (inside(container), host_end(container)) == (mtu, mtu), f"{container.name} has {mtu}")


def test_a_virtual_machine_behind_a_tap_is_left_alone(node: Node) -> None:
    """It would not hear of it, and what it sends would be dropped without a word."""
    machine, plain = node.container("web"), node.container("web")
    machine.run("ip", "tuntap", "add", "tap0", "mode", "tap")
    underlay(node, NARROW)
    becomes(plain, 1320)
    assert (inside(machine), host_end(machine)) == (1420, 1420)


def test_a_container_that_cannot_be_entered_keeps_its_bridge_at_its_size(node: Node) -> None:
    """The path of its namespace is gone: it does not grow, so its bridge does not."""
    underlay(node, NARROW)
    first = node.container("db")
    wait_for(lambda: inside(first) == 1320 or node.container("db").mtu == 1320, "the daemon has seen it")
    hidden = node.container("web", named=True)
    plain, other = node.container("web"), node.container("db")
    assert inside(hidden) == 1320
    hidden.take_name()
    underlay(node, WIDE)
    becomes(other, 1420)
    becomes_inside(plain, 1420)
    assert (inside(hidden), host_end(hidden)) == (1320, 1320)
    assert bridge(hidden) == 1320
    assert plain.pings(hidden.address, 1300 - 28)
    node.remove(hidden)
    becomes(plain, 1420)


def test_a_moment_without_a_way_out_changes_nothing(node: Node) -> None:
    """Without a default route the underlay's MTU is unknown."""
    underlay(node, JUMBO)
    a = node.container("web")
    becomes(a, JUMBO - OVERHEAD)
    run("ip", "-n", node.name, "route", "del", "default")
    late = node.container("web")
    wide = late.mtu
    run("ip", "-n", node.name, "link", "set", "eth0", "txqueuelen", "900")  # it is heard of, and looked at
    becomes(late, JUMBO - OVERHEAD)
    assert wide == 1420
    assert inside(a) == JUMBO - OVERHEAD
