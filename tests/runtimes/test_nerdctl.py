"""nerdctl: containerd's client for people, which calls CNI from an OCI hook."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .containerd import Containerd
from .machine import FAR_OUTSIDE, NODE, OUTSIDE, Machine, told, wait_for
from .nerdctl import Container, Nerdctl
from .plugin import Plugin
from .tools import needed, nerdctl

pytestmark = pytest.mark.more

HOST_PORT = 18091
SERVES = ("sh", "-c", "while true; do nc -l -p 8080 -e echo served by the container; done")
SECOND, CLOSED = "zlt-2", "zlt-3"


@pytest.fixture(scope="module")
def containerd(machine: Machine, plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Containerd:
    """containerd, and the networks that the tests need."""
    needed("containerd", "ctr", "runc", "busybox")
    nerdctl()
    machine.write("/etc/cni/net.d/20-zlt.conflist", json.dumps(plugin.another(2)))
    if plugin.is_ours:
        closed = plugin.another(3, isolationNetwork="closed")
        machine.write("/etc/cni/net.d/30-zlt.conflist", json.dumps(closed))
    return Containerd(machine, {"runc": plugin.conflist}, tmp_path_factory.mktemp("nerdctl") / "containerd.log")


@pytest.fixture(scope="module")
def tool(containerd: Containerd, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Nerdctl:
    """nerdctl, with the image that the tests run."""
    return Nerdctl(machine, nerdctl(), tmp_path_factory.mktemp("image"))


@pytest.fixture
def client(tool: Nerdctl, nothing_left: None) -> Iterator[Nerdctl]:
    """nerdctl; whatever the test left is taken down, and then nothing may be left."""
    yield tool
    tool.remove_all()


@pytest.fixture
def container(client: Nerdctl, plugin: Plugin) -> Container:
    """A running container."""
    return client.start("first", plugin.network)


class TestNetworks:
    """What nerdctl makes of a conflist that it did not write."""

    def test_it_is_listed(self, client: Nerdctl, plugin: Plugin) -> None:
        listed = client.must("network", "ls", "--format", "{{.Name}}").split()
        assert {plugin.network, SECOND} <= set(listed)

    def test_it_can_be_inspected(self, client: Nerdctl, plugin: Plugin) -> None:
        (seen,) = json.loads(client.must("network", "inspect", plugin.network))
        assert seen["Name"] == plugin.network

    def test_it_is_nobodys_to_remove(self, client: Nerdctl, plugin: Plugin) -> None:
        refused = client.run("network", "rm", plugin.network)
        assert refused.returncode != 0
        assert "managed outside nerdctl" in refused.stderr
        client.must("network", "prune", "--force")
        assert plugin.network in client.must("network", "ls", "--format", "{{.Name}}").split()


class TestLife:
    """A container from `nerdctl run` to `nerdctl rm`."""

    def test_nerdctl_tells_what_the_container_has(self, container: Container) -> None:
        network, told_by_nerdctl = container.network, container.inspected["NetworkSettings"]
        assert set(network.links) == {"lo", "eth0"}
        assert "UP" in network.links["lo"]["flags"], "loopback is down"
        assert [f"{told_by_nerdctl['IPAddress']}/{told_by_nerdctl['IPPrefixLen']}"] == network.addresses
        assert told_by_nerdctl["MacAddress"] == network.links["eth0"]["address"]

    def test_it_reaches_its_gateway_and_the_outside(self, container: Container) -> None:
        for address in (container.network.gateway, NODE, OUTSIDE, FAR_OUTSIDE):
            container.pings(address)

    def test_two_reach_each_other_by_address_and_name(
        self, container: Container, client: Nerdctl, plugin: Plugin
    ) -> None:
        second = client.start("second", plugin.network)
        container.pings(second.network.address)
        second.pings("first")

    def test_an_address_asked_for(self, container: Container, client: Nerdctl, plugin: Plugin) -> None:
        net, _, last = container.network.gateway.rpartition(".")
        address = f"{net}.{int(last) + 40}"
        given = client.start("given", plugin.network, "--ip", address)
        assert given.network.address == address
        container.pings(address)
        refused = client.run(*client.run_words("late", plugin.network, "--ip", address))
        assert refused.returncode != 0
        assert address in refused.stderr
        container.pings(address)

    def test_two_networks(self, client: Nerdctl, plugin: Plugin) -> None:
        both = client.start("both", plugin.network, "--network", SECOND)
        other = client.start("other", SECOND)
        links = both.network.links
        assert set(links) == {"lo", "eth0", "eth1"}
        (second,) = [a["local"] for a in links["eth1"]["addr_info"] if a["family"] == "inet"]
        other.pings(second)

    def test_the_network_is_there_before_the_first_process(self, client: Nerdctl, plugin: Plugin) -> None:
        ran = client.run(
            *client.run_words("early", plugin.network, command=("ping", "-c", "1", "-W", "10", FAR_OUTSIDE))
        )
        assert ran.returncode == 0, told(ran)

    def test_stop_takes_the_interface_away_and_start_gives_one(
        self, container: Container, machine: Machine, plugin: Plugin
    ) -> None:
        client = container.nerdctl
        client.must("stop", "--time", "0", container.name)
        machine.ports_become(set())
        wait_for("the hook has called DEL", lambda: plugin.leases(machine) == [])
        client.must("start", container.name)
        container.pings(FAR_OUTSIDE)
        client.must("restart", "--time", "0", container.name)
        container.pings(FAR_OUTSIDE)
        assert len(plugin.leases(machine)) == 1

    @pytest.mark.reference_fault("DEL with an empty CNI_NETNS leaves the masquerade rules")
    def test_a_whole_life_leaves_nothing(self, client: Nerdctl, machine: Machine, plugin: Plugin) -> None:
        def cycle(name: str) -> None:
            client.start(name, plugin.network, "--publish", f"{HOST_PORT}:8080")
            client.remove(name)

        cycle("warm")  # makes what stays: the bridge, chains, the daemon
        before = machine.settled()
        cycle("again")
        machine.settles_at(before)

    def test_run_and_gone(self, client: Nerdctl, machine: Machine, plugin: Plugin) -> None:
        ran = client.run(*client.run_words("once", plugin.network, "--rm", command=("true",)))
        assert ran.returncode == 0, told(ran)
        machine.ports_become(set())
        wait_for("the hook has called DEL", lambda: plugin.leases(machine) == [])

    def test_the_daemon_stays_in_no_container(self, container: Container, machine: Machine, plugin: Plugin) -> None:
        """The hook runs in the container's bundle; a daemon started from there must not go on standing in it."""
        if not plugin.is_ours:
            pytest.skip("a daemon behind the plugin is zlayer-cni's own")
        seen = [machine.must("readlink", f"/proc/{p}/cwd").strip() for p in machine.processes(plugin.path.name)]
        assert seen
        assert set(seen) == {"/"}


class TestPublished:
    """A published port, by the chained portmap."""

    @pytest.fixture
    def server(self, client: Nerdctl, plugin: Plugin) -> Container:
        """A container that answers on a published port."""
        made = client.start("web", plugin.network, "--publish", f"{HOST_PORT}:8080", command=SERVES)
        wait_for("something listens", lambda: ":8080" in made.network.run("ss", "-Hltn").stdout)
        return made

    @pytest.mark.parametrize("where", ["outside", "node"])
    def test_it_leads_to_the_container(self, server: Container, machine: Machine, where: str) -> None:
        enter = ("ip", "netns", "exec", "zlt-outside") if where == "outside" else ()
        answer = machine.run(*enter, "busybox", "nc", "-w", "20", NODE, str(HOST_PORT))
        assert answer.stdout.strip() == "served by the container", told(answer)

    def test_it_closes_with_the_container(self, server: Container, machine: Machine) -> None:
        server.nerdctl.remove(server.name)
        assert str(HOST_PORT) not in "\n".join(machine.firewall())


class TestOurs:
    """Keys of our own in a conflist."""

    @pytest.fixture(autouse=True)
    def _only_ours(self, plugin: Plugin) -> None:
        if not plugin.is_ours:
            pytest.skip("keys of zlayer-cni's own")

    def test_a_closed_network(self, container: Container, client: Nerdctl) -> None:
        one, two = client.start("one", CLOSED), client.start("two", CLOSED)
        one.pings(two.network.address)
        one.pings(FAR_OUTSIDE)
        for here, there in ((container, one), (one, container)):
            pinged = here.run("ping", "-c", "1", "-W", "1", there.network.address)
            assert pinged.returncode == 1, f"the fence let it through: {told(pinged)}"


class TestTrouble:
    """When things die."""

    def test_a_container_killed_with_its_shim_starts_again(
        self, container: Container, machine: Machine, plugin: Plugin
    ) -> None:
        """No hook runs then: nerdctl makes the DEL, without a namespace, before the next ADD."""
        number = str(container.inspected["State"]["Pid"])
        shim = machine.must("sh", "-c", 'sed "s/.*) . //; s/ .*//" "/proc/$0/stat"', number).strip()
        machine.must("kill", "-9", shim, number)
        machine.ports_become(set())
        container.nerdctl.machine.run(*container.nerdctl.words, "start", container.name)
        wait_for("the container starts again", lambda: container.nerdctl.run("start", container.name).returncode == 0)
        container.pings(FAR_OUTSIDE)
        assert len(plugin.leases(machine)) == 1
