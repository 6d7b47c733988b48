"""What other programs change is announced to the daemon; what an ADD or DEL causes is dropped in the kernel."""

from __future__ import annotations

import ipaddress
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from cni.host import addressing, links, netconf
from cni.host.monitor import Change, Monitor
from cni.host.netconf import SettingsEar
from cni.host.nft import Nft
from cni.host.nft_elements import Change as ElementChange
from cni.host.nft_elements import Element
from cni.host.nft_news import Ear, Interest
from cni.host.worker import Crew

from .conftest import Space

pytestmark = pytest.mark.root
PORT, PEER, BRIDGE = "zl-0123456789-v", "zl-9876543210-v", "zl-abc-b"


@pytest.fixture
def heard(host: Space) -> Iterator[list[Change]]:
    changes: list[Change] = []
    monitor = host.inside(lambda: Monitor(changes.append, Crew()))
    monitor.start()
    yield changes
    monitor.close()


def comes(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 2
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_ports_are_not_announced(host: Space, heard: list[Change]) -> None:
    host.ip(f"link add {BRIDGE} type bridge", f"link add {PORT} type veth peer name {PEER}")
    host.ip(f"link set {PORT} master {BRIDGE}", f"link set {PORT} up", f"link set {PORT} down", f"link del {PORT}")
    host.ip("link add other type bridge")
    assert comes(lambda: bool(heard))
    assert heard == [Change("other", is_loss=False)]


def test_what_others_do_is_announced(host: Space, heard: list[Change]) -> None:
    host.ip(f"link add {BRIDGE} type bridge", f"link add {PORT} type veth peer name {PEER}")
    host.ip(f"link set {PORT} name renamed")
    assert comes(lambda: Change("renamed", is_loss=False) in heard)
    for address in ("192.0.2.1/24", "192.0.2.2/32"):  # in clouds an uplink may have a single address
        heard.clear()
        host.ip(f"address add {address} dev renamed")
        assert comes(lambda: Change("", is_loss=False) in heard)
        host.ip(f"address del {address} dev renamed")
        assert comes(lambda: Change("", is_loss=True) in heard)
    host.ip(f"link del {BRIDGE}")
    assert comes(lambda: Change(BRIDGE, is_loss=True) in heard)


def test_only_what_others_do_to_our_links_is_announced(host: Space, heard: list[Change]) -> None:
    """An address or a route of the overlay's link is announced under the link's name, and not if this process made
    it."""
    host.ip(f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up", "link set lo up")
    with host.netlink() as own:
        bridge, gateway = links.find_link(own, BRIDGE), ipaddress.ip_interface("10.9.0.65/26")
        assert bridge is not None
        addressing.ensure_address(own, bridge.index, gateway)
        addressing.remove_address(own, bridge.index, gateway)
        addressing.ensure_address(own, 1, ipaddress.ip_interface("192.0.2.9/32"))
        assert comes(lambda: Change("", is_loss=False) in heard)  # on lo, which is the host's
        assert Change(BRIDGE, is_loss=True) not in heard
        host.ip(f"address add {gateway} dev {BRIDGE}", f"address del {gateway} dev {BRIDGE}")
        assert comes(lambda: Change(BRIDGE, is_loss=True) in heard)


def test_forwarding_is_announced_when_it_is_switched_off(host: Space) -> None:
    versions = [4]
    ear = host.inside(lambda: SettingsEar(lambda: versions))
    try:
        host.ip(f"link add {PORT} type veth peer name {PEER}", "link set lo up")
        ear.read()

        def switch(setting: str) -> None:
            subprocess.run(["ip", "netns", "exec", host.name, "sysctl", "-qw", f"net.{setting}"], check=True)

        switch("ipv4.conf.lo.forwarding=1")
        switch("ipv6.conf.lo.forwarding=0")
        assert ear.read() == set()
        switch("ipv4.conf.lo.forwarding=0")
        assert ear.read() == {1}
        versions.append(6)
        assert ear.read() == set()
        switch("ipv6.conf.all.forwarding=1")
        switch("ipv6.conf.all.forwarding=0")
        assert netconf.ALL in ear.read()
    finally:
        ear.close()


def test_own_changes_of_elements_are_not_announced(host: Space) -> None:
    nft = host.inside(Nft)
    ear = host.inside(lambda: Ear(Interest("t", frozenset), lambda: nft.portid))
    try:
        nft.run("table inet t { set s { type ipv4_addr; }; }")
        assert ear.read().ours()
        nft.run(ElementChange("t", add=(Element("inet", "s", "192.0.2.1"),)))
        assert not ear.read().ours()
        other = "add element inet t s { 192.0.2.2 }"
        subprocess.run(["ip", "netns", "exec", host.name, "nft", other], check=True)
        news = ear.read()
        assert news.sets == {("inet", "s")}
        assert len(news.generations) == 1
    finally:
        ear.close()
        nft.close()
