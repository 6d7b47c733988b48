"""A neighbour that knows an address with another MAC learns the new one at once."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from cni.host import announce, links, ports
from cni.host.announce import Announcer
from cni.host.kernel import Kernel
from cni.host.links import Port
from cni.host.netlink import Netlink

from .conftest import Space

pytestmark = pytest.mark.root
OLD, NEW, BRIDGE = "0a:00:00:00:00:01", "0a:00:00:00:00:02", "02:00:00:00:00:05"
MINE = [ipaddress.ip_interface(text) for text in ("10.9.0.70/26", "10.9.0.71/26", "fd00:9::170/120", "fd00:9::171/120")]


@pytest.fixture
def bridge(netlink: Netlink) -> int:
    return links.ensure_bridge(netlink, "zt-b", BRIDGE, 1420).index


@pytest.fixture
def neighbour(netlink: Netlink, bridge: int, container: Space) -> Space:
    """A container that knows each of MINE with the MAC OLD, and believes it for a long time."""
    own = [ipaddress.ip_interface("10.9.0.66/26"), ipaddress.ip_interface("fd00:9::166/120")]
    host, inside, _ = links.create_port(
        netlink, Port("zt-0", "02:00:00:00:01:00", bridge, 1420, "eth0", BRIDGE), container.fd
    )
    ports.configure(container.fd, inside, "eth0", own, [])
    links.raise_port(netlink, host)
    for address in MINE:
        container.ip(f"neigh add {address.ip} lladdr {OLD} dev eth0 nud reachable")
    return container


@pytest.fixture
def announcer(host: Space) -> Iterator[Announcer]:
    made = host.inside(Announcer)
    yield made
    made.close()


def macs(space: Space) -> set[str]:
    """The MACs with which the namespace knows its neighbours of MINE."""

    def look(ipr: object) -> set[str]:
        mine = {str(address.ip) for address in MINE}
        return {n.get("lladdr") for n in ipr.get_neighbours() if n.get("dst") in mine}  # type: ignore[attr-defined]

    return space.read(look)


def wait(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def plug(netlink: Netlink, bridge: int, space: Space) -> tuple[int, int]:
    """The next container with the addresses MINE, whose host end is still down."""
    port = Port("zt-1", "02:00:00:00:01:01", bridge, 1420, "eth0", NEW)
    host, inside, _ = links.create_port(netlink, port, space.fd)
    ports.configure(space.fd, inside, "eth0", MINE, [])
    return host, inside


def test_the_neighbours_learn_every_address(
    netlink: Netlink, bridge: int, neighbour: Space, announcer: Announcer, spaces: Callable[[], Space]
) -> None:
    space = spaces()
    host, _ = plug(netlink, bridge, space)
    announcer.announce(host, space.fd, "eth0", NEW, [address.ip for address in MINE])
    time.sleep(0.1)
    assert macs(neighbour) == {OLD}, "an announcement waits for the host end"
    links.raise_port(netlink, host)
    wait(lambda: macs(neighbour) == {NEW})


def test_an_announcement_of_what_is_gone_is_dropped(
    netlink: Netlink, bridge: int, announcer: Announcer, spaces: Callable[[], Space]
) -> None:
    space = spaces()
    host, _ = plug(netlink, bridge, space)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        announcer.announce(host, space.fd, "eth7", NEW, [MINE[0].ip])
    links.remove_link(netlink, "zt-1")
    announcer.announce(host, space.fd, "eth0", NEW, [MINE[0].ip])
    wait(announcer._queue.empty)
    wait(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_process_that_ends_soon_announces_at_once(
    host: Space, netlink: Netlink, bridge: int, neighbour: Space, spaces: Callable[[], Space]
) -> None:
    space = spaces()
    index, _ = plug(netlink, bridge, space)
    links.raise_port(netlink, index)
    host.inside(lambda: announce.send_now(index, space.fd, "eth0", NEW, [address.ip for address in MINE]))
    wait(lambda: macs(neighbour) == {NEW})


def test_a_bridge_whose_mac_is_put_right_announces_its_gateways(host: Space, neighbour: Space) -> None:
    kernel = host.inside(Kernel)
    host.inside(lambda: kernel.ensure_bridge("zt-b", BRIDGE, 1420, MINE))
    host.ip(f"link set zt-b address {OLD}")
    wait(lambda: macs(neighbour) == {OLD})
    host.inside(lambda: kernel.ensure_bridge("zt-b", BRIDGE, 1420, MINE))
    wait(lambda: macs(neighbour) == {BRIDGE})
    kernel.close()


def test_the_frames_are_those_of_the_standards() -> None:
    arp = announce.frame(NEW, ipaddress.ip_address("10.9.0.70"))
    assert arp.hex() == "ffffffffffff0a0000000002080600010800060400010a00000000020a0900460000000000000a090046"
    advertisement = announce.frame(NEW, ipaddress.ip_address("fd00:9::170"))
    assert advertisement[:14].hex() == "3333000000010a000000000286dd"
    assert advertisement[54:62].hex()[:4] == "8800" and advertisement[58:62].hex() == "20000000"
    assert advertisement[62:78] == socket.inet_pton(socket.AF_INET6, "fd00:9::170")
    assert advertisement[78:].hex() == "02010a0000000002"
