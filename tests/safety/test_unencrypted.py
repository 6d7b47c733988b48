"""Between nodes nothing goes unencrypted: what is for the overlay leaves by a tunnel, or it is dropped and counted.

A capture on the underlay sees every frame, while containers and the node itself go on sending.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.mesh.capture import Capture
from tests.mesh.etcds import Clustered
from tests.mesh.fleet import Container, Node, inside, run, wait_for

RANGE6 = "fd00:200::/48"
DROP = re.compile(r'counter packets (\d+) .*comment "overlay without a tunnel"')


@dataclass
class Senders:
    """Datagrams to one port, again and again, from all containers that were added. A context manager."""

    sockets: list[tuple[socket.socket, list[str]]] = field(default_factory=list)
    sent: int = 0

    def add(self, path: str, *addresses: str) -> None:
        """From the namespace at `path`, to these addresses."""
        for family in (socket.AF_INET, socket.AF_INET6):
            there = [a for a in addresses if (":" in a) == (family == socket.AF_INET6)]
            self.sockets.append((inside(path, lambda f=family: socket.socket(f, socket.SOCK_DGRAM)), there))  # type: ignore[misc]

    def __enter__(self) -> Senders:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(10)
        for made, _ in self.sockets:
            made.close()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            for made, addresses in self.sockets:
                for address in addresses:
                    with contextlib.suppress(OSError):  # dropped on its way out (EPERM), or there is no route at all
                        made.sendto(b"in the clear", (address, 7777))
                    self.sent += 1

    def some_more(self, count: int = 200) -> None:
        """Return when so many more were sent."""
        goal = self.sent + count
        wait_for(lambda: self.sent >= goal, "datagrams")


def dropped(node: Node) -> int:
    """How many packets the fence kept from leaving without a tunnel."""
    listing = run("ip", "netns", "exec", node.name, "nft", "list", "table", "inet", "zlayer_cni")
    return sum(int(found) for found in DROP.findall(listing))


def six(made: Clustered, node: Node) -> None:
    """The underlay has IPv6 too, and the node a default route there."""
    run("ip", "-n", made.underlay, "address", "replace", "2001:db8:51::fe/64", "dev", "under0", "nodad")
    run("ip", "-n", node.name, "address", "add", f"2001:db8:51::{node.number}/64", "dev", "eth0", "nodad")
    run("ip", "-n", node.name, "route", "add", "default", "via", "2001:db8:51::fe")


@pytest.fixture
def pair(clustered: Clustered, program: tuple[str, ...]) -> Callable[..., tuple[Node, Node]]:
    """Makes two nodes of a cluster, of both families, that run the frozen program."""

    def make(**settings: object) -> tuple[Node, Node]:
        nodes = []
        for number in (1, 2):
            node = clustered.member(number, start=False, cluster_cidr6=RANGE6, **settings)
            node.program = program
            six(clustered, node)
            node.start()
            nodes.append(node)
        return nodes[0], nodes[1]

    return make


def members(one: Node, two: Node) -> dict[str, Container]:
    """A member of a network and one on the flat mesh, on each; the first node knows of the second's member."""
    found = {
        "red1": one.container("red", isolationNetwork="red"),
        "red2": two.container("red", isolationNetwork="red"),
        "flat1": one.container("flat"),
        "flat2": two.container("flat"),
    }
    wait_for(lambda: knows(one, found["red2"]), "what is said of red")
    return found


def knows(node: Node, member: Container) -> bool:
    """Whether the node knows of a member elsewhere."""
    networks = node.tool("networks")["networks"]
    return any(member.address in each["remote_members"] for each in networks)


@contextlib.contextmanager
def senders(one: Node, found: dict[str, Container]) -> Iterator[Senders]:
    """The first node's containers and the node itself send to the second's containers."""
    red, flat = ([found[name].address, found[name].address6] for name in ("red2", "flat2"))
    made = Senders()
    made.add(found["red1"].netns, *red)
    made.add(found["flat1"].netns, *flat)
    made.add(one.path, *red, *flat, "10.200.255.77", "fd00:200:0:ffff::77")
    with made:
        yield made


def subnet(address: str) -> str:
    """The slot that an address is of."""
    return str(ipaddress.ip_interface(f"{address}/{120 if ':' in address else 26}").network)


@pytest.mark.usefixtures("engine")
def test_nothing_leaves_unencrypted_when_the_tunnel_is_gone(
    clustered: Clustered, pair: Callable[..., tuple[Node, Node]]
) -> None:
    """An engine that dies, a daemon and an engine that are both dead, a route of the host's."""
    one, two = pair()
    found = members(one, two)
    for name in ("red", "flat"):
        wait_for(lambda name=name: found[f"{name}1"].pings(found[f"{name}2"].address), "IPv4")  # type: ignore[misc]
        wait_for(lambda name=name: found[f"{name}1"].pings(found[f"{name}2"].address6), "IPv6")  # type: ignore[misc]
    with Capture(f"/run/netns/{clustered.underlay}") as capture, senders(one, found) as sending:
        sending.some_more()
        before = dropped(one)
        engine = one.engine()
        os.kill(engine, signal.SIGKILL)  # the daemon is there and starts another
        wait_for(lambda: one.engine() not in (0, engine), "another engine")
        wait_for(lambda: found["red1"].pings(found["red2"].address), "traffic again")
        assert capture.strange() == {}
        one.end(signal.SIGKILL)
        for each in (found["red2"], found["flat2"]):
            for address in (each.address, each.address6):
                via = "2001:db8:51::2" if ":" in address else two.underlay
                run("ip", "-n", one.name, "route", "replace", subnet(address), "via", via)
        sending.some_more()
        assert capture.strange() == {}
        os.kill(one.engine(), signal.SIGKILL)
        wait_for(lambda: not one.engine(), "the engine's end")
        sending.some_more()
        assert dropped(one) > before + 100
        assert capture.strange() == {}
        assert capture.expected > 0


def test_nothing_leaves_unencrypted_without_an_engine(
    clustered: Clustered, pair: Callable[..., tuple[Node, Node]]
) -> None:
    one, two = pair(wireguard_engine="none")
    found = members(one, two)
    before = dropped(one)
    with Capture(f"/run/netns/{clustered.underlay}") as capture, senders(one, found) as sending:
        sending.some_more(600)
        wait_for(lambda: capture.expected, "the store's traffic")
        assert capture.strange() == {}
    assert dropped(one) > before + 100
    status = one.tool("status")
    assert any(each["code"] == "wireguard-device" for each in status["problem_details"])
    for name in ("red", "flat"):
        answer = one.tool("why", found[f"{name}1"].address, found[f"{name}2"].address)
        assert not answer["allowed"]
        assert answer["paths"][0]["rule"]["name"] == "overlay without a tunnel"
    assert one.tool("why", "node", found["red2"].address)["paths"][0]["rule"]["name"] == "overlay without a tunnel"


def test_the_hosts_routes_carry_the_overlay_where_the_yaml_says_so(
    clustered: Clustered, pair: Callable[..., tuple[Node, Node]]
) -> None:
    """`underlay: routed`: by the host's routes, unencrypted, and the networks are apart all the same."""
    one, two = pair(wireguard_engine="none", underlay="routed")
    found = members(one, two)
    found["blue2"] = two.container("blue", isolationNetwork="blue")
    for each, here, there in (
        ("red2", one, two),
        ("flat2", one, two),
        ("blue2", one, two),
        ("red1", two, one),
        ("flat1", two, one),
    ):
        for address in (found[each].address, found[each].address6):
            via = f"2001:db8:51::{there.number}" if ":" in address else there.underlay
            run("ip", "-n", here.name, "route", "replace", subnet(address), "via", via)
    with Capture(f"/run/netns/{clustered.underlay}") as capture:
        for name in ("red", "flat"):
            a, b = found[f"{name}1"], found[f"{name}2"]
            wait_for(lambda a=a, b=b: a.pings(b.address), f"{name} by the host's routes")  # type: ignore[misc]
            wait_for(lambda a=a, b=b: a.pings(b.address6), f"{name} by the host's routes, IPv6")  # type: ignore[misc]
            assert one.why(a.address, b.address)
        assert any(found["red1"].address in what for what in capture.strange())
    wait_for(lambda: knows(one, found["blue2"]), "what is said of blue")
    for src in ("red1", "flat1"):
        assert not found[src].pings(found["blue2"].address, wait=0.4)
        assert not one.why(found[src].address, found["blue2"].address)
    for node in (one, two):
        status = node.tool("status")
        assert status["problems"] == []
        assert any("not encrypted" in note for note in status["notes"])
        assert "not encrypted" in node.cli("status", "--run-dir", str(node.directory / "run")).stdout


def test_routed_needs_that_there_is_no_engine(clustered: Clustered, program: tuple[str, ...]) -> None:
    for number, settings in enumerate(
        ({"underlay": "routed"}, {"underlay": "routed", "wireguard_engine": "auto"}, {"underlay": "clear"}), 1
    ):
        node = clustered.member(number, start=False, **settings)
        node.program = program
        with pytest.raises(AssertionError):
            node.start()
        said = node.log.read_text()
        assert "underlay" in said
        assert str(settings["underlay"]) in said
        assert "Traceback" not in said
        assert node.daemon is not None
        assert node.daemon.wait(10) == 1
