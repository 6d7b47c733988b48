"""The API server is the cluster's store: ids, slots and keys are claimed in it, and nodes find one another by it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.mesh.fleet import SLOW, Node, arrives, wait_for

from .control_plane import GRACE, LEASE, ControlPlane


def no_problem(node: Node) -> bool:
    return bool(node.tool("status")["problem_details"] == [])


def peers(node: Node) -> set[str]:
    """The keys of the node's peers, by the device."""
    return set(node.wg("show", node.device, "peers").split())


def test_two_nodes_find_each_other_by_the_api_server(plane: ControlPlane):
    one, two = plane.member(1), plane.member(2)
    first, second = one.container(), two.container()
    arrives(first, second)
    nodes = plane.objects("zlayernodes")
    assert sorted(node["spec"]["nodeID"] for node in nodes.values()) == [1, 2]
    assert {"id-1", "id-2"} <= plane.objects("zlayerclaims").keys()
    listed = plane.kubectl("get", "zlayernodes")
    assert one.underlay in listed and "ADDRESSES" in listed
    wait_for(lambda: no_problem(one) and no_problem(two), "no problem")


def test_six_nodes_that_start_together_share_nothing(plane: ControlPlane):
    made = [plane.member(number, start=False) for number in range(1, 7)]
    with ThreadPoolExecutor() as threads:
        list(threads.map(Node.start, made))
    claims = plane.objects("zlayerclaims")
    ids = [claim["spec"]["owner"] for name, claim in claims.items() if name.startswith("id-")]
    assert len(ids) == len(set(ids)) == 6
    slices = [claim["spec"]["owner"] for claim in claims.values() if claim["spec"].get("use") == "slice"]
    assert sorted(slices) == sorted(ids)
    wait_for(lambda: all(len(peers(node)) == 5 for node in made), "every node a peer of every other")


def test_a_node_that_ends_is_withdrawn_and_one_that_returns_has_what_it_had(plane: ControlPlane):
    one, two, three = plane.member(1), plane.member(2), plane.member(3)
    wait_for(lambda: len(peers(one)) == 2, "both peers")
    before = plane.objects("zlayerclaims").keys()
    two.end(signal.SIGKILL)
    for pid in two.pids():
        plane.kill(pid)
    wait_for(lambda: len(plane.objects("zlayernodes")) == 2, "its document withdrawn", LEASE * 3 + 20, 0.5)
    wait_for(lambda: len(peers(one)) == 1 and len(peers(three)) == 1, "its end as a peer", GRACE + 20)
    assert before <= plane.objects("zlayerclaims").keys()  # a node that returns finds what it had
    two.start()
    wait_for(lambda: len(peers(one)) == 2, "its return")


def test_a_daemon_that_restarts_goes_on_under_its_lease(plane: ControlPlane):
    one, two = plane.member(1), plane.member(2)
    wait_for(lambda: len(peers(two)) == 1, "the peer")
    before = {name: node["metadata"]["uid"] for name, node in plane.objects("zlayernodes").items()}
    leases = plane.objects_in("leases")
    one.end()
    one.start()
    wait_for(lambda: no_problem(one), "no problem")
    assert {name: node["metadata"]["uid"] for name, node in plane.objects("zlayernodes").items()} == before
    assert plane.objects_in("leases").keys() == leases.keys()


def test_the_claims_of_a_deleted_node_are_free_within_five_seconds(
    plane: ControlPlane, measured: Callable[[str], None]
):
    plane.collect_garbage()
    one, two = plane.member(1), plane.member(2)
    first, second = one.container(), two.container()
    arrives(first, second)

    def owned() -> dict[str, Any]:
        return {
            name: claim
            for name, claim in plane.objects("zlayerclaims").items()
            if claim["metadata"]["ownerReferences"][0]["name"] == "node2"
        }

    assert owned()
    began = time.monotonic()
    plane.kubectl("delete", "node", "node2")
    wait_for(lambda: not owned(), "its claims released", 20, 0.1)
    took = time.monotonic() - began
    measured(f"the claims of a deleted Node are free after {took:.1f} s")
    assert took < 5 * SLOW
    wait_for(lambda: not peers(one), "its end as a peer, although its tunnel answers", 20)
    assert "node2 was deleted" in wait_for(lambda: two.problem("store-writes-refused"), "what that node says", 30)
    plane.register(2)
    wait_for(lambda: owned() and peers(one), "its claims, when its kubelet has registered it again", 40)
    wait_for(lambda: first.pings(second.address), "traffic as before")


def test_while_the_api_server_is_away_nothing_is_removed(plane: ControlPlane):
    one, two = plane.member(1), plane.member(2)
    first, second = one.container(), two.container()
    arrives(first, second)
    plane.stop("kube-apiserver", signal.SIGKILL)
    wait_for(lambda: one.problem("store-unreachable"), "the problem", 60)
    third = one.container()  # an address of a subnet that the node has
    other = one.container("other")  # a new service, from the reserve
    assert third.pings(second.address)
    one.end()
    one.start()
    assert first.pings(second.address)
    plane.serve()
    wait_for(lambda: no_problem(one) and no_problem(two), "no problem any more", 60)
    wait_for(
        lambda: f"slot-{'-'.join(other.address.split('.')[:3])}" in " ".join(plane.objects("zlayerclaims")), "slot"
    )


@pytest.mark.parametrize("seconds", [30, pytest.param(600, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_pods_come_and_go_while_the_api_server_is_away(
    plane: ControlPlane, measured: Callable[[str], None], seconds: int
):
    # Addresses are free again soon: the other node hears of a further subnet when the API server is back.
    one, two = (plane.member(number, address_cooldown=1) for number in (1, 2))
    first, second = one.container(), two.container()
    arrives(first, second)
    plane.stop("kube-apiserver", signal.SIGKILL)
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        made = [node.container() for node in (one, two) for _ in range(3)]
        assert len({each.address for each in (first, second, *made)}) == 8
        assert made[0].pings(made[3].address) and made[0].pings(second.address)
        for each in made:
            each.node.plugin("DEL", each)
            each.kill()
        count += len(made)
    assert one.problem("store-unreachable") and first.pings(second.address)
    plane.serve()
    wait_for(lambda: no_problem(one) and no_problem(two), "no problem any more", 60)
    assert first.pings(second.address) and len(one.tool("attachments")) == len(two.tool("attachments")) == 1
    measured(f"the API server is away for {seconds} s: {count} pods come and go, none fails")


def test_a_token_that_ends_is_replaced_by_the_one_in_the_file(plane: ControlPlane):
    one = plane.member(1)
    plane.token_file.write_text("no token")
    one.end()
    one.start()
    text = wait_for(lambda: one.problem("store-writes-refused") or one.problem("store-unreachable"), "the problem", 30)
    assert "401" in text and "no token" not in text
    plane.token()
    wait_for(lambda: no_problem(one), "no problem any more", 30)


def test_a_machine_that_is_no_node_of_kubernetes_is_a_member_too(plane: ControlPlane):
    one, two = plane.member(1), plane.member(2, registered=False)
    arrives(one.container(), two.container())
    owners = [node["metadata"].get("ownerReferences") for node in plane.objects("zlayernodes").values()]
    assert len(owners) == 2 and sum(owner is None for owner in owners) == 1


def test_what_is_missing_in_the_api_is_named(plane: ControlPlane):
    plane.kubectl("delete", "clusterrolebinding", "zlayer-cni")
    one = plane.member(1, start=False)
    one.start()
    text = wait_for(lambda: one.problem("not-joined"), "the problem", 30)
    assert "403" in text and "zlayernodes" in text
    plane.kubectl("apply", "-f", str(plane.definitions))
    wait_for(lambda: no_problem(one), "no problem any more", 40)


def test_names_of_other_nodes_are_answered_and_go_with_their_node(plane: ControlPlane):
    one, two = plane.member(1), plane.member(2)
    first, second = one.container("db"), two.container("web")
    arrives(first, second)

    wait_for(lambda: second.address in json.dumps(one.tool("resolve", "web", check=False)), "the name")
    two.end(signal.SIGKILL)
    for pid in two.pids():
        plane.kill(pid)
    wait_for(lambda: "name.web" not in " ".join(plane.objects("zlayernames")), "its names gone", LEASE * 3 + 20, 0.5)
