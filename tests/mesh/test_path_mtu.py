"""The path's MTU is measured through the tunnel: what a narrow link, a forged message and a wider link change."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni.host import wg_engine

from .fixtures import engine
from .fleet import Container, Fleet, Node, echoes, fleet, kernel_has_wireguard, link, run, seconds_until, wait_for
from .narrow import Narrow

__all__ = ["engine"]

pytestmark = pytest.mark.root
WIDE, NARROW = 1500, 1400
INSIDE = 1328  # bytes: (1400 - 60) in whole blocks of 16


@pytest.fixture
def made() -> Iterator[Fleet]:
    with fleet("n") as new:
        yield new


@pytest.fixture(params=["userspace", "kernel"])
def pair(made: Fleet, request: pytest.FixtureRequest) -> tuple[Node, Node]:
    if request.param == "userspace":
        request.getfixturevalue("engine")
    elif not kernel_has_wireguard():
        pytest.skip("this kernel has no WireGuard: scripts/test vm")
    engine = "kernel" if request.param == "kernel" else Path(wg_engine.find()).name
    one, two = (made.node(number, start=False, wireguard_engine=engine) for number in (1, 2))
    link(one, two)
    return one, two


def route_mtu(node: Node, address: str) -> int:
    """The MTU of the route to an address; 0 for that of the device."""
    (found,) = node.ip("route", "show", "to", "match", address, "dev", node.device)[-1:]
    return next((int(metric["mtu"]) for metric in found.get("metrics", ()) if "mtu" in metric), 0)


def has_route_mtu(node: Node, far: Container, mtu: int) -> bool:
    return route_mtu(node, far.address) == mtu


def problems(node: Node) -> list[dict[str, str]]:
    return list(node.tool("status")["problem_details"])


def engine_of(node: Node) -> str:
    return str(node.settings["wireguard_engine"])


def stream(one: Container, two: Container, size: int = 300_000) -> bool:
    return echoes(one, two, socket.SOCK_STREAM, size)


def test_tcp_passes_a_narrow_link_behind_a_router_that_filters_icmp(
    pair: tuple[Node, Node], measured: Callable[[str], None]
) -> None:
    """On either engine: kernel WireGuard sends datagrams that a router may fragment, and the next one drops these."""
    one, two = pair
    narrow = Narrow(two, NARROW)
    for node in pair:
        node.start()
    a, b = one.container(), two.container()
    wait_for(lambda: a.pings(b.address), "the tunnel")
    seconds = seconds_until(lambda: stream(a, b), "TCP", 20)
    measured(f"{engine_of(one)}: TCP passes a narrow link {seconds:.1f} s after the first packet")
    for node, far in ((one, b), (two, a)):
        wait_for(functools.partial(has_route_mtu, node, far, INSIDE), "the route", 10)
        (problem,) = wait_for(functools.partial(problems, node), "the problem", 15)
        assert problem["code"] == "path-mtu-narrow"
        assert str(INSIDE + 60) in problem["text"]
        (peer,) = node.tool("peers")
        assert (peer["path_mtu"], peer["path_mtu_measured"]) == (INSIDE + 60, True)
    assert a.pings(b.address, INSIDE - 28)
    # It narrows further while a stream runs, and the daemon begins anew with what it had measured.
    narrow.carries(1300)
    seconds = seconds_until(lambda: stream(a, b), "TCP", 30)
    measured(f"{engine_of(one)}: TCP passes again {seconds:.1f} s after the path narrowed")
    assert route_mtu(one, b.address) == 1232
    one.end()
    one.start()
    assert route_mtu(one, b.address) == 1232


def test_what_a_router_says_of_a_narrow_link_counts(pair: tuple[Node, Node], measured: Callable[[str], None]) -> None:
    """On either engine: kernel WireGuard's datagrams are fragmented to the size that the kernel was told, so that a
    larger packet passes does not refute the router."""
    one, two = pair
    Narrow(two, NARROW, silent=False, fragments=True)
    for node in pair:
        node.start()
    a, b = one.container(), two.container()
    wait_for(lambda: a.pings(b.address), "the tunnel")
    # A flow of the host itself is told, as that of an etcd or of an API server between the nodes.
    ask = ("ip", "netns", "exec", one.name, "ping", "-c", "1", "-W", "1", "-M", "do", "-s", "1472", two.underlay)
    run(*ask, check=False)
    seconds = seconds_until(lambda: stream(a, b) and route_mtu(one, b.address) == INSIDE, "the narrow path", 20)
    measured(f"{engine_of(one)}: what a router says of a path is followed after {seconds:.1f} s")
    wait_for(lambda: stream(a, b) and one.tool("peers")[0]["path_mtu_measured"], "a measurement", 20)
    assert one.tool("peers")[0]["path_mtu"] == (NARROW if engine_of(one) == "kernel" else INSIDE + 60)
    assert problems(one) == []
    assert route_mtu(one, b.address) == INSIDE


@pytest.mark.long
def test_a_path_that_widens_is_used_again(pair: tuple[Node, Node], measured: Callable[[str], None]) -> None:
    one, two = pair
    narrow = Narrow(two, NARROW)
    for node in pair:
        node.start()
    a, b = one.container(), two.container()
    wait_for(lambda: a.pings(b.address), "the tunnel")
    wait_for(lambda: stream(a, b) and route_mtu(one, b.address) == INSIDE, "the narrow path", 20)
    narrow.carries(WIDE)
    seconds = seconds_until(lambda: stream(a, b) and route_mtu(one, b.address) == 0, "the wide path", 60)
    measured(f"a wider path is used after {seconds:.0f} s")
    fresh = one.container()  # what an ICMP error has told a container, its kernel keeps for ten minutes
    wait_for(lambda: fresh.pings(b.address, fresh.mtu - 28), "all of it", 5)
    wait_for(lambda: not one.tool("status")["problems"], "the end of the problem", 15)
