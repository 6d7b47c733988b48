"""Pods, as a kubelet has them made: through the CRI socket of a private containerd."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from .containerd import Containerd
from .cri import Cri, Pod, Refused
from .machine import FAR_OUTSIDE, NODE, Machine, told, wait_for
from .network import Network
from .plugin import Plugin
from .tools import cri_call, needed

CALLS = "/run/zlt/calls"
HOST_PORT = 18080
LISTEN = ("busybox", "nc", "-l", "-p", "8080", "-e", "echo", "served by the pod")


@pytest.fixture(scope="module")
def containerd(machine: Machine, plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Containerd:
    """containerd with one runtime handler for each kind of chain that the tests need."""
    needed("containerd", "ctr", "runc", "busybox")
    handlers = {
        "runc": plugin.conflist,
        "late": plugin.with_chain(after=["zlt-fails"]),
        "hangs": plugin.with_chain(after=["zlt-hangs"]),
        "taken": plugin.with_chain(before=["zlt-takes"]),
        "wrong": plugin.with_first(mtu="many"),
    }
    return Containerd(machine, handlers, tmp_path_factory.mktemp("cri") / "containerd.log")


@pytest.fixture(scope="module")
def sockets(containerd: Containerd, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Cri:
    """The CRI socket."""
    made = Cri(machine, cri_call(), tmp_path_factory.mktemp("image"))
    wait_for("the runtime says that it and its network are ready", made.ready)
    return made


@pytest.fixture
def cri(sockets: Cri, nothing_left: None) -> Iterator[Cri]:
    """The CRI socket; every pod that the test left is taken down, and then nothing may be left."""
    sockets.machine.must("rm", "-f", CALLS)
    yield sockets
    for pod in sockets.pods():
        try:
            Pod(sockets, "left over", pod).remove()
        except Refused:
            sockets.stuck.add(pod)
            raise


def service_of(name: str) -> dict[str, str]:
    """The annotation by which a pod chooses its service."""
    return {"com.zlayer.service": name}


class TestLife:
    """A pod from RunPodSandbox to RemovePodSandbox."""

    def test_the_runtime_reports_the_address_that_the_pod_has(self, cri: Cri) -> None:
        pod = cri.run("one")
        assert pod.network.addresses
        assert pod.address == pod.network.address
        assert set(pod.network.links) == {"lo", "eth0"}

    def test_a_pod_reaches_its_gateway_and_the_outside(self, cri: Cri) -> None:
        network = cri.run("one").network
        for address in (network.gateway, NODE, FAR_OUTSIDE):
            pinged = network.reaches(address)
            assert pinged.returncode == 0, told(pinged)

    def test_two_pods_reach_each_other(self, cri: Cri) -> None:
        one, two = cri.run("one").network, cri.run("two").network
        assert one.address != two.address
        for here, there in ((one, two), (two, one)):
            pinged = here.reaches(there.address)
            assert pinged.returncode == 0, told(pinged)

    def test_stop_takes_the_interface_away(self, cri: Cri, machine: Machine, plugin: Plugin) -> None:
        pod = cri.run("one")
        assert len(machine.ports()) == 1
        assert len(plugin.leases(machine)) == 1
        pod.stop()
        machine.ports_become(set())
        assert plugin.leases(machine) == []
        assert machine.cached_results() == []

    def test_stop_twice_and_remove_twice(self, cri: Cri) -> None:
        pod = cri.run("one")
        for step in (pod.stop, pod.stop, pod.remove, pod.remove):
            step()
        assert cri.pods() == []

    def test_remove_without_stop(self, cri: Cri) -> None:
        cri.run("one").remove()
        assert cri.pods() == []

    def test_a_pods_whole_life_leaves_nothing(self, cri: Cri, machine: Machine) -> None:
        def cycle() -> None:
            pod = cri.run("one", port_mappings=[{"container_port": 8080, "host_port": HOST_PORT}])
            pod.stop()
            pod.remove()

        cycle()  # makes what stays: the bridge, chains, the daemon
        before = machine.settled()
        cycle()
        machine.settles_at(before)

    def test_a_pod_of_the_same_name_can_follow(self, cri: Cri) -> None:
        for _ in range(2):
            pod = cri.run("one")
            pinged = pod.network.reaches(FAR_OUTSIDE)
            assert pinged.returncode == 0, told(pinged)
            pod.stop()
            pod.remove()


class TestHostPort:
    """portmap, chained behind the plugin, with the port mappings of the pod."""

    @pytest.fixture
    def pod(self, cri: Cri) -> Pod:
        """A pod with a host port, and something listening behind it."""
        pod = cri.run("web", port_mappings=[{"container_port": 8080, "host_port": HOST_PORT}])
        words = ("nsenter", f"--net={pod.network.path}", "sh", "-c", '"$@" </dev/null >/dev/null 2>&1 &', "sh")
        cri.machine.must(*words, *LISTEN)
        listens = lambda: ":8080" in pod.network.run("ss", "-Hltn").stdout  # noqa: E731
        wait_for("something listens in the pod", listens)
        return pod

    @pytest.mark.parametrize("where", ["outside", "node"])
    def test_a_host_port_leads_to_the_pod(self, cri: Cri, pod: Pod, where: str) -> None:
        enter = ("ip", "netns", "exec", "zlt-outside") if where == "outside" else ()
        answer = cri.machine.run(*enter, "busybox", "nc", "-w", "20", NODE, str(HOST_PORT))
        assert answer.stdout.strip() == "served by the pod", told(answer)

    def test_a_host_port_closes_with_its_pod(self, cri: Cri, pod: Pod) -> None:
        pod.stop()
        answer = cri.machine.run("ip", "netns", "exec", "zlt-outside", "busybox", "nc", "-w", "3", NODE, str(HOST_PORT))
        assert answer.returncode != 0 and answer.stderr.startswith("nc: "), told(answer)  # nc ran and did not connect
        assert str(HOST_PORT) not in "\n".join(cri.machine.firewall())


class TestService:
    """Which bridge a pod lands on, by its annotation."""

    @pytest.fixture(autouse=True)
    def _only_ours(self, plugin: Plugin) -> None:
        if not plugin.is_ours:
            pytest.skip("com.zlayer.service is an annotation of zlayer-cni's own")

    def test_an_annotation_chooses_the_service(self, cri: Cri) -> None:
        web, more_web, data = (
            cri.run(name, annotations=service_of(service)).network
            for name, service in (("w1", "web"), ("w2", "web"), ("d1", "db"))
        )
        assert web.segment == more_web.segment
        assert web.segment != data.segment
        assert web.gateway == more_web.gateway
        assert web.gateway != data.gateway

    def test_unfenced_services_reach_each_other(self, cri: Cri) -> None:
        web, data = (
            cri.run("w1", annotations=service_of("web")).network,
            cri.run("d1", annotations=service_of("db")).network,
        )
        pinged = web.reaches(data.address)
        assert pinged.returncode == 0, told(pinged)

    def test_a_pod_without_annotation_is_of_the_networks_service(self, cri: Cri, plugin: Plugin) -> None:
        plain, named = cri.run("p1").network, cri.run("p2", annotations=service_of(plugin.network)).network
        assert plain.segment == named.segment


class TestIsolation:
    """Who reaches whom, by the annotation that names a pod's isolation network."""

    @pytest.fixture(autouse=True)
    def _only_ours(self, plugin: Plugin) -> None:
        if not plugin.is_ours:
            pytest.skip("com.zlayer.isolation_network is an annotation of zlayer-cni's own")

    @pytest.mark.parametrize("services", [("web", "web"), ("web", "db")], ids=["one service", "two services"])
    def test_only_members_reach_members(self, cri: Cri, services: tuple[str, str]) -> None:
        def member(name: str, service: str, network: str) -> Network:
            annotations = service_of(service)
            if network:
                annotations["com.zlayer.isolation_network"] = network
            return cri.run(name, annotations=annotations).network

        here, there = services
        blue, more_blue = member("b1", here, "blue"), member("b2", there, "blue")
        green, plain = member("g1", there, "green"), member("p1", there, "")
        for one, two in ((blue, more_blue), (more_blue, blue), (blue, None), (green, None)):
            pinged = one.reaches(two.address if two else FAR_OUTSIDE)
            assert pinged.returncode == 0, told(pinged)
        for one, two in ((blue, green), (green, blue), (plain, blue), (plain, green)):
            pinged = one.reaches(two.address, seconds=1)
            assert pinged.returncode == 1, f"the fence let it through: {told(pinged)}"


class TestVanished:
    """A pod whose network namespace went away behind the runtime's back."""

    @pytest.mark.parametrize("pause", ["lives", "killed"])
    def test_it_can_be_stopped_and_removed(self, cri: Cri, machine: Machine, plugin: Plugin, pause: str) -> None:
        pod = cri.run("gone")
        path, process = pod.network.path, pod.process
        machine.must("umount", path)
        machine.must("rm", path)
        if pause == "killed":
            machine.must("kill", "-9", str(process))
            wait_for("the kernel took the namespace down", lambda: machine.ports() == set())
            wait_for("containerd saw the end of the pod", lambda: not pod.is_ready)
        for step in (pod.stop, pod.stop, pod.remove):
            step()
        machine.ports_become(set())
        assert plugin.leases(machine) == []

    def test_its_address_serves_another_pod(self, cri: Cri, machine: Machine) -> None:
        pod = cri.run("gone")
        path = pod.network.path
        machine.must("umount", path)
        machine.must("rm", path)
        other = cri.run("other")
        pinged = other.network.reaches(FAR_OUTSIDE)
        assert pinged.returncode == 0, told(pinged)
        pod.stop()
        again = other.network.reaches(FAR_OUTSIDE)
        assert again.returncode == 0, f"the DEL of another pod cut this one off: {told(again)}"


class TestFailedAdd:
    """An ADD that fails, and the DELs that containerd then makes of the whole chain."""

    @pytest.mark.parametrize(
        ("handler", "message"),
        [
            pytest.param("late", "zlt-fails fails every ADD", id="a later plugin"),
            pytest.param(
                "wrong",
                "mtu",
                id="a wrong configuration",
                marks=pytest.mark.reference_fault("DEL repeats the configuration's error for ever"),
            ),
            pytest.param("taken", "eth0", id="a taken interface"),
        ],
    )
    def test_the_pod_is_refused_with_the_reason_and_nothing_is_left(
        self, cri: Cri, machine: Machine, plugin: Plugin, handler: str, message: str
    ) -> None:
        cri.run("warm").remove()  # makes what stays
        before = machine.settled()
        with pytest.raises(Refused, match=message):
            cri.run("refused", handler=handler)
        assert cri.pods() == []
        machine.settles_at(before)
        assert plugin.leases(machine) == []

    def test_the_whole_chain_sees_a_del_after_a_failed_add(self, cri: Cri, machine: Machine) -> None:
        with pytest.raises(Refused):
            cri.run("refused", handler="late")
        verbs = [line.split()[0] for line in machine.must("cat", CALLS).splitlines()]
        assert verbs[0] == "ADD"
        assert verbs[1:], "containerd made no DEL: the test above shows nothing"
        assert set(verbs[1:]) == {"DEL"}

    def test_the_same_pod_can_be_made_afterwards(self, cri: Cri) -> None:
        uid = str(uuid.uuid4())
        metadata = {"name": "again", "namespace": "default", "uid": uid, "attempt": 0}
        with pytest.raises(Refused):
            cri.run("again", handler="late", metadata=metadata)
        pod = cri.run("again", metadata=metadata | {"attempt": 1})
        pinged = pod.network.reaches(FAR_OUTSIDE)
        assert pinged.returncode == 0, told(pinged)

    def test_an_add_that_the_runtime_gives_up_on_leaves_nothing(
        self, cri: Cri, machine: Machine, plugin: Plugin
    ) -> None:
        cri.run("warm").remove()
        before = machine.settled()
        with pytest.raises(Refused, match=r"(?i)deadline"):
            cri.run("slow", handler="hangs", seconds=3)
        machine.settles_at(before)
        assert plugin.leases(machine) == []


class TestRestart:
    """The runtime, or the plugin's own daemon, is killed while a pod runs."""

    def test_a_pod_outlives_the_plugins_daemon_and_is_taken_down_by_the_next(
        self, cri: Cri, machine: Machine, plugin: Plugin
    ) -> None:
        if not plugin.is_ours:
            pytest.skip("a daemon behind the plugin is zlayer-cni's own")
        pod = cri.run("lasting")
        daemon = machine.processes(plugin.path.name)
        assert daemon, "autostart started no daemon"
        machine.run("kill", "-9", *daemon)  # one of them may have been its helper, and gone
        wait_for("the daemon is dead", lambda: not set(daemon) & set(machine.processes(plugin.path.name)))
        pinged = pod.network.reaches(FAR_OUTSIDE)
        assert pinged.returncode == 0, told(pinged)
        other = cri.run("next")
        assert other.address != pod.address
        for here, there in ((pod, other), (other, pod)):
            pinged = here.network.reaches(there.address)
            assert pinged.returncode == 0, told(pinged)
        for each in (pod, other):
            each.stop()
            each.remove()
        assert plugin.leases(machine) == []
        machine.ports_become(set())

    def test_a_pod_outlives_the_runtime_and_is_taken_down_by_the_next(
        self, cri: Cri, containerd: Containerd, machine: Machine, plugin: Plugin
    ) -> None:
        pod = cri.run("lasting")
        network, address = pod.network, pod.address
        containerd.kill()
        pinged = network.reaches(FAR_OUTSIDE)
        assert pinged.returncode == 0, told(pinged)
        containerd.start()
        wait_for("the next containerd serves CRI", cri.ready)
        assert pod.address == address
        pod.stop()
        pod.remove()
        machine.ports_become(set())
        assert plugin.leases(machine) == []
