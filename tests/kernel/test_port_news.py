"""What a daemon hears of the container's ends of its veths."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest

from cni.host import links, port_news
from cni.host.links import Port
from cni.host.netlink import Netlink
from cni.host.port_news import PortNews

from .conftest import Space

pytestmark = pytest.mark.root


@pytest.fixture
def news(host: Space) -> Iterator[PortNews]:
    made = host.inside(PortNews)
    yield made
    made.close()


@pytest.fixture
def end(netlink: Netlink, container: Space, news: PortNews) -> tuple[int, int]:
    """The namespace's id and the index of the container's end."""
    bridge = links.ensure_bridge(netlink, "zt-b", "02:00:00:00:00:05", 1420)
    port = Port("zt-0", "02:00:00:00:01:00", bridge.index, 1420, "eth0", "0a:00:00:00:00:01")
    _, inside, _ = links.create_port(netlink, port, container.fd)
    host = links.find_link(netlink, "zt-0")
    assert host is not None and host.peer_netns >= 0
    news.heard()
    return host.peer_netns, inside


def soon(news: PortNews) -> dict[tuple[int, int], str] | None:
    poll = select.poll()
    poll.register(news, select.POLLIN)
    poll.poll(1000)
    return news.heard()


def test_a_changed_mac_in_a_container_is_heard(container: Space, news: PortNews, end: tuple[int, int]) -> None:
    container.ip("link set eth0 address 0a:00:00:00:00:02")
    assert soon(news) == {end: "0a:00:00:00:00:02"}
    assert news.heard() == {}


def test_a_change_of_the_hosts_own_links_is_no_containers(host: Space, news: PortNews, end: tuple[int, int]) -> None:
    host.ip("link set zt-0 address 0a:00:00:00:00:03")
    assert soon(news) == {}


def test_a_container_that_changes_all_the_time_is_read_within_a_bound(
    container: Space, news: PortNews, end: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_news, "MOST_AT_ONCE", 3)
    for number in range(5):
        container.ip(f"link set eth0 address 0a:00:00:00:01:0{number}")
    assert soon(news) is None, "any end may have changed"
    assert news.heard() == {end: "0a:00:00:00:01:04"}


def test_a_new_port_says_where_changes_of_its_end_are_announced(
    netlink: Netlink, container: Space, news: PortNews
) -> None:
    bridge = links.ensure_bridge(netlink, "zt-b", "02:00:00:00:00:05", 1420)
    port = Port("zt-0", "02:00:00:00:01:00", bridge.index, 1420, "eth0", "0a:00:00:00:00:01")
    made = links.create_port(netlink, port, container.fd)
    news.heard()
    container.ip("link set eth0 address 0a:00:00:00:00:02")
    assert soon(news) == {(made.netns_id, made.inside): "0a:00:00:00:00:02"}
