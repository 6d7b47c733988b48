"""`isolation.reach` and `isolation.from` on two nodes: cluster DNS and an API server for members of a network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import pytest

from tests.mesh.fleet import Container, wait_for

from .kube_proxy import MODES
from .listeners import ask
from .objects import PORT, TARGET
from .scene import Scene, host, opened

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
ALL = 15  # the number of the service `flat-all`, as the scene counts
ISOLATION = {
    "reach": [
        f"10.96.0.{ALL}:{PORT}/tcp",
        f"[fd00:96::{ALL:x}]:{PORT}/tcp",
        f"10.96.0.{ALL}:{PORT}/udp",
        "service/dns",
    ],
    "from": ["nodes", "service/monitor"],
}


@pytest.fixture(scope="module", params=[*MODES, "nftables by the list"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """With the entries above, in the nodes' settings or in the network list; a container of the listed services on
    node 2."""
    mode, _, by_list = request.param.partition(" ")
    with opened(mode, os.environ.get("ZLAYER_ATTACH", "bridge"), ISOLATION, bool(by_list)) as made:
        made.bridged(1)
        for service in ("dns", "monitor"):
            made.containers[service] = made.nodes[1].container(service)
            made.listeners.add(made.containers[service])
        yield made


def met(me: Container, address: str, udp: bool = False) -> set[str]:
    """Who answers 24 calls, each of which is answered."""
    answers = [ask(me.netns, address, PORT, udp) for _ in range(24)]
    assert all(answers), answers
    return {answer.partition(" ")[0] for answer in answers}


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("name", ["red-web", "red-far"])
def test_members_reach_a_listed_service_on_any_node(scene: Scene, name: str, six: bool) -> None:
    """Endpoints on the client's bridge, on another one, and on the other node, whichever the client is on."""
    me, service = scene.containers[name], scene.services["flat-all"]
    assert service.number == ALL
    everyone = {container.name for container in service.containers}
    wait_for(lambda: ask(me.netns, service.address(six), PORT), "the endpoints to be followed")
    wait_for(lambda: all(ask(me.netns, service.address(six), PORT) for _ in range(12)), "every endpoint", 20, 0.5)
    assert met(me, service.address(six)) == everyone
    if not six:
        assert met(me, service.address(six), udp=True) == everyone


def test_nothing_else_is_open(scene: Scene) -> None:
    me = scene.containers["red-web"]
    for name in ("flat-other", "flat-far"):
        assert ask(me.netns, scene.services[name].address(False), PORT, wait=1.0) == ""
    flat = scene.containers["flat-db"]
    assert ask(flat.netns, me.address, TARGET, wait=1.0) == ""
    assert ask(scene.containers["dns"].netns, me.address, TARGET, wait=1.0) == ""


def test_members_reach_a_listed_service_of_the_overlay(scene: Scene) -> None:
    me, dns = scene.containers["red-web"], scene.containers["dns"]
    for udp in (False, True):
        wait_for(partial(ask, me.netns, dns.address, TARGET, udp), "the service's containers")
        assert ask(me.netns, dns.address6, TARGET, udp) == f"{dns.name} {me.address6}"
    told = scene.nodes[0].tool("why", me.address, dns.address, f"{TARGET}/udp")["paths"][0]
    assert told["allowed"]
    assert told["rule"]["name"] == "isolation.reach"


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_listed_senders_reach_members_on_any_node(scene: Scene, six: bool) -> None:
    monitor, one, outside = scene.containers["monitor"], scene.nodes[0], f"/run/netns/{scene.fleet.underlay}"
    for name in ("red-web", "red-far"):
        member = scene.containers[name]
        address = member.address6 if six else member.address
        wait_for(partial(ask, monitor.netns, address, TARGET), "the sender to be known")
        assert ask(monitor.netns, address, TARGET, udp=True).startswith(member.name)
    far = scene.containers["red-far"]
    assert ask(one.path, far.address6 if six else far.address, TARGET).startswith(far.name), "the API server's way"
    port = scene.services["red-away"].node_port
    assert ask(outside, host(one, six), port).startswith(far.name), "a NodePort, with the node's address"


def test_what_is_listed_ends_with_its_container(scene: Scene) -> None:
    me, two = scene.containers["red-web"], scene.nodes[1]
    late = two.container("dns")
    scene.listeners.add(late)
    wait_for(lambda: ask(me.netns, late.address, TARGET), "the new container of the service")
    address = late.address
    two.remove(late)
    wait_for(lambda: not scene.nodes[0].why(me.address, address), "the service without it")
