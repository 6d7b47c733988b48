"""A machine that is no Node of Kubernetes: a member by its ZLayerExternalNode, with a token of narrow rights."""

from __future__ import annotations

import signal
from typing import Any

from tests.mesh.fleet import Node, arrives, wait_for

from .control_plane import GRACE, LEASE, ControlPlane


def peers(node: Node) -> set[str]:
    """The keys of the node's peers, by the device."""
    return set(node.wg("show", node.device, "peers").split())


def owned(plane: ControlPlane) -> dict[str, Any]:
    """What the ZLayerExternalNode owns, by name."""
    kinds = ("zlayernodes", "zlayerclaims", "zlayernames")
    found = {name: each for kind in kinds for name, each in plane.objects(kind).items()} | plane.objects_in("leases")
    owners = {name: each["metadata"].get("ownerReferences", [{}])[0].get("kind") for name, each in found.items()}
    return {name: each for name, each in found.items() if owners[name] == "ZLayerExternalNode"}


def test_a_machine_joins_by_its_object_and_leaves_with_it(plane: ControlPlane):
    plane.collect_garbage()
    one, edge = plane.member(1), plane.external(2)
    edge.start()
    text = wait_for(lambda: edge.problem("not-joined"), "the problem", 30)
    assert "there is no ZLayerExternalNode edge2" in text
    plane.permit(2)
    first, second = one.container(), wait_for(lambda: edge.container() if peers(edge) else None, "its membership", 40)
    arrives(first, second)
    assert edge.tool("status")["problem_details"] == []
    assert {"id", "slot", "key"} <= {name.partition("-")[0] for name in owned(plane)}
    assert "podman" in plane.kubectl("get", "zlayerexternalnodes")

    red, blue = one.container("a", isolationNetwork="red"), edge.container("b", isolationNetwork="red")
    arrives(red, blue)  # one isolation network on both, and the fence between it and the mesh
    assert not first.pings(blue.address, wait=1) and not second.pings(red.address, wait=1)

    plane.kubectl("delete", "zlayerexternalnode", "edge2")
    wait_for(lambda: not owned(plane), "its objects gone", 20, 0.2)
    wait_for(lambda: not peers(one), "its end as a peer, although its tunnel answers", 20)
    text = wait_for(lambda: edge.problem("store-writes-refused"), "what the machine says", 30)
    assert "ZLayerExternalNode edge2 was deleted" in text
    plane.permit(2)
    wait_for(lambda: peers(one), "its return", 40)
    wait_for(lambda: first.pings(second.address), "traffic as before")


def test_a_machine_that_ends_is_withdrawn_and_keeps_its_claims(plane: ControlPlane):
    one, edge = plane.member(1), plane.external(2)
    plane.permit(2)
    edge.start()
    wait_for(lambda: len(peers(one)) == 1, "the peer", 40)
    claims = {name for name in owned(plane) if name.partition("-")[0] in ("id", "slot", "key")}
    edge.end(signal.SIGKILL)
    for pid in edge.pids():
        plane.kill(pid)
    wait_for(lambda: len(plane.objects("zlayernodes")) == 1, "its document withdrawn", LEASE * 3 + 20, 0.5)
    wait_for(lambda: not peers(one), "its end as a peer", GRACE + 20)
    assert claims <= owned(plane).keys()


def test_its_token_reads_no_pod_namespace_or_policy(plane: ControlPlane):
    account = "--as=system:serviceaccount:zlayer-cni:zlayer-cni-external"
    for kind in ("pods", "namespaces", "nodes", "networkpolicies", "secrets"):
        for verb in ("get", "list", "watch", "create"):
            assert plane.try_kubectl("auth", "can-i", verb, kind, "-A", account).stdout.strip() == "no", (verb, kind)
    for verb in ("create", "update", "delete", "list"):
        assert plane.try_kubectl("auth", "can-i", verb, "zlayerexternalnodes", account).stdout.strip() == "no"
    assert plane.try_kubectl("auth", "can-i", "get", "zlayerexternalnodes", account).stdout.strip() == "yes"
