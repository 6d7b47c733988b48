"""podman on its CNI backend, with crun: as on a machine that runs containers without an orchestrator."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .machine import FAR_OUTSIDE, NODE, OUTSIDE, Machine, told, wait_for
from .plugin import Plugin
from .podman import CONFLISTS, Container, Podman
from .tools import needed

pytestmark = pytest.mark.more

HOST_PORT = 18090
SERVES = ("sh", "-c", "while true; do nc -l -p 8080 -e echo served by the container; done")
SECOND, CLOSED, ALIASES, NAMED = "zlt-2", "zlt-3", "zlt-4", "zlt-5"


@pytest.fixture(scope="module")
def engine(machine: Machine, plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Podman:
    """podman, and the networks that the tests need."""
    needed("podman", "conmon", "crun", "busybox")
    conflists = [plugin.conflist, plugin.another(2)]
    if plugin.is_ours:
        conflists.append(plugin.another(3, isolationNetwork="closed"))
        capabilities = plugin.conflist["plugins"][0]["capabilities"]
        conflists.append(plugin.another(4, capabilities=capabilities | {"aliases": True}))
        conflists.append(plugin.another(5, dns={"nameservers": ["192.0.2.53"], "search": ["zlt.example"]}))
    return Podman(machine, conflists, tmp_path_factory.mktemp("podman"))


@pytest.fixture
def podman(engine: Podman, nothing_left: None) -> Iterator[Podman]:
    """podman; whatever the test left is taken down, and then nothing may be left."""
    yield engine
    engine.remove_all()


@pytest.fixture
def container(podman: Podman) -> Container:
    """A running container on the default network."""
    return podman.start("first")


def free_address(container: Container) -> str:
    """A free address of the container's subnet."""
    return container.network.gateway.rpartition(".")[0] + f".{int(container.network.gateway.rpartition('.')[2]) + 40}"


class TestNetworks:
    """What podman makes of a conflist that it did not write."""

    def test_it_is_listed_under_the_name_of_its_plugin(self, podman: Podman, plugin: Plugin) -> None:
        listed = {n["name"]: n["driver"] for n in json.loads(podman.must("network", "ls", "--format", "json"))}
        assert listed[plugin.network] == plugin.path.name
        assert listed[SECOND] == plugin.path.name

    def test_it_can_be_inspected(self, podman: Podman, plugin: Plugin) -> None:
        (seen,) = json.loads(podman.must("network", "inspect", plugin.network))
        assert (seen["name"], seen["driver"]) == (plugin.network, plugin.path.name)

    def test_one_in_use_is_not_removed(self, podman: Podman) -> None:
        podman.start("first", "--network", SECOND)
        refused = podman.run("network", "rm", SECOND)
        assert refused.returncode != 0
        assert "being used" in refused.stderr


class TestLife:
    """A container from `podman run` to `podman rm`."""

    def test_podman_tells_what_the_container_has(self, container: Container, plugin: Plugin) -> None:
        network, told_by_podman = container.network, container.on(plugin.network)
        assert set(network.links) == {"lo", "eth0"}
        assert [f"{told_by_podman['IPAddress']}/{told_by_podman['IPPrefixLen']}"] == network.addresses
        assert told_by_podman["Gateway"] == network.gateway
        assert told_by_podman["MacAddress"] == network.links["eth0"]["address"]

    def test_it_reaches_its_gateway_and_the_outside(self, container: Container) -> None:
        for address in (container.network.gateway, NODE, OUTSIDE, FAR_OUTSIDE):
            container.pings(address)

    def test_two_reach_each_other_also_across_networks(self, container: Container, podman: Podman) -> None:
        beside, elsewhere = podman.start("second"), podman.start("third", "--network", SECOND)
        assert container.network.segment == beside.network.segment
        assert container.network.segment != elsewhere.network.segment
        container.pings(beside.network.address)
        beside.pings(container.network.address)
        container.pings(elsewhere.network.address)

    def test_the_network_is_there_before_the_first_process(self, podman: Podman) -> None:
        with podman.running("early", command=("ping", "-c", "1", "-W", "10", FAR_OUTSIDE)):
            assert podman.must("wait", "early") == "0"

    def test_a_restart_gives_it_a_network_again(self, container: Container) -> None:
        for words in (("restart", "--time", "0"), ("stop", "--time", "0"), ("start",)):
            container.podman.must(*words, container.name)
        container.pings(FAR_OUTSIDE)

    def test_stop_takes_the_interface_away(self, container: Container, machine: Machine, plugin: Plugin) -> None:
        assert len(plugin.leases(machine)) == 1
        container.podman.must("stop", "--time", "0", container.name)
        machine.ports_become(set())
        assert plugin.leases(machine) == []

    def test_one_that_ends_by_itself_gives_its_address_back(
        self, podman: Podman, machine: Machine, plugin: Plugin
    ) -> None:
        podman.start("short", command=("true",))
        podman.must("wait", "short")
        wait_for("podman's clean-up has called DEL", lambda: plugin.leases(machine) == [])
        machine.ports_become(set())

    def test_a_whole_life_leaves_nothing(self, podman: Podman, machine: Machine) -> None:
        def cycle() -> None:
            with podman.running("one", "--publish", f"{HOST_PORT}:8080") as one:
                one.podman.must("restart", "--time", "0", one.name)

        cycle()  # makes what stays: the bridge, chains, the daemon
        before = machine.settled()
        cycle()
        machine.settles_at(before)

    def test_a_container_in_a_user_namespace(self, podman: Podman) -> None:
        """podman makes such a container's network namespace after the container: the kernel's owner is another."""
        inside = podman.start("mapped", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536")
        assert set(inside.network.links) == {"lo", "eth0"}
        inside.pings(FAR_OUTSIDE)

    def test_the_containers_of_a_pod_share_one_attachment(
        self, podman: Podman, machine: Machine, plugin: Plugin
    ) -> None:
        infra = ("--infra-image", "zlt.example/pause:1", "--infra-command", "/bin/sleep 600")
        podman.must("pod", "create", "--name", "pod", *infra)
        one, two = podman.start("one", "--pod", "pod"), podman.start("two", "--pod", "pod")
        assert one.network.address == two.network.address
        assert len(plugin.leases(machine)) == 1
        two.pings(FAR_OUTSIDE)


class TestGiven:
    """What a user may ask for."""

    def test_an_address_and_a_mac(self, container: Container, podman: Podman) -> None:
        address = free_address(container)
        given = podman.start("given", "--ip", address, "--mac-address", "02:00:00:00:00:42")
        assert given.network.address == address
        assert given.network.links["eth0"]["address"] == "02:00:00:00:00:42"
        container.pings(address)

    def test_an_address_that_is_taken(self, container: Container, podman: Podman, plugin: Plugin) -> None:
        address, leases = container.network.address, plugin.leases(podman.machine)
        refused = podman.run(
            "run", "--name", "late", "--ip", address, "--entrypoint", "", "zlt.example/pause:1", "true"
        )
        assert refused.returncode != 0
        assert address in refused.stderr
        podman.remove("late")
        assert plugin.leases(podman.machine) == leases
        container.pings(FAR_OUTSIDE)

    def test_the_interfaces_name(self, podman: Podman, plugin: Plugin) -> None:
        named = podman.start("named", "--network", f"{plugin.network}:interface_name=over0")
        assert set(named.network.links) == {"lo", "over0"}
        named.pings(FAR_OUTSIDE)

    def test_two_networks_and_one_taken_away_and_given_back(self, podman: Podman, plugin: Plugin) -> None:
        both = podman.start("both", "--network", plugin.network, "--network", SECOND)
        assert set(both.network.links) == {"lo", "eth0", "eth1"}
        other = podman.start("other", "--network", SECOND)
        other.pings(both.on(SECOND)["IPAddress"])
        podman.must("network", "disconnect", SECOND, "both")
        assert len(both.network.links) == 2
        podman.must("network", "connect", SECOND, "both")
        other.pings(both.on(SECOND)["IPAddress"])


class TestOurs:
    """Keys of our own in a conflist."""

    @pytest.fixture(autouse=True)
    def _only_ours(self, plugin: Plugin) -> None:
        if not plugin.is_ours:
            pytest.skip("keys of zlayer-cni's own")

    def test_a_closed_network(self, container: Container, podman: Podman) -> None:
        one, two = podman.start("one", "--network", CLOSED), podman.start("two", "--network", CLOSED)
        one.pings(two.network.address)
        one.pings(FAR_OUTSIDE)
        for here, there in ((container, one), (one, container)):
            pinged = here.run("ping", "-c", "1", "-W", "1", there.network.address)
            assert pinged.returncode == 1, f"the fence let it through: {told(pinged)}"

    def test_aliases_are_taken(self, podman: Podman) -> None:
        named = podman.start("named", "--network", f"{ALIASES}:alias=other-name")
        assert "other-name" in named.on(ALIASES)["Aliases"]
        named.pings(FAR_OUTSIDE)

    def test_the_name_servers_of_the_result_reach_the_container(self, podman: Podman) -> None:
        lines = podman.start("asks", "--network", NAMED).run("cat", "/etc/resolv.conf").stdout.splitlines()
        assert "nameserver 192.0.2.53" in lines
        assert any(line.split() == ["search", "zlt.example"] for line in lines)


class TestPublished:
    """A published port, by the chained portmap."""

    @pytest.fixture
    def server(self, podman: Podman) -> Container:
        """A container that answers on a published port."""
        made = podman.start("web", "--publish", f"{HOST_PORT}:8080", command=SERVES)
        wait_for("something listens", lambda: ":8080" in made.network.run("ss", "-Hltn").stdout)
        return made

    @pytest.mark.parametrize("where", ["outside", "node", "neighbour"])
    def test_it_leads_to_the_container(self, server: Container, podman: Podman, where: str) -> None:
        client = podman.start("client").network if where == "neighbour" else None
        enter = ("ip", "netns", "exec", "zlt-outside") if where == "outside" else ()
        words = ("busybox", "nc", "-w", "20", NODE, str(HOST_PORT))
        answer = client.run(*words) if client else podman.machine.run(*enter, *words)
        assert answer.stdout.strip() == "served by the container", told(answer)

    def test_it_closes_with_the_container(self, server: Container, podman: Podman) -> None:
        podman.remove(server.name)
        assert str(HOST_PORT) not in "\n".join(podman.machine.firewall())

    def test_a_reload_of_the_network_keeps_address_and_port(self, server: Container, podman: Podman) -> None:
        """`podman network reload`: DEL, then ADD of the same container with its address asked for."""
        address, mac = server.network.address, server.network.links["eth0"]["address"]
        podman.must("network", "reload", server.name)
        assert (server.network.address, server.network.links["eth0"]["address"]) == (address, mac)
        words = ("ip", "netns", "exec", "zlt-outside", "busybox", "nc", "-w", "20", NODE, str(HOST_PORT))
        answer = podman.machine.run(*words)
        assert answer.stdout.strip() == "served by the container", told(answer)


class TestTrouble:
    """When things vanish."""

    def test_a_container_whose_namespace_vanished_is_let_go(
        self, container: Container, machine: Machine, plugin: Plugin
    ) -> None:
        """podman then makes no DEL at all, and leaves libcni's cached result: the daemon itself has to see it."""
        if not plugin.is_ours:
            pytest.skip("the reference has no daemon that would notice")
        path = container.inspected["NetworkSettings"]["SandboxKey"]
        machine.must("umount", path)
        machine.must("rm", path)
        container.podman.remove(container.name)
        machine.ports_become(set())
        wait_for("the daemon lets the attachment go", lambda: plugin.leases(machine) == [], 90)
        machine.must("sh", "-c", "rm /var/lib/cni/results/*")

    def test_a_conflist_taken_away_does_not_keep_a_container(
        self, podman: Podman, machine: Machine, plugin: Plugin
    ) -> None:
        podman.start("first", "--network", SECOND)
        machine.must("mv", f"{CONFLISTS}/1.conflist", f"{CONFLISTS}/1.away")
        try:
            podman.remove("first")
        finally:
            machine.must("mv", f"{CONFLISTS}/1.away", f"{CONFLISTS}/1.conflist")
        machine.ports_become(set())
        assert plugin.leases(machine) == []

    @pytest.mark.reference_fault("after a power cut its own record of the address refuses the container")
    def test_after_a_power_cut_the_same_containers_start_again(
        self, podman: Podman, machine: Machine, plugin: Plugin
    ) -> None:
        """/run is empty after a boot, /var/lib is not; the container comes back under the id it had."""
        for name in ("one", "two"):
            podman.start(name)
        podman.power_cut()
        machine.ports_become(set())
        for name in ("two", "one"):
            podman.must("start", name)
        one, two = Container(podman, "one"), Container(podman, "two")
        one.pings(two.network.address)
        two.pings(FAR_OUTSIDE)
        assert len(plugin.leases(machine)) == 2
