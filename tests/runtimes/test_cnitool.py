"""cnitool: the whole of a conflist through libcni, with CAP_ARGS and CNI_ARGS, and the verbs containerd never calls."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator

import pytest

from .cnitool import Cnitool
from .machine import FAR_OUTSIDE, NODE, Machine, told, wait_for
from .plugin import Plugin
from .tools import cnitool

POD_ARGS = (
    "IgnoreUnknown=1;K8S_POD_NAMESPACE={0};K8S_POD_NAME=web-0;"
    "K8S_POD_INFRA_CONTAINER_ID=5191f1c5a1c0;K8S_POD_UID=30b85ebf-69d5-5b46-b19c-ab1e644cd606"
)
NEW = "zlt-new"
BY_NAMESPACE = "zlt-by-namespace"
NO_DAEMON = "zlt-no-daemon"


@pytest.fixture(scope="module")
def built(machine: Machine, plugin: Plugin) -> Cnitool:
    """cnitool and its networks: the conflist; it again at CNI 1.1.0; and what only our plugin reads."""
    newer = plugin.with_first() | {"cniVersion": "1.1.0", "name": NEW}
    by_namespace = plugin.with_first(service="${K8S_POD_NAMESPACE}-svc") | {"name": BY_NAMESPACE}
    alone = plugin.with_first(autostart=False, runDir="/run/zlt/absent") | {"name": NO_DAEMON, "cniVersion": "1.1.0"}
    for conflist in (newer, alone):
        del conflist["plugins"][1:]  # Debian's chained plugins do not speak 1.1.0
    return Cnitool(machine, cnitool(), plugin.conflist, newer, by_namespace, alone)


@pytest.fixture
def tool(built: Cnitool, nothing_left: None) -> Iterator[Cnitool]:
    """cnitool; what the test attached is detached, its namespaces are deleted, and then nothing may be left."""
    yield built
    machine = built.machine
    cached = [json.loads(machine.must("cat", f"/var/lib/cni/results/{n}")) for n in machine.cached_results()]
    for entry in cached:
        built.run("del", entry["networkName"], entry["netns"], ifname=entry["ifName"])
    for name in machine.must("ls", "/run/netns").split():
        if name != "zlt-outside":
            machine.must("ip", "netns", "delete", name)


@pytest.fixture
def network(plugin: Plugin) -> str:
    """The name of the network under test."""
    return plugin.network


class TestVerbs:
    """add, check and del."""

    def test_add_prints_what_is_in_the_namespace(self, tool: Cnitool, network: str) -> None:
        inside = tool.namespace("zlt-a")
        result = tool.must("add", network, inside.path)
        assert [ip["address"] for ip in result["ips"]] == inside.addresses
        assert result["ips"][0]["gateway"] == inside.gateway
        assert result["interfaces"][result["ips"][0]["interface"]]["sandbox"] == inside.path

    def test_loopback_is_up(self, tool: Cnitool, network: str, plugin: Plugin) -> None:
        if not plugin.is_ours:
            pytest.skip("only zlayer-cni brings loopback up where no `loopback` plugin runs")
        inside = tool.namespace("zlt-a")
        tool.must("add", network, inside.path)
        assert "UP" in inside.links["lo"]["flags"]

    @pytest.mark.parametrize("where", ["gateway", NODE, FAR_OUTSIDE])
    def test_the_namespace_reaches(self, tool: Cnitool, network: str, where: str) -> None:
        inside = tool.namespace("zlt-a")
        tool.must("add", network, inside.path)
        pinged = inside.reaches(inside.gateway if where == "gateway" else where)
        assert pinged.returncode == 0, told(pinged)

    def test_check_passes_right_after_add_and_changes_nothing(
        self, tool: Cnitool, network: str, machine: Machine
    ) -> None:
        inside = tool.namespace("zlt-a")
        tool.must("add", network, inside.path)
        before = machine.settled(), inside.links
        for _ in range(2):
            tool.must("check", network, inside.path)
        assert (machine.state(), inside.links) == before

    @pytest.mark.parametrize(
        "damage",
        ["link delete eth0", "address flush dev eth0", "link set eth0 down", "route delete default"],
    )
    def test_check_sees(self, tool: Cnitool, network: str, damage: str) -> None:
        inside = tool.namespace("zlt-a")
        tool.must("add", network, inside.path)
        done = inside.run("ip", *damage.split())
        assert done.returncode == 0, told(done)
        checked = tool.run("check", network, inside.path)
        assert checked.returncode == 1, f"CHECK found nothing wrong after `ip {damage}`: {told(checked)}"

    def test_del_three_times(self, tool: Cnitool, network: str) -> None:
        inside = tool.namespace("zlt-a")
        tool.must("add", network, inside.path)
        for _ in range(3):
            tool.must("del", network, inside.path)
        assert set(inside.links) == {"lo"}

    def test_del_of_what_never_was(self, tool: Cnitool, network: str) -> None:
        other = tool.namespace("zlt-b")
        tool.must("add", network, other.path)
        tool.must("del", network, tool.namespace("zlt-a").path)
        tool.must("del", network, "/run/netns/zlt-never")
        pinged = other.reaches(FAR_OUTSIDE)
        assert pinged.returncode == 0, told(pinged)

    def test_del_after_the_namespace_is_gone(
        self, tool: Cnitool, network: str, machine: Machine, plugin: Plugin
    ) -> None:
        inside = tool.namespace("zlt-a")
        tool.must("add", network, inside.path)
        machine.must("umount", inside.path)
        machine.must("rm", inside.path)
        tool.must("del", network, inside.path)
        assert plugin.leases(machine) == []

    @pytest.mark.reference_fault("DEL fails on a path that is no namespace")
    def test_a_left_over_plain_file_does_not_stop_del(
        self, tool: Cnitool, network: str, machine: Machine, plugin: Plugin
    ) -> None:
        inside = tool.namespace("zlt-a")
        tool.must("add", network, inside.path)
        machine.must("umount", inside.path)
        try:
            tool.must("del", network, inside.path)
        finally:
            machine.must("rm", "-f", inside.path)
        assert plugin.leases(machine) == []

    def test_add_and_del_leave_nothing(self, tool: Cnitool, network: str, machine: Machine) -> None:
        inside = tool.namespace("zlt-a")

        def cycle() -> None:
            tool.must("add", network, inside.path)
            tool.must("del", network, inside.path)

        cycle()  # makes what stays
        before = machine.settled()
        cycle()
        machine.settles_at(before)
        assert set(inside.links) == {"lo"}

    @pytest.mark.reference_fault("it keeps masquerade rules by container, not by interface")
    def test_two_interfaces_in_one_container(self, tool: Cnitool, network: str) -> None:
        inside = tool.namespace("zlt-a")
        tool.must("add", network, inside.path)
        tool.must("add", network, inside.path, ifname="net1")
        assert set(inside.links) == {"lo", "eth0", "net1"}
        tool.must("del", network, inside.path, ifname="net1")
        assert set(inside.links) == {"lo", "eth0"}
        tool.must("check", network, inside.path)

    def test_a_second_namespace_at_the_same_path(self, tool: Cnitool, network: str, machine: Machine) -> None:
        for _ in range(2):
            inside = tool.namespace_at("/run/netns/zlt-reused")
            tool.must("add", network, inside.path)
            pinged = inside.reaches(FAR_OUTSIDE)
            assert pinged.returncode == 0, told(pinged)
            tool.must("del", network, inside.path)
            machine.must("ip", "netns", "delete", "zlt-reused")


class TestArgs:
    """CNI_ARGS."""

    def test_the_keys_of_kubernetes_are_welcome(self, tool: Cnitool, network: str) -> None:
        inside = tool.namespace("zlt-a")
        for verb in ("add", "check", "del"):
            tool.must(verb, network, inside.path, args=POD_ARGS.format("default"))

    def test_an_unknown_key_is_refused_by_name(self, tool: Cnitool, network: str) -> None:
        refused = tool.run("add", network, tool.namespace("zlt-a").path, args="COLOUR=blue")
        assert refused.returncode == 1
        assert "COLOUR" in refused.stderr + refused.stdout, told(refused)

    def test_the_service_is_named_after_the_pods_namespace(self, tool: Cnitool, plugin: Plugin) -> None:
        if not plugin.is_ours:
            pytest.skip("service is a key of zlayer-cni's own")
        bridges = {}
        for name, pod_namespace in (("zlt-a", "blue"), ("zlt-b", "blue"), ("zlt-c", "green")):
            inside = tool.namespace(name)
            tool.must("add", BY_NAMESPACE, inside.path, args=POD_ARGS.format(pod_namespace))
            bridges[name] = inside.segment
        assert bridges["zlt-a"] == bridges["zlt-b"] != bridges["zlt-c"]


class TestCapabilities:
    """CAP_ARGS, which libcni hands to the plugins that declare the capability."""

    @pytest.fixture
    def wanted(self, tool: Cnitool, network: str, request: pytest.FixtureRequest) -> str:
        """An address of the network that is free, with its prefix length; another one for each test.

        One that was just released may rest for a while before it is given again.
        """
        inside = tool.namespace("zlt-probe")
        tool.must("add", network, inside.path)
        there = ipaddress.ip_interface(inside.addresses[0])
        tool.must("del", network, inside.path)
        from_the_end = {"test_a_wanted_address_is_given": 10}.get(request.node.name, 12)
        subnet = ipaddress.ip_network(f"{there.ip}/{min(there.network.prefixlen, 26)}", strict=False)
        return f"{subnet[-from_the_end]}/{there.network.prefixlen}"

    def test_a_wanted_address_is_given(self, tool: Cnitool, network: str, wanted: str) -> None:
        inside = tool.namespace("zlt-a")
        result = tool.must("add", network, inside.path, cap={"ips": [wanted]})
        assert [ip["address"] for ip in result["ips"]] == inside.addresses == [wanted]

    def test_a_wanted_address_that_is_taken_fails_the_add(
        self, tool: Cnitool, network: str, wanted: str, machine: Machine
    ) -> None:
        first = tool.namespace("zlt-a")
        tool.must("add", network, first.path, cap={"ips": [wanted]})
        ports = machine.ports()
        late = tool.namespace("zlt-b")
        refused = tool.run("add", network, late.path, cap={"ips": [wanted]})
        assert refused.returncode == 1, told(refused)
        tool.must("del", network, late.path, cap={"ips": [wanted]})
        machine.ports_become(ports)
        tool.must("check", network, first.path)

    def test_a_wanted_mac_is_given(self, tool: Cnitool, network: str) -> None:
        inside = tool.namespace("zlt-a")
        result = tool.must("add", network, inside.path, cap={"mac": "c2:11:22:33:44:55"})
        assert inside.links["eth0"]["address"] == "c2:11:22:33:44:55"
        assert result["interfaces"][result["ips"][0]["interface"]]["mac"] == "c2:11:22:33:44:55"

    def test_a_port_mapping_leads_inside(self, tool: Cnitool, network: str, machine: Machine) -> None:
        inside = tool.namespace("zlt-a")
        mapping = {"portMappings": [{"hostPort": 18081, "containerPort": 8081, "protocol": "tcp"}]}
        tool.must("add", network, inside.path, cap=mapping)
        serve = 'busybox nc -l -p 8081 -e echo "served inside" </dev/null >/dev/null 2>&1 &'
        inside.run("sh", "-c", serve)
        wait_for("something listens inside", lambda: ":8081" in inside.run("ss", "-Hltn").stdout)
        answer = machine.run("ip", "netns", "exec", "zlt-outside", "busybox", "nc", "-w", "20", NODE, "18081")
        assert answer.stdout.strip() == "served inside", told(answer)
        tool.must("del", network, inside.path, cap=mapping)
        assert "18081" not in "\n".join(machine.firewall())


class TestNewVerbs:
    """gc and status, which came with CNI 1.1.0."""

    @pytest.fixture(autouse=True)
    def _speaks(self, built: Cnitool, plugin: Plugin) -> None:
        first = Plugin(plugin.path, plugin.conflist | {"plugins": plugin.conflist["plugins"][:1]})
        if not first.speaks(built.machine, "1.1.0"):
            pytest.skip(f"{plugin.path.name} does not speak CNI 1.1.0")

    def test_status_is_well(self, tool: Cnitool) -> None:
        wait_for("STATUS is well", lambda: tool.run("status", NEW).returncode == 0)

    def test_gc_takes_down_what_libcni_knows_and_no_other_network(
        self, tool: Cnitool, network: str, machine: Machine, plugin: Plugin
    ) -> None:
        stale, other = tool.namespace("zlt-a"), tool.namespace("zlt-b")
        tool.must("add", NEW, stale.path)
        tool.must("add", network, other.path)
        tool.must("gc", NEW)
        assert set(stale.links) == {"lo"}
        wait_for("one interface is left", lambda: len(machine.ports()) == 1)
        pinged = other.reaches(FAR_OUTSIDE)
        assert pinged.returncode == 0, told(pinged)
        tool.must("check", network, other.path)

    def test_gc_twice(self, tool: Cnitool) -> None:
        inside = tool.namespace("zlt-a")
        tool.must("add", NEW, inside.path)
        for _ in range(2):
            tool.must("gc", NEW)
        assert set(inside.links) == {"lo"}

    def test_gc_without_a_list_spares_what_lives(self, tool: Cnitool, machine: Machine) -> None:
        """libcni lost its cache: cnitool sends GC no list at all, which is not an empty list."""
        inside = tool.namespace("zlt-a")
        tool.must("add", NEW, inside.path)
        (cached,) = machine.cached_results()
        machine.must("mv", f"/var/lib/cni/results/{cached}", "/run/zlt/kept")
        tool.must("gc", NEW)
        machine.must("mv", "/run/zlt/kept", f"/var/lib/cni/results/{cached}")
        pinged = inside.reaches(FAR_OUTSIDE)
        assert pinged.returncode == 0, told(pinged)
        tool.must("check", NEW, inside.path)

    def test_status_without_a_daemon_and_without_autostart(self, tool: Cnitool, plugin: Plugin) -> None:
        if not plugin.is_ours:
            pytest.skip("autostart is a key of zlayer-cni's own")
        told_us = tool.run("status", NO_DAEMON)
        assert told_us.returncode == 1, told(told_us)
        assert "no overlay daemon" in told_us.stderr, told(told_us)


class TestOwnNamespace:
    """The node's own network namespace as CNI_NETNS. The last tests: the reference leaves wreckage."""

    @pytest.mark.reference_fault("it attaches the host's own namespace, and DEL fails then")
    def test_the_hosts_own_namespace_is_refused_untouched(self, tool: Cnitool, network: str, machine: Machine) -> None:
        inside = tool.namespace("zlt-a")  # a call that goes well, so that the refusal means something
        tool.must("add", network, inside.path)
        tool.must("del", network, inside.path)
        before = machine.settled()
        refused = tool.run("add", network, "/proc/1/ns/net")
        assert refused.returncode == 1, told(refused)
        machine.settles_at(before)
        tool.run("del", network, "/proc/1/ns/net")  # may say so or not, but takes nothing from the host
        machine.settles_at(before)
