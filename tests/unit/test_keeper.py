"""Records and kernel agree again after a restart, and after another program changed the kernel (on the fake kernel)."""

import logging

import pytest

from cni.daemon.model import macs
from cni.daemon.reconcile import node as keeper
from cni.errors import AttachFailed
from cni.host.links import Link
from tests.fakes.kernel import Killed
from tests.fakes.node import NOTHING, Node


@pytest.fixture
def node(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    made = Node(tmp_path / "state.db")
    yield made
    made.close()


def look(node, times=1):
    for _ in range(times):
        node.keeper.look()


def test_a_look_at_what_is_right_changes_nothing(node):
    node.add()
    node.add("c2", 12, service="db")
    before = (node.left(), dict(node.kernel.links), node.state.services)
    node.kernel.log.clear()
    look(node, 3)
    assert (node.left(), dict(node.kernel.links), node.state.services) == before
    touching = {"remove_link", "create_port", "enslave", "raise_port", "ensure_bridge", "remove_gateway", "remove_port"}
    assert touching & set(node.kernel.log) == set()


def test_a_restart_changes_nothing(node):
    node.add()
    before = (node.left(), dict(node.kernel.links), node.state.services)
    node.restart()
    node.keeper.adopt()
    look(node, 2)
    assert (node.left(), dict(node.kernel.links), node.state.services) == before


@pytest.mark.parametrize("at", ["ensure_bridge", "add_port", "create_port", "configure_inside", "raise_port"])
@pytest.mark.parametrize("late", [False, True])
def test_work_that_a_kill_left_half_done_is_undone_at_the_next_start(node, at, late):
    node.kernel.fail(only=at, kill=True, late=late)
    with pytest.raises(Killed):
        node.add()
    node.restart()
    node.keeper.adopt()
    assert node.left() == NOTHING
    assert node.add().state == "live"


@pytest.mark.parametrize("at", ["remove_link", "remove_port", "forget_neighbour"])
@pytest.mark.parametrize("late", [False, True])
def test_a_detach_that_a_kill_left_half_done_is_finished_by_the_keeper(node, at, late):
    node.add()
    node.kernel.fail(only=at, kill=True, late=late)
    with pytest.raises(Killed):
        node.delete()
    node.restart()
    node.keeper.adopt()
    if node.kernel.veths():
        node.delete()
    look(node, 2)
    assert node.left() == NOTHING


def test_a_container_that_went_without_a_word_is_released_at_the_second_look(node):
    node.add()
    made = node.add("c2", 12)
    node.kernel.destroy_space(12)
    look(node)
    assert made.key in node.state.attachments
    look(node)
    assert [each.container for each in node.state.snapshot()] == ["c1"]
    assert made.host_veth not in node.kernel.admitted


def test_a_container_attached_again_between_two_looks_is_kept(node):
    node.add()
    node.kernel.destroy_space(11)
    look(node)
    again = node.add(fd=12)
    look(node, 2)
    assert node.state.snapshot() == [again]


def test_a_link_of_ours_that_no_record_knows_goes_at_start(node):
    made = node.add()
    node.state.drop(made.key)
    node.restart()
    node.keeper.adopt()
    assert node.kernel.veths() == set()


def test_a_bridge_of_ours_that_no_record_knows_goes_at_start(node):
    made = node.add()
    node.delete()
    node.state.drop_service("web")
    node.restart()
    node.keeper.adopt()
    assert made.bridge not in node.kernel.links


@pytest.mark.parametrize(
    ("name", "kind", "mac"),
    [
        ("veth123abc", "veth", macs.of_host_end("veth123abc")),
        ("zl-0123456789-v", "veth", "02:00:00:00:00:01"),
        ("zl-0123456789-v", "bridge", macs.of_host_end("zl-0123456789-v")),
        ("zl-012345678-v", "veth", macs.of_host_end("zl-012345678-v")),
        ("docker0", "bridge", macs.of_bridge("docker0")),
        ("zl-other-b", "bridge", "8a:00:00:00:00:01"),
        ("zl-prod-0-g", "wireguard", ""),
    ],
)
def test_links_of_others_are_not_ours(node, name, kind, mac):
    link = Link(77, name, True, 1500, mac, kind)
    assert not keeper.is_our_port(link)
    assert not keeper.is_our_bridge(link)
    node.kernel.links[name] = link
    node.keeper.adopt()
    look(node, 2)
    assert node.kernel.links[name] == link


def test_in_company_no_link_is_taken_for_a_stray(node):
    made = node.add()
    node.state.drop(made.key)
    node.restart()
    node.reconciler(lambda: False).adopt()
    assert node.kernel.veths() == {made.host_veth}


def test_a_bridge_that_somebody_deleted_comes_back_with_its_ports(node):
    made = node.add()
    node.kernel.remove_link(made.bridge)
    look(node)
    bridge = node.kernel.links[made.bridge]
    assert bridge.mac == macs.of_bridge(made.bridge)
    assert node.kernel.links[made.host_veth].master == bridge.index
    assert node.kernel.gateways(made.bridge) == {f"{made.addresses[0].gateway}/26"}


def test_a_gateway_that_somebody_removed_comes_back(node):
    made = node.add()
    node.kernel.node_addresses[node.kernel.links[made.bridge].index].clear()
    look(node)
    assert node.kernel.gateways(made.bridge) == {f"{made.addresses[0].gateway}/26"}


def test_an_attach_that_could_not_be_undone_is_undone_later(node):
    node.kernel.fail(only="raise_port", late=True)
    remove, node.kernel.remove_link = node.kernel.remove_link, refuse
    with pytest.raises(AttachFailed):
        node.add()
    node.kernel.remove_link = remove
    look(node, 3)
    assert node.left() == NOTHING


def refuse(*_):
    raise OSError(16, "busy")


def test_one_bridge_that_cannot_be_mended_does_not_keep_the_rest_from_it(node):
    made = node.add()
    node.add("c2", 12, service="db")
    node.kernel.remove_link(made.bridge)
    node.kernel.links[made.bridge] = Link(99, made.bridge, False, 1500, "02:00:00:00:00:99", "dummy")
    node.kernel.destroy_space(12)
    for _ in range(3):
        try:
            look(node)
        except AttachFailed:
            continue
    assert [each.container for each in node.state.snapshot()] == ["c1"]


def test_an_ephemeral_service_that_could_not_be_taken_down_is_taken_down_later(node):
    made = node.add(ephemeral=True)
    remove = node.kernel.remove_link
    node.kernel.remove_link = lambda name: refuse() if name == made.bridge else remove(name)
    node.delete()
    node.kernel.remove_link = remove
    look(node, 3)
    assert node.state.services == {}


def test_a_service_that_its_last_container_left_for_another_is_taken_down(node):
    node.add(ephemeral=True)
    node.kernel.destroy_space(11)
    node.add(fd=12, service="db")
    look(node, 3)
    assert set(node.state.services) == {"db"}
