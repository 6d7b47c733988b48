"""Attach without a bridge, decided from values, and with the fake kernel: which kind, what is made, what is undone."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from cni.daemon.attachments import check
from cni.daemon.attachments.routed import gateway_end, routed_end
from cni.daemon.fence import elements
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.explain.endpoints import FenceView, GuestEndpoint
from cni.daemon.fence.explain.why import decide
from cni.daemon.fence.from_records import bridges, port_of
from cni.daemon.fence.model import FenceNode
from cni.daemon.model import attach_kind
from cni.daemon.model.records import Service, StaticRoute
from cni.errors import CniError, InvalidConfig
from cni.host.ports import ContainerView
from cni.host.routed_ports import HostSide, RoutedEnd
from cni.isolation import ATTACH_LABEL
from cni.netconf.policy import Place, Policy, refuse
from cni.netconf.types import IP, Result
from tests.fakes.kernel import Killed
from tests.fakes.node import NOTHING, Node

END = RoutedEnd(7, "zl-0000000001-v", (ip_address("10.9.0.2"),), (ip_address("10.9.0.1"),), "0a:58:0a:09:00:02")


@pytest.fixture
def nodes(tmp_path):
    made = []

    def make(**settings):
        made.append(Node(tmp_path / f"{len(made)}.db", **settings))
        return made[-1]

    yield make
    for node in made:
        node.close()


@pytest.fixture
def node(nodes):
    return nodes()


# --- which kind ---


@pytest.mark.parametrize(
    ("asked", "listed", "default", "kind"),
    [
        ("", {}, "bridge", "bridge"),
        ("", {}, "routed", "routed"),
        ("", {"web": "routed"}, "bridge", "routed"),
        ("", {"db": "routed"}, "bridge", "bridge"),
        ("bridge", {"web": "routed"}, "routed", "bridge"),
        ("routed", {"web": "bridge"}, "bridge", "routed"),
    ],
)
def test_the_request_comes_before_the_settings(asked, listed, default, kind):
    assert attach_kind.wanted(asked, listed, default, "web") == kind


def test_a_service_in_use_keeps_its_kind():
    assert attach_kind.kept("", "web", "routed") == "routed"
    assert attach_kind.kept("routed", "web", "routed") == "routed"
    with pytest.raises(InvalidConfig) as refused:
        attach_kind.kept("bridge", "web", "routed")
    assert (refused.value.code, refused.value.msg) == (
        7,
        "attach: 'bridge': service 'web' has containers attached as 'routed'",
    )


def test_annotations_decide_only_what_the_list_leaves_open():
    listed, wished = Place("web", "auto", None), Place("web", "auto", None, "routed")
    refuse(Policy(), frozenset(), {ATTACH_LABEL: "routed"}, listed, wished)
    for policy, pinned in ((Policy(), {"attach"}), (Policy(allow=("service",)), set())):
        with pytest.raises(InvalidConfig, match=ATTACH_LABEL):
            refuse(policy, frozenset(pinned), {ATTACH_LABEL: "routed"}, listed, wished)


# --- what is made ---


def test_a_routed_attach_makes_no_bridge(node):
    made = node.add(attach="routed")
    host = node.kernel.links[made.host_veth]
    assert (host.up, host.master, made.attach) == (True, 0, "routed")
    assert not [link for link in node.kernel.links.values() if link.kind == "bridge"]
    assert node.kernel.fenced_bridges == set()
    (service,) = node.state.services.values()
    assert node.kernel.closed == {ip_network(subnet) for subnet in service.subnets}
    (held,) = made.addresses
    assert held.address == f"{held.ip}/32"
    assert node.kernel.routed_ends[made.host_veth] == routed_end(made, host.index)
    assert node.kernel.announced == []


def test_the_order_is_save_fence_link_up(node):
    node.add(attach="routed")
    steps = [call for call in node.kernel.log if call in ("close_subnets", "add_port", "create_port", "raise_routed")]
    assert steps == ["close_subnets", "add_port", "create_port", "raise_routed"]


def test_the_kind_changes_with_the_last_container(node):
    node.add(attach="routed")
    with pytest.raises(InvalidConfig, match="'web' has containers attached as 'routed'"):
        node.add("c2", 12, attach="bridge")
    node.add("c3", 13)
    for container in ("c1", "c3"):
        node.delete(container)
    made = node.add("c4", 14, attach="bridge")
    assert node.kernel.links[made.host_veth].master == node.kernel.links[made.bridge].index
    assert node.kernel.closed == set()
    node.delete("c4")
    node.add("c5", 15, attach="routed")
    assert not [link for link in node.kernel.links.values() if link.kind == "bridge"]


def test_a_route_by_another_container_is_refused(node):
    with pytest.raises(InvalidConfig, match=r"routes: 198\.51\.100\.0/24: the gateway 10\.9\.0\.77 is no neighbour"):
        node.add(attach="routed", routes=[StaticRoute("198.51.100.0/24", "10.9.0.77")])
    assert node.left() == NOTHING


@pytest.mark.parametrize("late", [False, True])
def test_what_fails_anywhere_leaves_nothing(nodes, late):
    after = 0
    while True:
        node = nodes()
        node.kernel.space(11)
        node.kernel.fail(after, late=late)
        try:
            node.add(attach="routed")
        except (CniError, OSError):
            assert node.kernel.heal() is False
            assert node.left() == NOTHING, f"fault at call {after}"
        else:
            assert node.kernel.heal(), "the fault came, and the attach worked all the same"
            break
        after += 1
    assert after > 5


def test_a_daemon_killed_anywhere_is_followed_by_one_that_releases(nodes):
    after = 0
    while True:
        node = nodes()
        node.kernel.space(11)
        node.kernel.fail(after, kill=True)
        try:
            node.add(attach="routed")
        except Killed:
            node.restart()
            node.keeper.adopt()
            assert node.left() == NOTHING, f"killed at call {after}"
        else:
            break
        after += 1


def test_a_further_subnet_comes_and_goes(node):
    pods = [node.add(f"c{n}", 20 + n, attach="routed") for n in range(62)]
    assert len({pod.addresses[0].gateway for pod in pods}) == 2
    assert len(node.kernel.closed) == 2
    for n in range(62):
        node.delete(f"c{n}")
    assert len(node.kernel.closed) == 1
    node.segments.teardown("web")
    assert node.kernel.closed == set()


# --- repair ---


def test_a_look_repairs_what_the_node_lacks(node):
    made = node.add(attach="routed")
    node.kernel.routed_ends.clear()
    node.kernel.closed.clear()
    node.keeper.look()
    assert node.kernel.routed_ends.keys() == {made.host_veth}
    assert len(node.kernel.closed) == 1
    node.kernel.log.clear()
    node.keeper.look()
    assert "raise_routed" not in node.kernel.log


def test_what_a_host_end_lacks_is_named():
    seen = HostSide({ip_address("10.9.0.1")}, {ip_network("10.9.0.2/32")}, {ip_address("10.9.0.2"): END.mac})
    assert seen.lacks(END) == []
    assert HostSide().lacks(END) == [
        "the host interface zl-0000000001-v lacks the gateway 10.9.0.1",
        "the node has no route to 10.9.0.2 by zl-0000000001-v",
        "the node has no neighbour entry of 10.9.0.2 with 0a:58:0a:09:00:02 on zl-0000000001-v",
    ]


def test_check_expects_the_gateway_as_a_neighbour_and_no_bridge(node):
    made = node.add(attach="routed")
    (held,) = made.addresses
    result = Result(ips=(IP(held.address, held.gateway),))
    sought = check.sought(made, result, "/run/netns/11")
    assert (
        sought.neighbours
        == {(ip_address(held.gateway), made.host_mac)}
        == {(gateway, gateway_end(made).mac) for gateway in gateway_end(made).addresses}
    )
    host, inside = node.kernel.links[made.host_veth], node.kernel.space(11).links["eth0"]
    whole = ContainerView(
        inside,
        tuple(node.kernel.space(11).addresses[inside.index]),
        tuple(node.kernel.space(11).routes),
        gateways=sought.gateways,
        neighbours=sought.neighbours,
    )
    seen = check.Observed(host, None, frozenset(), whole, made.netns)
    assert check.differences(made, result, "/run/netns/11", seen) == []
    without = replace(seen, inside=replace(whole, neighbours=frozenset()), lacks=("the node has no route",))
    assert check.differences(made, result, "/run/netns/11", without) == [
        "the node has no route",
        f"the interface eth0 has no neighbour entry of its gateway {held.gateway}",
    ]
    bridged = replace(seen, host=replace(host, master=3))
    assert check.differences(made, result, "/run/netns/11", bridged) == [
        f"the host interface {made.host_veth} is on a bridge, and is to be on none"
    ]


# --- the fence ---


def test_a_routed_port_is_in_the_table_inet_alone(node):
    port = port_of(node.add(attach="routed", isolation="red"))
    assert port.bridge is None
    ours = elements.of_port(port)
    assert {element.family for element in ours} == {"inet"}
    assert f'"{port.name}"' in {element.key for element in ours if element.set == "inside"}
    assert bridges(node.state.services.values()) == []
    assert bridges([Service(name="x", mode="auto", bridge="zl-x-b")]) == ["zl-x-b"]


def test_why_names_the_rules_of_routed_packets(node):
    one, two = (port_of(node.add(name, fd, attach="routed", isolation="red")) for name, fd in (("a", 11), ("b", 12)))
    guests = tuple(GuestEndpoint(p.name, "", p, tuple(f"{a}/32" for a in p.addresses)) for p in (one, two))
    view = FenceView(DesiredState(FenceNode(("10.9.0.0/23",)), ports=(one, two)), guests)
    view = replace(view, ways={two.addresses[0]: two.name})  # as after a translation by a service
    verdict = decide(view, view.place_of(one.addresses[0]), view.place_of(two.addresses[0]))
    assert verdict.allowed and verdict.spot is not None
    assert (verdict.spot.family, verdict.spot.name) == ("inet", "same network")
