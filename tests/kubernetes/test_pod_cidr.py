"""podCIDR as the pool (`cluster.kubernetes.pod_cidr`), with a real API server."""

from __future__ import annotations

import ipaddress
import signal
from typing import Any

import pytest

from tests.mesh.fleet import Node, arrives

from .control_plane import ControlPlane


def pooled(plane: ControlPlane, number: int, cidr: str) -> Node:
    """A member with its Node's podCIDR as the pool; not started."""
    spec: dict[str, Any] = {"podCIDR": cidr, "podCIDRs": [cidr]} if cidr else {}
    plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node{number}"}, "spec": spec})
    node = plane.member(number, registered=False, start=False)
    node.settings["cluster"]["kubernetes"]["pod_cidr"] = True
    return node


def test_pods_have_addresses_of_their_nodes_podcidr(plane: ControlPlane):
    pools = {1: "10.200.7.0/24", 2: "10.200.9.0/24"}
    nodes = {number: pooled(plane, number, pool) for number, pool in pools.items()}
    for node in nodes.values():
        node.start()
    made = {number: [node.container(name) for name in ("web", "db")] for number, node in nodes.items()}
    arrives(made[1][0], made[2][0])
    for number, pool in pools.items():
        network = ipaddress.ip_network(pool)
        assert all(ipaddress.ip_address(each.address) in network for each in made[number])
        assert ipaddress.ip_network(nodes[number].tool("status")["node"]["slice_cidr"]).subnet_of(network)  # type: ignore[arg-type]
        assert nodes[number].tool("status")["problem_details"] == []
    subnets = [cidr for each in plane.objects("zlayernodes").values() for cidr in each["spec"]["subnets"]]
    assert all(
        any(ipaddress.ip_network(cidr).subnet_of(ipaddress.ip_network(p)) for p in pools.values()) for cidr in subnets
    )  # type: ignore[arg-type]

    plane.stop("kube-apiserver", signal.SIGKILL)
    nodes[1].end()
    nodes[1].start()
    assert ipaddress.ip_address(nodes[1].container().address) in ipaddress.ip_network(pools[1])
    plane.serve()


@pytest.mark.parametrize(
    ("cidr", "words"),
    [("", "has no podCIDR of IPv4"), ("10.244.7.0/24", "10.244.7.0/24, .* is not inside 10.200.0.0/16")],
)
def test_a_podcidr_that_does_not_fit_is_refused(plane: ControlPlane, cidr: str, words: str):
    node = pooled(plane, 1, cidr)
    with pytest.raises(AssertionError, match=words):
        node.start()
