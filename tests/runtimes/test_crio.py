"""CRI-O's calls, made by the library that CRI-O makes them with (ocicni), at CNI 1.0.0 and 1.1.0.

CRI-O itself is not run here; what it adds around the library is restated in ocicni-call: addresses come from a CHECK
right after ADD, each call may come from a new process, and a start collects garbage.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from .machine import FAR_OUTSIDE, NODE, Machine, told, wait_for
from .ocicni import Ocicni, Refused
from .plugin import Plugin
from .tools import needed, ocicni_call

pytestmark = pytest.mark.more

SECOND = "zlt-2"
OFFSETS = itertools.count(40)


def at(version: str, conflist: dict[str, Any], *, chained: bool) -> dict[str, Any]:
    """The conflist at a version of CNI; `chained` keeps what comes after the plugin under test."""
    return conflist | {"cniVersion": version, "plugins": conflist["plugins"] if chained else conflist["plugins"][:1]}


@pytest.fixture(scope="module", params=["1.0.0", "1.1.0"])
def library(request: pytest.FixtureRequest, machine: Machine, plugin: Plugin) -> Ocicni:
    """The library with two networks of this version (Debian's portmap speaks no 1.1.0: nothing is chained there)."""
    needed("busybox")
    version = request.param
    chained = version != "1.1.0"
    networks = [at(version, conflist, chained=chained) for conflist in (plugin.conflist, plugin.another(2))]
    if not Plugin(plugin.path, networks[0]).speaks(machine, version):
        pytest.skip(f"{plugin.path.name} does not speak CNI {version}")
    return Ocicni(machine, ocicni_call(), f"crio-{version}", networks)


@pytest.fixture
def crio(library: Ocicni, nothing_left: None) -> Iterator[Ocicni]:
    """The library; every pod that the test left is taken down, and then nothing may be left."""
    yield library
    library.remove_all()


def test_status_is_asked_before_the_first_pod(crio: Ocicni) -> None:
    crio.call("status")


def test_the_kubelet_is_told_what_the_pod_has(crio: Ocicni) -> None:
    pod = crio.run("one")
    assert pod.addresses == pod.network.addresses
    assert set(pod.network.links) == {"lo", "eth0"}


def test_a_pod_reaches_its_gateway_the_node_a_neighbour_and_the_outside(crio: Ocicni) -> None:
    one, two = crio.run("one").network, crio.run("two").network
    for address in (one.gateway, NODE, two.address, FAR_OUTSIDE):
        pinged = one.reaches(address)
        assert pinged.returncode == 0, told(pinged)


def test_a_restarted_crio_finds_the_pod_as_it_was(crio: Ocicni) -> None:
    pod = crio.run("one")
    assert pod.check() == pod.results


def test_check_sees_an_interface_that_was_taken_away(crio: Ocicni, machine: Machine) -> None:
    pod = crio.run("one")
    machine.must("nsenter", f"--net={pod.network.path}", "ip", "link", "delete", "eth0")
    with pytest.raises(Refused, match="eth0"):
        pod.check()


def test_stop_twice(crio: Ocicni, machine: Machine, plugin: Plugin) -> None:
    pod = crio.run("one")
    for _ in range(2):
        pod.stop()
        machine.ports_become(set())
        assert plugin.leases(machine) == []


@pytest.mark.parametrize("netns", [None, ""], ids=["by its path", "without a path"])
def test_a_pod_whose_namespace_vanished_is_stopped(
    crio: Ocicni, machine: Machine, plugin: Plugin, netns: str | None
) -> None:
    pod = crio.run("gone")
    pod.vanish()
    pod.stop(netns)
    machine.ports_become(set())
    assert plugin.leases(machine) == []


def test_two_networks_and_their_interfaces(crio: Ocicni, plugin: Plugin) -> None:
    pod = crio.run("both", networks={plugin.network: "eth0", SECOND: "net7"})
    assert set(pod.network.links) == {"lo", "eth0", "net7"}
    assert [result["interface"] for result in pod.results] == ["eth0", "net7"]
    assert len(pod.check()) == 2


def test_an_address_and_a_mac_asked_for(crio: Ocicni) -> None:
    net, _, last = crio.run("one").network.gateway.rpartition(".")
    # An address rests for some seconds after its use, and the network of both versions is one.
    address, mac = f"{net}.{int(last) + next(OFFSETS)}", "02:00:00:00:00:42"
    pod = crio.run("given", IP=address, MAC=mac)
    assert pod.network.address == address
    assert pod.network.links["eth0"]["address"] == mac


def test_annotations_choose_service_and_isolation_network(crio: Ocicni, plugin: Plugin) -> None:
    if not plugin.is_ours:
        pytest.skip("annotations of zlayer-cni's own")
    closed = {"com.zlayer.service": "web", "com.zlayer.isolation_network": "blue"}
    plain, one, two = crio.run("plain"), crio.run("one", annotations=closed), crio.run("two", annotations=closed)
    assert one.network.segment == two.network.segment != plain.network.segment
    pinged = one.network.reaches(two.network.address)
    assert pinged.returncode == 0, told(pinged)
    pinged = plain.network.reaches(one.network.address, seconds=1)
    assert pinged.returncode == 1, f"the fence let it through: {told(pinged)}"


def test_an_add_that_fails_is_undone_by_the_stop_that_follows(crio: Ocicni, machine: Machine, plugin: Plugin) -> None:
    pod = crio.sandbox("refused", MAC="01:00:00:00:00:01")
    with pytest.raises(Refused):
        crio.call("run", Pod=pod.fields)
    pod.stop()
    machine.ports_become(set())
    assert plugin.leases(machine) == []


class TestCollect:
    """What CRI-O's start does about pods that died while it was away."""

    def test_the_dead_go_and_the_living_stay(self, crio: Ocicni, machine: Machine, plugin: Plugin) -> None:
        dead, alive = crio.run("dead"), crio.run("alive")
        crio.collect(alive)
        assert len(plugin.leases(machine)) == 1
        assert set(dead.network.links) == {"lo"}
        assert alive.check() == alive.results
        pinged = alive.network.reaches(FAR_OUTSIDE)
        assert pinged.returncode == 0, told(pinged)

    @pytest.mark.reference_fault("its address management collects no garbage")
    def test_what_libcni_has_forgotten_goes_too(self, crio: Ocicni, machine: Machine, plugin: Plugin) -> None:
        """A cache that was lost with the disk: only GC's list of the living tells the plugin who is dead."""
        if not crio.directory.endswith("1.1.0.d"):
            pytest.skip("GC came with CNI 1.1.0")
        dead, alive = crio.run("dead"), crio.run("alive")
        machine.must("sh", "-c", 'rm /var/lib/cni/results/*"$0"*', dead.fields["ID"])
        dead.vanish()
        crio.collect(alive)
        wait_for("one attachment is left", lambda: len(plugin.leases(machine)) == 1)
        assert alive.check() == alive.results

    def test_nobody_alive(self, crio: Ocicni, machine: Machine, plugin: Plugin) -> None:
        for name in ("one", "two"):
            crio.run(name)
        crio.collect()
        machine.ports_become(set())
        assert plugin.leases(machine) == []


def test_status_tells_that_the_daemon_is_down(machine: Machine, plugin: Plugin) -> None:
    """Without autostart, CRI-O says why its network is not ready."""
    if not plugin.is_ours:
        pytest.skip("a daemon behind the plugin is zlayer-cni's own")
    keys = {"autostart": False, "runDir": "/run/zlt-none", "dataDir": "/var/lib/zlt-none"}
    conflist = at("1.1.0", plugin.another(9, **keys), chained=False)
    with pytest.raises(Refused, match="daemon"):
        Ocicni(machine, ocicni_call(), "crio-none", [conflist]).call("status")
