"""What the overlay door's operations decide, without a kernel: ranges, targets, endpoints, and that none is missing."""

from __future__ import annotations

import ipaddress
import typing
from pathlib import Path
from typing import cast

import pytest

from cni.daemon import operations, parts
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model.records import Node
from cni.daemon.operations import edges
from cni.daemon.operations.context import OperationRefused
from cni.daemon.operations.node import judge_ranges
from cni.host.wg_types import DeviceSeen, PeerSeen
from cni.overlay import wire
from tests.fakes.mesh import FakeMesh
from tests.fakes.node import Node as FakeNode

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="


def node(**changes: object) -> Node:
    values: dict[str, object] = {
        "deployment": "prod",
        "instance_id": "42",
        "node_id": 3,
        "cluster_cidr": "10.200.0.0/16",
        "cluster_cidr6": None,
        "slice_cidr": "10.200.0.16/28",
        "wg_port": 51420,
    }
    return Node(**{**values, **changes})  # type: ignore[arg-type]


def nets(*cidrs: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(cidr) for cidr in cidrs]


# --- every operation is answered ---------------------------------------------------------------------------------


def test_every_operation_of_the_protocol_has_a_function() -> None:
    assert set(operations.OPERATIONS) == set(typing.get_args(wire.AnyRequest))


def test_an_operation_that_breaks_is_an_error_and_not_the_end() -> None:
    answer = operations.carry_out(wire.StatusRequest(), None)  # type: ignore[arg-type]
    assert isinstance(answer, wire.Err)
    assert answer.message.startswith("internal error: AttributeError")


# --- the node's ranges -------------------------------------------------------------------------------------------


def test_the_same_ranges_change_nothing_whatever_is_in_use() -> None:
    before = node()
    after = judge_ranges(before, "10.200.0.0/16", "10.200.0.16/28", {"web": nets("10.200.5.0/26")}, ["10.200.0.18"])
    assert after == {"cluster_cidr": "10.200.0.0/16", "cluster_cidr6": None, "slice_cidr": "10.200.0.16/28"}


def test_a_setup_without_a_slice_keeps_the_one_the_node_has() -> None:
    assert judge_ranges(node(), "10.200.0.0/16", None, {}, [])["slice_cidr"] == "10.200.0.16/28"


def test_a_slice_of_another_cluster_is_not_kept() -> None:
    assert judge_ranges(node(), "10.201.0.0/16", None, {}, [])["slice_cidr"] is None


def test_host_bits_are_dropped() -> None:
    assert judge_ranges(node(), "10.200.7.7/16", "10.200.0.17/28", {}, []) == {
        "cluster_cidr": "10.200.0.0/16",
        "cluster_cidr6": None,
        "slice_cidr": "10.200.0.16/28",
    }


def test_the_second_family_stays_unless_the_first_becomes_it() -> None:
    before = node(cluster_cidr6="fd00:200::/48")
    assert judge_ranges(before, "10.201.0.0/16", None, {}, [])["cluster_cidr6"] == "fd00:200::/48"
    assert judge_ranges(before, "fd00:300::/48", None, {}, [])["cluster_cidr6"] is None


@pytest.mark.parametrize(
    ("cluster", "own", "words"),
    [
        ("10.200.0.0", None, "invalid cluster CIDR 10.200.0.0: invalid address: 10.200.0.0"),
        ("nonsense/16", None, "invalid cluster CIDR nonsense/16: invalid address: nonsense/16"),
        ("10.200.0.0/33", None, "invalid cluster CIDR 10.200.0.0/33: "),
        (
            "10.200.0.0/255.255.0.0",
            None,
            "invalid cluster CIDR 10.200.0.0/255.255.0.0: ",
        ),
        ("10.200.0.0/16", "10.200.0.16/255.255.255.240", "invalid slice CIDR 10.200.0.16/255.255.255.240: "),
        ("10.200.0.0/32", None, "invalid cluster CIDR 10.200.0.0/32: the node's own address would be outside"),
        ("fd00::/128", None, "invalid cluster CIDR fd00::/128: "),
        ("10.200.0.0/16", "10.200.0.16", "invalid slice CIDR 10.200.0.16: "),
        ("10.200.0.0/16", "10.201.0.0/28", "invalid slice CIDR 10.201.0.0/28: it is not in the cluster's range"),
        ("10.200.0.0/16", "fd00::/120", "invalid slice CIDR fd00::/120: it is not in the cluster's range"),
    ],
)
def test_what_is_no_range_is_refused(cluster: str, own: str | None, words: str) -> None:
    with pytest.raises(OperationRefused) as caught:
        judge_ranges(node(), cluster, own, {}, [])
    assert caught.value.msg.startswith(words)


@pytest.mark.parametrize("cluster", ["10.200.0.0/26", "10.200.0.0/28", "10.200.0.0/31", "fd00::/120", "fd00::/127"])
def test_a_range_too_small_for_services_is_taken_over(cluster: str) -> None:
    before = node(slice_cidr=None)
    ranges = judge_ranges(before, cluster, None, {}, [])
    assert ranges["cluster_cidr"] == cluster
    after, version = node(**ranges), ipaddress.ip_network(cluster).version
    assert after.home(version) == ipaddress.ip_network(cluster), "what is beyond the range belongs to no node here"
    assert after.address(version) in ipaddress.ip_network(cluster)


def test_a_range_does_not_change_under_services() -> None:
    with pytest.raises(OperationRefused, match="while services have subnets of it: db, web"):
        judge_ranges(node(), "10.201.0.0/16", None, {"web": nets("10.200.5.0/26"), "db": nets("10.200.6.0/26")}, [])


def test_a_shared_service_has_no_subnet_to_lose() -> None:
    assert judge_ranges(node(), "10.201.0.0/16", None, {"web": []}, [])["cluster_cidr"] == "10.201.0.0/16"


def test_a_slice_does_not_change_under_its_addresses() -> None:
    with pytest.raises(OperationRefused, match="while 2 addresses of it are in use"):
        judge_ranges(node(), "10.200.0.0/16", "10.200.0.32/28", {}, ["10.200.0.18", "10.200.0.19"])


def test_a_new_slice_may_not_touch_a_services_subnet() -> None:
    with pytest.raises(OperationRefused, match=r"overlaps 10\.200\.5\.0/26, which service web has"):
        judge_ranges(node(), "10.200.0.0/16", "10.200.5.16/28", {"web": nets("10.200.5.0/26")}, [])
    beside = judge_ranges(node(), "10.200.0.0/16", "10.200.6.16/28", {"web": nets("10.200.5.0/26")}, [])
    assert beside["slice_cidr"] == "10.200.6.16/28"


@pytest.mark.parametrize(
    ("changes", "home"),
    [
        ({}, "10.200.0.16/28"),
        ({"slice_cidr": "10.200.64.0/20"}, "10.200.64.0/20"),
        ({"slice_cidr": None}, "10.200.0.0/26"),
        ({"slice_cidr": "10.200.0.0/16"}, "10.200.0.0/26"),
    ],
)
def test_the_nodes_own_addresses_come_from_where_no_service_is(changes: dict[str, object], home: str) -> None:
    where = node(**changes)
    assert str(where.home(4)) == home
    assert where.address(4) == where.home(4).network_address + 1


def test_each_family_has_a_home() -> None:
    assert str(node(cluster_cidr6="fd00:200::/48").home(6)) == "fd00:200::/120"


# --- edge peers --------------------------------------------------------------------------------------------------


def subnets_of(service: str) -> tuple[str, ...]:
    return {"web": ("10.200.5.0/26", "10.200.9.0/26"), "db": ("10.200.6.0/26",)}.get(service, ())


def test_targets_are_networks_addresses_and_services() -> None:
    allow = ["10.200.7.7/24", " web ", "", "  ", "10.200.1.1", "fd00::1", "10.200.5.0/26"]
    assert edges.targets(allow, subnets_of) == (
        "10.200.7.0/24",
        "10.200.5.0/26",
        "10.200.9.0/26",
        "10.200.1.1/32",
        "fd00::1/128",
    )


def test_blanks_alone_allow_nothing_in_particular() -> None:
    assert edges.targets([" ", ""], subnets_of) == ()


@pytest.mark.parametrize("entry", ["10.0.0.0/255.0.0.0", "10.0.0.0/0.255.255.255", "fe80::1%eth0", "fd00::1%1/64"])
def test_only_plain_networks_and_addresses_are_targets(entry: str) -> None:
    with pytest.raises(OperationRefused, match="is neither"):
        edges.targets([entry], subnets_of)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(OperationRefused) as caught:
        edges.targets(["web", "mail"], subnets_of)
    assert caught.value.msg.startswith("edge --allow target `mail` is neither ")


@pytest.mark.parametrize("endpoint", ["edge.example.net:51420", "203.0.113.7:1", "[2001:db8::5]:65535", "host:080"])
def test_endpoints_that_can_be_called(endpoint: str) -> None:
    edges.check_endpoint(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "edge.example.net",
        ":51420",
        "edge:0",
        "edge:65536",
        "edge:99999999999999999999",
        "edge:-1",
        "edge:x",
        "edge:",
        " edge:1",
        "2001:db8::5:51420",
        "0.0.0.0:51420",
        "[::]:51420",
        "[]:51420",
    ],
)
def test_endpoints_that_cannot(endpoint: str) -> None:
    with pytest.raises(OperationRefused, match="node_endpoint"):
        edges.check_endpoint(endpoint)


# --- NAT -----------------------------------------------------------------------------------------------------------


class HeardMesh(FakeMesh):
    """A mesh whose device has the peer at another endpoint than the agent named."""

    def device(self) -> DeviceSeen | None:
        return DeviceSeen("zl-g", "kernel", 51420, {KEY: PeerSeen(KEY, "198.51.100.9:7")})


@pytest.mark.parametrize(
    ("mesh", "endpoint"), [(FakeMesh, "203.0.113.7:51420"), (HeardMesh, "198.51.100.9:7")], ids=["no device", "roamed"]
)
def test_nat_status_has_the_endpoint_at_which_the_peer_is(tmp_path: Path, mesh: type[FakeMesh], endpoint: str) -> None:
    node = FakeNode(tmp_path / "state.db")
    traversal = parts.build_traversal(node.base, parts.build_mesh(node.base))
    device = cast(Mesh, mesh(node.base.registry))
    context = parts.build_operations(node.base, node.parts, device, traversal, lambda: ((), ()))
    node.state.update_node(set_up=True)
    assert operations.carry_out(wire.AddPeer(KEY, "203.0.113.7:51420", "10.9.0.32/28", 25), context) == wire.Ok()
    assert operations.carry_out(wire.NatTick(), context) == wire.Ok()
    heard = operations.carry_out(wire.NatStatusRequest(), context)
    assert isinstance(heard, wire.NatStatus)
    assert heard.peers == (wire.NatPeer(KEY, "direct", endpoint),)
