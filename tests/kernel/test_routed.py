"""Attach without a bridge: one daemon with routed and bridged services, what its containers reach, and what CHECK and
the daemon's comparisons make of changes. `scripts/test routed` runs all of it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chaos import scenes
from tests.chaos.machine import Machine, Space, machine
from tests.chaos.scenes import Live

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

DUAL = "address_cooldown: 1\ncluster_cidr6: fd00:200::/48"
NEXT_LOOK = 60.0  # seconds until a comparison has repaired a difference, on a busy machine
Json = dict[str, Any]


@pytest.fixture
def on() -> Iterator[Machine]:
    with machine("source", DUAL) as made:
        made.program.tune(cni__daemon__reconcile__node__INTERVAL=2.0)
        made.start_daemon()
        yield made


class Pod:
    """A container with its ADD's result."""

    def __init__(self, on: Machine, cid: str, space: Space | None = None, ifname: str = "eth0", **conf: object) -> None:
        self.on, self.cid, self.ifname, self.conf = on, cid, ifname, {"attach": "routed", **conf}
        self.space = space or Space(on)
        self.result: Json = on.call("ADD", on.conf(**self.conf), cid, self.space.path, ifname).ok()
        self.addresses = [ip["address"].partition("/")[0] for ip in self.result["ips"]]
        self.gateways = [ip["gateway"] for ip in self.result["ips"]]
        self.host_end = next(i["name"] for i in self.result["interfaces"] if i["name"].endswith("-v"))

    def reaches(self, *targets: str, source: str = "", wait: str = "1") -> bool:
        by = f"-I {source} " if source else ""
        lines = [f"ping -n -q -c 1 -W {wait} {by}{target} >/dev/null" for target in targets]
        return self.space.sh(" && ".join(lines) + " && echo yes || echo no").strip() == "yes"

    def check(self) -> Any:
        conf = self.on.conf(**self.conf, prevResult=self.result)
        return self.on.call("CHECK", conf, self.cid, self.space.path, self.ifname)

    def delete(self) -> None:
        self.on.call("DEL", self.on.conf(**self.conf), self.cid, self.space.path, self.ifname).ok()

    def live(self) -> Live:
        addresses = tuple(ip["address"] for ip in self.result["ips"])
        return Live(self.cid, self.space.path, addresses, self.host_end)


def test_a_routed_container(on: Machine) -> None:
    """ADD, CHECK and DEL beside a bridge; what it reaches, and that nothing of it stays."""
    bridged = Pod(on, "bridged", service="other", attach="bridge")
    one, two = Pod(on, "one"), Pod(on, "two")
    assert [i["name"] for i in one.result["interfaces"]] == [one.host_end, "eth0"]
    assert [ip["address"].partition("/")[2] for ip in one.result["ips"]] == ["32", "128"]
    assert all(ip["interface"] == 1 for ip in one.result["ips"])
    assert one.reaches(*one.gateways), "the gateway"
    assert one.reaches(*two.addresses), "a container of its service"
    assert one.reaches(*bridged.addresses), "a container on a bridge"
    assert bridged.reaches(*one.addresses), "from a bridge"
    one.check().ok()
    assert not [link for link in on.ip("link") if link["ifname"].endswith("-b") and "web" in link["ifname"]]
    summary = {service["service"]: service for service in on.ask("status")["services"]}
    assert (summary["web"]["attach"], summary["web"]["bridge"]) == ("routed", "")
    assert summary["other"]["attach"] == "bridge"
    scenes.in_order(on, one.live(), two.live(), bridged.live())
    one.delete()
    two.delete()
    left = [line for line in on.sh("ip route; ip -6 route; ip neigh").splitlines() if one.addresses[0] in line]
    assert left == []
    on.call("DEL", on.conf(), "one", "").ok()


def test_isolation_networks_are_closed(on: Machine) -> None:
    red, mate, blue = (Pod(on, name, isolationNetwork=net) for name, net in (("a", "red"), ("b", "red"), ("c", "blue")))
    flat = Pod(on, "d", service="other", attach="bridge")
    assert red.reaches(*mate.addresses)
    assert red.reaches("10.200.0.1"), "the node address"
    for closed in (*blue.addresses, *flat.addresses, *red.gateways):
        assert not red.reaches(closed, wait="0.3"), closed
    for own in blue.addresses:
        assert not flat.reaches(own, wait="0.3")


@pytest.mark.long
def test_the_outside_sees_the_node(on: Machine) -> None:
    """Masquerade: a host on the uplink that knows no route to the overlay gets the node's address."""
    pod = Pod(on, "a")
    outside = Space(on)
    on.sh(f"ip link set up0 netns {outside.name}", "ip link set eth0 up")
    outside.sh("ip addr add 192.0.2.1/24 dev up0; ip link set up0 up")
    assert pod.reaches("192.0.2.1", wait="3")


@pytest.mark.long
def test_a_service_keeps_its_kind_while_it_has_containers(on: Machine) -> None:
    pod = Pod(on, "a")
    space = Space(on)
    refused = on.call("ADD", on.conf(attach="bridge"), "b", space.path)
    refused.failed(7, says=["attach", "'bridge'", "'web'", "'routed'"])
    Pod(on, "c", attach=None).delete()  # none asked for: the service's
    pod.delete()
    bridged = Pod(on, "d", attach="bridge")
    assert bridged.result["interfaces"][0]["name"].endswith("-b")
    assert bridged.reaches(*bridged.gateways)
    assert "unreachable" not in on.sh("ip route; ip -6 route")
    on.call("ADD", on.conf(attach="routed"), "e", space.path).failed(7, says=["attach", "'routed'"])
    on.call("ADD", on.conf(attach="rooted"), "e", space.path).failed(7, says=["attach", "rooted", "bridge, routed"])


@pytest.mark.long
def test_a_new_daemon_touches_nothing_that_is_right(on: Machine) -> None:
    pods = [Pod(on, "a"), Pod(on, "b", mode="isolated", service="iso")]

    def view() -> list[str]:
        return [on.sh(f"ip {what}") for what in ("-o link", "-o addr", "route", "-6 route", "neigh show nud permanent")]

    before = view()
    on.signal_daemon(signal.SIGKILL)
    assert pods[0].reaches(*pods[0].gateways), "containers go on without a daemon"
    on.start_daemon()
    assert view() == before
    scenes.in_order(on, *(pod.live() for pod in pods))


DRIFT = {
    "a host route": "ip route del {four}",
    "a host route, IPv6": "ip -6 route del {six}",
    "a neighbour": "ip neigh del {four} dev {end}",
    "the gateway's addresses": "ip addr flush dev {end}",
    "the link down": "ip link set {end} down",
    "the link on a bridge": "ip link add br0 type bridge; ip link set {end} master br0",
    "forwarding off": "sysctl -qw net.ipv4.conf.{end}.forwarding=0",
    "the subnets' routes": "ip route del unreachable {subnet}",
}


@pytest.mark.long
@pytest.mark.parametrize("what", DRIFT)
def test_drift_is_named_and_repaired(on: Machine, what: str) -> None:
    pod, mate = Pod(on, "a"), Pod(on, "b")
    four, six = pod.addresses
    subnet = next(s for s in on.ask("status")["services"][0]["subnets"] if ":" not in s)
    on.signal_daemon(signal.SIGSTOP, wait=False)
    on.sh(DRIFT[what].format(four=four, six=six, end=pod.host_end, subnet=subnet))
    on.signal_daemon(signal.SIGCONT, wait=False)
    end = time.monotonic() + NEXT_LOOK
    while pod.check().rc or "unreachable" not in on.sh("ip route") or not pod.reaches(*mate.addresses):
        assert time.monotonic() < end, (pod.check(), on.log_tail())
        time.sleep(0.1)
    scenes.in_order(on, pod.live(), mate.live())


CHANGES = {
    "ip neigh del {gateway} dev eth0": "neighbour entry of its gateway",
    "ip route del default": "the route to 0.0.0.0/0",
    "ip route flush dev eth0": "route",
    "ip addr del {four}/32 dev eth0": "the address",
}


@pytest.mark.long
@pytest.mark.parametrize("change", CHANGES)
def test_check_names_what_the_container_changed(on: Machine, change: str) -> None:
    pod = Pod(on, "a")
    pod.space.sh(change.format(gateway=pod.gateways[0], four=pod.addresses[0]))
    pod.check().failed(102, says=[CHANGES[change]])


@pytest.mark.long
def test_a_container_without_the_neighbour_entry_asks_for_its_gateway(on: Machine) -> None:
    pod = Pod(on, "a", isolationNetwork="red")
    for gateway in pod.gateways:
        pod.space.sh(f"ip neigh del {gateway} dev eth0")
    assert pod.reaches("10.200.0.1", "fd00:200::1")


@pytest.mark.long
def test_static_address_and_mac(on: Machine) -> None:
    first = Pod(on, "a")
    free = first.addresses[0].rpartition(".")[0] + "." + str(int(first.addresses[0].rpartition(".")[2]) + 20)
    capabilities = {"runtimeConfig": {"ips": [f"{free}/26"], "mac": "02:11:22:33:44:55"}}
    pod = Pod(on, "b", **capabilities)
    assert pod.addresses[0] == free
    assert "02:11:22:33:44:55" in pod.space.sh("ip link show eth0")
    assert pod.reaches(*first.addresses)
    pod.check().ok()
    taken = on.call("ADD", on.conf(attach="routed", **capabilities), "c", Space(on).path)
    taken.failed(103)


@pytest.mark.long
def test_a_mac_that_a_chained_plugin_sets(on: Machine) -> None:
    """As `tuning` does, within the chain: the node sends to the new one, and the container reaches its neighbours."""
    pod, mate = Pod(on, "a"), Pod(on, "b")
    pod.space.sh("ip link set eth0 address 02:11:22:33:44:66")
    end = time.monotonic() + NEXT_LOOK
    while not pod.reaches(*mate.addresses):
        assert time.monotonic() < end, on.log_tail()
    assert f"{pod.addresses[0]} dev {pod.host_end} lladdr 02:11:22:33:44:66" in on.sh("ip neigh show nud permanent")


@pytest.mark.parametrize("first", ["routed", "bridge"])
def test_several_interfaces(on: Machine, first: str) -> None:
    """Packets from an address leave by its interface, of one service or of two."""
    kinds = {"routed": ("web", "web"), "bridge": ("other", "web")}[first]
    one = Pod(on, "a", attach=first, service=kinds[0])
    two = Pod(on, "a", one.space, "eth1", name="second", service=kinds[1])
    mate = Pod(on, "b", name="second", service=kinds[1])
    for pod in (one, two):
        for version in (0, 1):
            assert pod.reaches(mate.addresses[version], source=pod.addresses[version]), (pod.ifname, version)
            assert mate.reaches(pod.addresses[version]), (pod.ifname, version)
    one.check().ok()
    two.check().ok()
    two.delete()
    assert "2046820" not in one.space.sh("ip rule; ip -6 rule")
    assert one.reaches(*mate.addresses)
    one.check().ok()


@pytest.mark.long
def test_routes_of_the_list(on: Machine) -> None:
    pod = Pod(on, "a", routes=[{"dst": "198.51.100.0/24"}])
    assert f"198.51.100.0/24 via {pod.gateways[0]}" in pod.space.sh("ip route")
    pod.check().ok()
    refused = on.call("ADD", on.conf(attach="routed", routes=[{"dst": "198.51.100.0/24", "gw": pod.addresses[0]}]), "b",
                      Space(on).path)  # fmt: skip
    refused.failed(7, says=["routes", "198.51.100.0/24", pod.addresses[0], "routed"])
    scenes.in_order(on, pod.live())


@pytest.mark.long
def test_annotations_may_ask_for_it(on: Machine) -> None:
    def conf(value: str, **more: object) -> Json:
        asked = {"io.kubernetes.cri.pod-annotations": {"com.zlayer.overlay.attach": value}}
        return on.conf(runtimeConfig=asked, **more)

    space = Space(on)
    said = on.call("ADD", conf("routed"), "a", space.path).ok()
    assert len(said["interfaces"]) == 2
    on.call("ADD", conf("bridge", attach="routed", service="x"), "b", Space(on).path).failed(7, says=["attach"])
    on.call("ADD", conf("else", service="x"), "b", Space(on).path).failed(7, says=["com.zlayer.overlay.attach", "else"])


@pytest.mark.long
def test_more_containers_than_a_subnet_holds(on: Machine) -> None:
    """A further subnet with its own gateway, which is given back."""
    pods = [Pod(on, f"c{n}") for n in range(64)]
    assert len({pod.gateways[0] for pod in pods}) == 2
    assert pods[0].reaches(*pods[-1].addresses)
    assert on.sh("ip route").count("unreachable") == 2
    for pod in pods:
        pod.delete()
    end = time.monotonic() + NEXT_LOOK
    while on.sh("ip route").count("unreachable") > 1:
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.long
def test_an_unused_address_is_unreachable(on: Machine) -> None:
    """It does not leave by the default route: neither from the node nor from a container."""
    pod = Pod(on, "a")
    unused = pod.addresses[0].rpartition(".")[0] + "." + str(int(pod.addresses[0].rpartition(".")[2]) + 9)
    assert "unreachable" in json.dumps(on.sh(f"ip route get {unused} 2>&1 || true")) or "No route" in on.sh(
        f"ip route get {unused} 2>&1 || true"
    )
    assert not pod.reaches(unused, wait="0.3")


@pytest.mark.long
def test_services_of_mode_shared_have_one_kind(on: Machine) -> None:
    one, two = Pod(on, "a", mode="shared", service="s1"), Pod(on, "b", mode="shared", service="s2")
    assert one.gateways == two.gateways
    assert one.reaches(*two.addresses)
    refused = on.call("ADD", on.conf(attach="bridge", mode="shared", service="s3"), "c", Space(on).path)
    refused.failed(7, says=["attach", "'bridge'", "'routed'"])
    Pod(on, "d", attach="bridge", service="own")
    for pod in (one, two):
        pod.check().ok()


@pytest.mark.long
def test_the_mtu_follows_the_underlay(on: Machine) -> None:
    """Of both ends of a running container."""
    pod = Pod(on, "a")
    on.sh("ip link set eth0 mtu 1400")
    end = time.monotonic() + NEXT_LOOK
    while "mtu 1320" not in pod.space.sh("ip link show eth0"):
        assert time.monotonic() < end, on.log_tail()
        time.sleep(0.2)
    assert "mtu 1320" in on.sh(f"ip link show {pod.host_end}")
    pod.check().ok()
    assert pod.reaches(*pod.gateways)


@pytest.mark.long
def test_the_settings_choose_the_kind() -> None:
    """For the node and for single services; a change of the YAML waits for the last container."""
    kinds = f"{DUAL}\nattach: routed\nservices:\n- name: old\n  attach: bridge"
    with machine("source", kinds) as on:
        on.start_daemon()
        pod, bridged = Pod(on, "a", attach=None), Pod(on, "b", attach=None, service="old")
        assert (len(pod.result["interfaces"]), len(bridged.result["interfaces"])) == (2, 3)
        assert pod.reaches(*bridged.addresses)
        settings = on.data_dir / "overlayd.yaml"
        settings.write_text(settings.read_text().replace("attach: routed", "attach: bridge"))
        on.signal_daemon(signal.SIGTERM)
        on.start_daemon()
        second = Pod(on, "c", attach=None)
        assert len(second.result["interfaces"]) == 2, "the service has a container"
        pod.delete()
        second.delete()
        assert len(Pod(on, "d", attach=None).result["interfaces"]) == 3


@pytest.mark.long
def test_why_and_the_commands_know_the_kind(on: Machine) -> None:
    red, blue = Pod(on, "a", isolationNetwork="red"), Pod(on, "b", isolationNetwork="blue")
    mate = Pod(on, "c", isolationNetwork="red")

    def why(src: Pod, dst: str) -> Json:
        words = [*on.program.daemon, "why", "--json", "--run-dir", str(on.run_dir), src.addresses[0], dst]
        said = on.sh(f"PYTHONPATH={on.program.env['PYTHONPATH']} {' '.join(words)} || true")
        found: Json = json.loads(said)
        return found

    allowed, closed = why(red, mate.addresses[0]), why(red, blue.addresses[0])
    assert (allowed["allowed"], allowed["paths"][0]["rule"]["family"]) == (True, "inet")
    assert (closed["allowed"], closed["paths"][0]["rule"]["name"]) == (False, "between networks")
    gateway = why(red, red.gateways[0])
    assert (gateway["allowed"], gateway["paths"][0]["rule"]["name"]) == (False, "host address")
    assert f"gateway on {red.host_end}" in json.dumps(gateway) or "gateway on" in json.dumps(gateway)
    listed = {each["container_id"]: each for each in on.ask("attachments")}
    assert (listed["a"]["attach"], listed["a"]["bridge"]) == ("routed", "")
    members = [m for net in on.ask("networks")["networks"] for m in net["members"]]
    assert {member["bridge"] for member in members} == {""}
