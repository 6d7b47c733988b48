"""Who reaches whom by a service, cell by cell (docs/services.md)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .listeners import ask
from .objects import PORT, TARGET
from .scene import NETWORKS, OUTSIDE4, OUTSIDE6, Scene, host

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(params=[0, 1], ids=["nf-call-0", "nf-call-1"])
def bridged(scene: Scene, request: pytest.FixtureRequest) -> Iterator[int]:
    """bridge-nf-call-iptables and bridge-nf-call-ip6tables."""
    scene.bridged(request.param)
    yield request.param


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("network", NETWORKS)
def test_containers_reach_services(scene: Scene, bridged: int, network: str, six: bool) -> None:
    me = scene.containers[f"{network}-web"]
    direct = scene.containers[f"{network}-web2"]
    names = {name: scene.services[f"{network}-{name}"] for name in ("self", "same", "other", "far")}
    seen, wanted = {}, {}
    for udp in (False, True):
        kind = "udp" if udp else "tcp"
        answer = ask(me.netns, direct.address6 if six else direct.address, TARGET, udp)
        seen[f"{kind} directly"], wanted[f"{kind} directly"] = answer, f"{direct.name} {of(me, six)}"
        for name, service in names.items():
            (behind,) = service.containers
            answer = ask(me.netns, service.address(six), PORT, udp)
            seen[f"{kind} {name}"] = answer.partition(" ")[0]
            wanted[f"{kind} {name}"] = (
                "" if name == "same" and not bridged and scene.attach == "bridge" else behind.name
            )
    assert seen == wanted


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_the_node_reaches_services(scene: Scene, bridged: int, six: bool) -> None:
    one = scene.nodes[0]
    for network in NETWORKS:
        for name in ("self", "other"):
            service = scene.services[f"{network}-{name}"]
            answer = ask(one.path, service.address(six), PORT)
            assert answer.partition(" ")[0] == service.containers[0].name, service.name
    service = scene.services["flat-far"]
    assert ask(one.path, service.address(six), PORT).partition(" ")[0] == service.containers[0].name


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_node_ports_from_outside(scene: Scene, bridged: int, six: bool) -> None:
    """On the container's own node and on the other one; a member of a network only on its own."""
    outside, one = f"/run/netns/{scene.fleet.underlay}", scene.nodes[0]
    seen, wanted = {}, {}
    for udp in (False, True):
        for network in NETWORKS:
            for name in ("here", "away", "local"):
                service, cell = scene.services[f"{network}-{name}"], f"{network} {name} {'udp' if udp else 'tcp'}"
                seen[cell] = ask(outside, host(one, six), service.node_port, udp)
                source = seen[cell].partition(" ")[2]
                wanted[cell] = f"{service.containers[0].name} {source}"
                if name == "local":
                    wanted[cell] = f"{service.containers[0].name} {OUTSIDE6 if six else OUTSIDE4}"
                if (network, name) == ("red", "away"):
                    wanted[cell] = ""
    assert seen == wanted


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_node_ports_from_containers(scene: Scene, bridged: int, six: bool) -> None:
    """A container keeps its own address to the other node, so that a member reaches its own network there."""
    one = scene.nodes[0]
    seen, wanted = {}, {}
    for network in NETWORKS:
        me, service = scene.containers[f"{network}-web"], scene.services[f"{network}-away"]
        (behind,) = service.containers
        for udp in (False, True):
            cell = f"{network} {'udp' if udp else 'tcp'}"
            seen[cell] = ask(me.netns, host(one, six), service.node_port, udp)
            wanted[cell] = f"{behind.name} {of(me, six)}"
    other = scene.services["red-away"]
    seen["flat to red"] = ask(scene.containers["flat-web"].netns, host(one, six), other.node_port)
    wanted["flat to red"] = ""
    assert seen == wanted


def of(container: object, six: bool) -> str:
    """The container's own address."""
    return str(getattr(container, "address6" if six else "address"))
