"""`why` follows the rules that kube-proxy has written, and says what the packets do."""

from __future__ import annotations

from typing import Any

import pytest

from .listeners import ask
from .objects import PORT
from .scene import NETWORKS, Scene, host

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def path(scene: Scene, *words: str) -> dict[str, Any]:
    """The one path that node 1's `why` tells."""
    (found,) = scene.nodes[0].tool("why", *words)["paths"]
    return dict(found)


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("network", NETWORKS)
def test_why_says_what_containers_reach(scene: Scene, network: str, six: bool) -> None:
    scene.bridged(1)
    me = scene.containers[f"{network}-web"]
    source = me.address6 if six else me.address
    other = "red" if network == "flat" else "flat"
    names = [f"{network}-{name}" for name in ("self", "other", "far", "all", "sticky", "none")] + [f"{other}-other"]
    for service in (scene.services[name] for name in names):
        told = path(scene, source, service.address(six), f"{PORT}/tcp")
        ends = {end["address"] for end in told["endpoints"]}
        assert ends == {c.address6 if six else c.address for c in service.containers}, service.name
        own = service.name.startswith(network) and bool(service.containers)
        assert told["allowed"] is own, (service.name, told)
        if len(service.containers) == 1:
            answer = ask(me.netns, service.address(six), PORT, wait=1.0 if not own else 3.0)
            assert bool(answer) is own, service.name


def test_why_names_what_refuses_a_service_without_endpoints(scene: Scene) -> None:
    me, service = scene.containers["flat-web"], scene.services["flat-none"]
    told = path(scene, me.address, service.address(False), str(PORT))
    assert not told["allowed"]
    assert told["rule"] is None
    assert "without an endpoint" in told["reason"]
    assert ask(me.netns, service.address(False), PORT) == "refused"


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_why_says_what_a_node_port_does(scene: Scene, six: bool) -> None:
    one = scene.nodes[0]
    for name, ends, allowed in (
        ("flat-here", ["flat-web"], True),
        ("flat-away", ["flat-far"], True),
        ("red-here", ["red-web"], True),
        ("red-away", ["red-far"], False),
        ("red-local", ["red-web"], True),
    ):
        service = scene.services[name]
        told = path(scene, "2001:db8:99::9" if six else "192.0.2.99", host(one, six), str(service.node_port))
        wanted = [scene.containers[end] for end in ends]
        assert [end["address"] for end in told["endpoints"]] == [c.address6 if six else c.address for c in wanted]
        assert told["allowed"] is allowed, (name, told)
        balanced = path(scene, "2001:db8:99::9" if six else "192.0.2.99", service.balanced(six), str(PORT))
        assert (balanced["allowed"], balanced["endpoints"]) == (told["allowed"], told["endpoints"]), name


@pytest.mark.parametrize("bridged", [0, 1])
def test_why_knows_the_cell_that_needs_br_netfilter(scene: Scene, bridged: int) -> None:
    scene.bridged(bridged)
    me, service = scene.containers["flat-web"], scene.services["flat-same"]
    told = path(scene, me.address, service.address(False), str(PORT))
    reached = ask(me.netns, service.address(False), PORT) != ""
    assert told["allowed"] is reached is (bool(bridged) or scene.attach != "bridge")
