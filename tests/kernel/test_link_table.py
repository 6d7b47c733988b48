"""The table of links follows every change of links as the kernel's own list has it, without a list in the kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cni.host import links, nlmsg
from cni.host.link_table import ANEW, LinkTable
from cni.host.netlink import Netlink
from cni.host.networks_reader import NetworksReader

from .conftest import Space

pytestmark = pytest.mark.root
CHANGES = (
    "link add zl-abc-b type bridge",
    "link add zl-0123456789-v type veth peer name far",
    "link set zl-0123456789-v master zl-abc-b",
    "link set far up",
    "link set zl-0123456789-v up",
    "link set zl-abc-b up",
    "link set zl-0123456789-v type bridge_slave hairpin on",
    "link set zl-0123456789-v alias zl-cni:net/c1/eth0",
    "link set zl-0123456789-v mtu 1400",
    "link set zl-abc-b address 02:00:00:00:00:05",
    "link set far down",
    "link set zl-0123456789-v down",
    "link set zl-0123456789-v name renamed",
    "link set renamed nomaster",
    "link add other type bridge",
    "link del renamed",
    "link del zl-abc-b",
)


class Times:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def table(host: Space, times: Times) -> Iterator[LinkTable]:
    made = host.inside(lambda: LinkTable(times))
    yield made
    made.close()


def known(table: LinkTable) -> dict[str, links.Link]:
    return {link.name: link for link in table.now()}


def listed(netlink: Netlink) -> dict[str, links.Link]:
    return {link.name: link for link in links.list_links(netlink)}


def test_every_change_is_followed(host: Space, netlink: Netlink, table: LinkTable) -> None:
    assert known(table) == listed(netlink)
    for change in CHANGES:
        host.ip(change)
        assert known(table) == listed(netlink), change


def test_changes_by_sysfs_are_followed(host: Space, netlink: Netlink, table: LinkTable) -> None:
    host.ip("link add name sw type bridge", "link add name port type veth peer name far", "link set port master sw")
    assert not known(table)["port"].hairpin
    write = "echo 1 > /sys/class/net/port/brport/hairpin_mode"
    subprocess.run(["ip", "netns", "exec", host.name, "sh", "-c", write], check=True)
    assert known(table)["port"].hairpin
    assert known(table) == listed(netlink)


def test_a_link_that_leaves_and_comes_back(host: Space, netlink: Netlink, container: Space, table: LinkTable) -> None:
    host.ip("link add name moved type veth peer name stays")
    assert "moved" in known(table)
    host.ip(f"link set moved netns {container.name}")
    assert "moved" not in known(table)
    container.ip(f"link set moved netns {host.name}")
    assert known(table) == listed(netlink)


def test_after_lost_notifications_the_list_is_read(
    host: Space, netlink: Netlink, table: LinkTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(table)
    nlmsg.widen(table._news, 8, 4096)  # SO_RCVBUF
    host.ip(*(f"link add other{number} type bridge" for number in range(40)))
    assert known(table) == listed(netlink)


def test_the_list_is_read_anew_after_a_while(table: LinkTable, times: Times) -> None:
    """Whatever was not announced is found then."""
    known(table)
    (lo,) = table._links.values()
    table._links[lo.index] = replace(lo, mtu=1)
    times.now += ANEW - 1
    assert known(table)["lo"].mtu == 1
    times.now += 1
    assert known(table)["lo"].mtu != 1


def test_the_networks_are_read_again_only_after_a_change_of_the_host(host: Space, times: Times) -> None:
    reader = host.inside(lambda: NetworksReader(times))
    try:
        host.ip("link set lo up", "link add eth1 type bridge", "link add zl-abc-b type bridge")
        first = host.inside(reader.now)
        host.ip("link set zl-abc-b up", "address add 10.9.0.1/26 dev zl-abc-b")
        assert host.inside(reader.now).addresses is first.addresses
        for change in ("address add 192.0.2.1/24 dev eth1", "link set eth1 up", "address add 10.9.1.1/32 dev lo"):
            before = host.inside(reader.now)
            host.ip(change)
            assert host.inside(reader.now) != before, change
        host.ip("link del eth1")
        assert not [seen for seen in host.inside(reader.now).routes if "eth1" in seen.by]
        before = host.inside(reader.now)
        times.now += ANEW
        assert host.inside(reader.now).addresses is not before.addresses
    finally:
        reader.close()
