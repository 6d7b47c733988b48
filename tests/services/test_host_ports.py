"""Host ports by portmap, beside kube-proxy; and client affinity."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.fleet import Container

from .listeners import ask
from .objects import PORT, TARGET
from .scene import NETWORKS, Scene, host

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
PORTMAP = Path("/usr/lib/cni/portmap")
HOST_PORT = {"flat": 18080, "red": 18081}


def portmap(verb: str, container: Container, number: int) -> None:
    """The plugin portmap on the container's node, for TCP and UDP."""
    mappings = [{"hostPort": number, "containerPort": TARGET, "protocol": each} for each in ("tcp", "udp")]
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "snat": True}
    conf |= {"runtimeConfig": {"portMappings": mappings}, "prevResult": {**container.result, "cniVersion": "1.0.0"}}
    call = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container.name, "CNI_NETNS": container.netns}
    env = {**os.environ, **call, "CNI_IFNAME": "eth0", "CNI_PATH": str(PORTMAP.parent)}
    command = ["ip", "netns", "exec", container.node.name, str(PORTMAP)]
    subprocess.run(command, env=env, input=json.dumps(conf).encode(), capture_output=True, timeout=60, check=True)


@pytest.fixture(scope="module")
def published(scene: Scene) -> Iterator[Scene]:
    """`flat-web` and `red-web` have host ports."""
    if not PORTMAP.exists():
        pytest.skip(f"{PORTMAP} is not there (containernetworking-plugins)")
    for network in NETWORKS:
        portmap("ADD", scene.containers[f"{network}-web"], HOST_PORT[network])
    yield scene
    for network in NETWORKS:
        portmap("DEL", scene.containers[f"{network}-web"], HOST_PORT[network])


@pytest.mark.parametrize("bridged", [0, 1])
@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("network", NETWORKS)
def test_host_ports(published: Scene, network: str, six: bool, bridged: int) -> None:
    """From outside, from the container itself, from its own network on another bridge and from no other network."""
    published.bridged(bridged)
    me, fellow = (published.containers[f"{network}-{name}"] for name in ("web", "db"))
    other = published.containers["red-db" if network == "flat" else "flat-db"]
    address, port = host(published.nodes[0], six), HOST_PORT[network]
    outside = f"/run/netns/{published.fleet.underlay}"
    for udp in (False, True):
        answers = [ask(netns, address, port, udp) for netns in (outside, me.netns, fellow.netns)]
        assert [answer.partition(" ")[0] for answer in answers] == [me.name] * 3, udp
    assert ask(other.netns, address, port, wait=1.0) == ""


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_client_affinity(scene: Scene, six: bool) -> None:
    """The endpoint of the first call, on this node or on the other, answers every call."""
    scene.bridged(1)
    for network in NETWORKS:
        me, service = scene.containers[f"{network}-web"], scene.services[f"{network}-sticky"]
        for udp in (False, True):
            answers = {ask(me.netns, service.address(six), PORT, udp).partition(" ")[0] for _ in range(10)}
            assert len(answers) == 1
            assert answers <= {container.name for container in service.containers}


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_no_call_to_a_service_is_slow(scene: Scene, six: bool) -> None:
    """Three endpoints, the client one of them: every call is answered at once, where a lost packet costs a second."""
    scene.bridged(1)
    for name in ("web2", "db"):
        me, service = scene.containers[f"flat-{name}"], scene.services["flat-all"]
        ask(me.netns, service.address(six), PORT)  # neighbours are learned
        answers = [ask(me.netns, service.address(six), PORT, udp, wait=0.9) for udp in (False, True) for _ in range(20)]
        assert all(answers), answers
        assert len({answer.partition(" ")[0] for answer in answers}) == len(service.containers)
