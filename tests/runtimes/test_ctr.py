"""containerd's own client: `ctr run --cni`, with runc, as a person at a node's shell would."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .containerd import Containerd
from .ctr import Container, Ctr
from .machine import FAR_OUTSIDE, NODE, OUTSIDE, Machine, told
from .plugin import Plugin
from .tools import needed

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(scope="module")
def ctr(machine: Machine, plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Ctr:
    """ctr, and its private containerd."""
    needed("containerd", "ctr", "runc", "busybox")
    Containerd(machine, {"runc": plugin.conflist}, tmp_path_factory.mktemp("ctr") / "containerd.log")
    return Ctr(machine)


@pytest.fixture
def container(ctr: Ctr, nothing_left: None) -> Iterator[Container]:
    """A running container."""
    with ctr.running("first") as running:
        yield running


def test_a_container_has_one_interface_and_one_address(container: Container) -> None:
    network = container.network
    assert set(network.links) == {"lo", "eth0"}
    assert "UP" in network.links["lo"]["flags"], "loopback is down"
    assert len(network.addresses) == 1


def test_the_cached_result_tells_the_truth(container: Container, machine: Machine, plugin: Plugin) -> None:
    (name,) = machine.cached_results()
    result = json.loads(machine.must("cat", f"/var/lib/cni/results/{name}"))["result"]
    assert [ip["address"] for ip in result["ips"]] == container.network.addresses
    assert result["ips"][0]["gateway"] == container.network.gateway
    inside = result["interfaces"][result["ips"][0]["interface"]]
    assert (inside["name"], inside["sandbox"]) == ("eth0", f"/proc/{container.process}/ns/net")
    assert inside["mac"] == container.network.links["eth0"]["address"]
    host_side = {i["name"]: i["mac"] for i in result["interfaces"] if not i.get("sandbox")}
    assert host_side == {name: machine.links()[name]["address"] for name in host_side}
    assert machine.ports() <= set(host_side)


def test_a_container_pings_its_gateway(container: Container) -> None:
    pinged = container.run("/bin/ping", "-c", "1", "-W", "10", container.network.gateway)
    assert pinged.returncode == 0, told(pinged)


def test_two_containers_ping_each_other(container: Container, ctr: Ctr) -> None:
    with ctr.running("second") as other:
        assert other.network.address != container.network.address
        for here, there in ((container, other), (other, container)):
            pinged = here.run("/bin/ping", "-c", "1", "-W", "10", there.network.address)
            assert pinged.returncode == 0, told(pinged)


@pytest.mark.parametrize("address", [NODE, OUTSIDE, FAR_OUTSIDE])
def test_a_container_pings_what_lies_outside_the_overlay(container: Container, address: str) -> None:
    pinged = container.run("/bin/ping", "-c", "1", "-W", "10", address)
    assert pinged.returncode == 0, told(pinged)


def test_the_network_is_there_before_the_first_process(ctr: Ctr) -> None:
    ran = ctr.run("early", "/bin/sh", "-c", f"ip route && ping -c 1 -W 10 {FAR_OUTSIDE}")
    assert ran.returncode == 0, told(ran)
    assert "default via" in ran.stdout


def test_the_exit_code_is_the_containers_own(ctr: Ctr) -> None:
    ran = ctr.run("seven", "/bin/sh", "-c", "exit 7")
    assert ran.returncode == 7, told(ran)


@pytest.mark.reference_fault("DEL with an empty CNI_NETNS leaves the masquerade rules")
def test_a_container_run_and_gone_leaves_nothing(ctr: Ctr, machine: Machine) -> None:
    def cycle(name: str) -> None:
        ran = ctr.run(name, "/bin/true")
        assert ran.returncode == 0, told(ran)

    cycle("warm")  # makes what stays: the bridge, chains, the daemon
    before = machine.settled()
    cycle("again")
    machine.settles_at(before)


def test_the_same_name_can_be_run_again(ctr: Ctr) -> None:
    for _ in range(2):
        ran = ctr.run("again-and-again", "/bin/ping", "-c", "1", "-W", "10", OUTSIDE)
        assert ran.returncode == 0, told(ran)
