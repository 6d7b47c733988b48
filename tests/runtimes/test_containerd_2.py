"""containerd 2 and CNI 1.1.0: pods, and the STATUS that it asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .containerd import Containerd, version_2
from .cri import Cri, Pod
from .machine import FAR_OUTSIDE, Machine, told, wait_for
from .plugin import Plugin
from .tools import containerd_2, cri_call, needed


def newest(plugin: Plugin, **keys: Any) -> dict[str, Any]:
    """The conflist at CNI 1.1.0, without what is chained: Debian's portmap does not speak it."""
    conflist = plugin.with_first(**keys) | {"cniVersion": "1.1.0"}
    return conflist | {"plugins": conflist["plugins"][:1]}


def started(machine: Machine, conflist: dict[str, Any], paths: pytest.TempPathFactory) -> Cri:
    """The CRI socket of a containerd 2 with this conflist."""
    needed("containerd", "ctr", "runc", "busybox")
    if not Plugin(machine.plugin, conflist).speaks(machine, "1.1.0"):
        pytest.skip(f"{machine.plugin.name} does not speak CNI 1.1.0")
    scratch = paths.mktemp("containerd-2")
    Containerd(machine, {"runc": conflist}, scratch / "containerd.log", version_2(containerd_2()))
    return Cri(machine, cri_call(), scratch)


@pytest.fixture(scope="module")
def sockets(machine: Machine, plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Cri:
    """The CRI socket."""
    made = started(machine, newest(plugin), tmp_path_factory)
    wait_for("the runtime says that it and its network are ready", made.ready)
    return made


@pytest.fixture
def cri(sockets: Cri, nothing_left: None) -> Iterator[Cri]:
    """The CRI socket; every pod that the test left is taken down, and then nothing may be left."""
    yield sockets
    for pod in sockets.pods():
        Pod(sockets, "left over", pod).remove()


def test_two_pods_reach_each_other_and_the_outside(cri: Cri) -> None:
    one, two = cri.run("one").network, cri.run("two").network
    for here, there in ((one, two.address), (two, one.address), (one, FAR_OUTSIDE)):
        pinged = here.reaches(there)
        assert pinged.returncode == 0, told(pinged)


def test_the_runtime_reports_the_address_that_the_pod_has(cri: Cri) -> None:
    pod = cri.run("one")
    assert pod.address == pod.network.address


def test_a_pods_whole_life_leaves_nothing(cri: Cri, machine: Machine) -> None:
    def cycle() -> None:
        pod = cri.run("one")
        for step in (pod.stop, pod.stop, pod.remove, pod.remove):
            step()

    cycle()  # makes what stays
    before = machine.settled()
    cycle()
    machine.settles_at(before)


def test_a_pod_whose_namespace_vanished_is_taken_down(cri: Cri, machine: Machine, plugin: Plugin) -> None:
    pod = cri.run("gone")
    path = pod.network.path
    machine.must("umount", path)
    machine.must("rm", path)
    for step in (pod.stop, pod.remove):
        step()
    machine.ports_become(set())
    assert plugin.leases(machine) == []


def test_the_node_is_ready_when_the_daemon_is(plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without autostart, STATUS fails until the daemon is started, and the node says why it is not ready."""
    if not plugin.is_ours:
        pytest.skip("a daemon behind the plugin is zlayer-cni's own")
    machine = Machine(plugin.path)
    try:
        cri = started(machine, newest(plugin, autostart=False), tmp_path_factory)
        waiting = wait_for("the runtime answers", cri.conditions)["NetworkReady"]
        assert not waiting.get("status")
        assert "daemon" in waiting["message"]
        log = tmp_path_factory.mktemp("daemon") / "overlayd.log"
        machine.start(f"/run/zlt/plugin/{plugin.path.name}", "overlayd", log=log)
        wait_for("the network is ready", lambda: cri.conditions()["NetworkReady"].get("status"))
        assert cri.run("one").network.addresses
    finally:
        machine.close()
