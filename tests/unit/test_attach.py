"""The path a container takes in and out, against a kernel that fails on command (tests/fakes/kernel.py)."""

import contextlib
import ipaddress
import logging
import threading

import pytest

from cni.daemon.attachments.attach import planned_routes
from cni.daemon.attachments.request import ClientGone
from cni.daemon.model import macs
from cni.daemon.model.records import AssignedAddress, Attachment, StaticRoute
from cni.errors import (
    AddressUnavailable,
    AttachFailed,
    CleanupFailed,
    CniError,
    FenceFailed,
    InputOutput,
    InterfaceExists,
    InvalidConfig,
    InvalidNetns,
    PoolExhausted,
    TryAgainLater,
)
from cni.host.links import Link
from tests.fakes.kernel import Killed
from tests.fakes.node import NET, NOTHING, Node


@pytest.fixture
def nodes(tmp_path):
    """Makes nodes, and closes their stores."""
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


# --- in ---


def test_an_attach_makes_both_ends_and_says_so(node):
    made = node.add()
    host = node.kernel.links[made.host_veth]
    inside = node.kernel.space(11).links["eth0"]
    assert (host.up, inside.up, host.peer, inside.peer) == (True, True, inside.index, host.index)
    assert host.master == node.kernel.links[made.bridge].index
    assert (host.mac, inside.mac, host.mtu) == (made.host_mac, made.mac, made.mtu)
    assert [str(a) for a in node.kernel.space(11).addresses[inside.index]] == [h.address for h in made.addresses]
    assert (made.state, node.state.attachments[made.key]) == ("live", made)


def test_the_address_is_of_the_services_subnet_and_its_gateway_is_on_the_bridge(node):
    made = node.add()
    (held,) = made.addresses
    (subnet,) = node.state.services["web"].subnets
    assert ipaddress.ip_interface(held.address).network == ipaddress.ip_network(subnet)
    assert node.kernel.gateways(made.bridge) == {f"{held.gateway}/26"}


def test_two_families_give_two_addresses_and_two_default_routes(nodes):
    node = nodes(cluster_cidr6="fd00:9::/112")
    made = node.add()
    assert [ipaddress.ip_interface(h.address).version for h in made.addresses] == [4, 6]
    assert {r.dst for r in made.routes} == {"0.0.0.0/0", "::/0"}


def test_the_underlays_mtu_less_wireguards_is_the_containers(node):
    node.kernel.underlay = 9000
    assert node.add().mtu == 8920
    assert node.add("c2", 12, mtu=1300).mtu == 1300


def test_the_order_is_save_fence_link_up(node):
    node.kernel.log.clear()
    node.add()
    steps = [
        c for c in node.kernel.log if c in ("add_bridge", "ensure_bridge", "add_port", "create_port", "raise_port")
    ]
    assert steps == ["add_bridge", "ensure_bridge", "add_port", "create_port", "raise_port"]
    assert node.kernel.log[-1] == "raise_port"


def test_an_address_that_had_another_mac_is_announced_when_the_link_is_up(node):
    first = node.add(mac="0a:00:00:00:00:07")
    assert not node.kernel.announced, "no neighbour knows the address of the first owner"
    node.delete()
    again = node.add("c2", 12, addresses=[ipaddress.ip_address(ip) for ip in first.ips])
    assert (again.ips, again.mac) == (first.ips, macs.of_address(first.ips[0]))
    assert node.kernel.log[-2:] == ["raise_port", "announce"]
    assert [address for _, address in node.kernel.announced] == node.ips()


def test_the_intent_is_saved_before_the_link_is_made(node):
    node.kernel.fail(only="create_port", kill=True)
    with pytest.raises(Killed):
        node.add()
    node.restart()
    (kept,) = node.state.snapshot()
    assert (kept.state, len(kept.addresses), node.kernel.veths()) == ("intent", 1, set())


def test_one_container_may_have_several_interfaces(node):
    first, second = node.add(), node.add(ifname="net1")
    assert len({first.host_veth, second.host_veth}) == 2
    assert len(set(node.ips())) == 2
    node.delete(ifname="net1")
    assert [each.key for each in node.state.snapshot()] == [first.key]
    assert list(node.kernel.space(11).links) == ["eth0"]


def test_a_second_network_does_not_take_the_default_route(node):
    first = node.add()
    second = node.add(ifname="net1", service="db", routes=[StaticRoute("192.0.2.0/24", "")])
    assert [r.dst for r in first.routes] == ["0.0.0.0/0"]
    assert [r.dst for r in second.routes] == ["192.0.2.0/24"]


def test_a_second_interface_is_left_by_its_own_address_and_only_as_long(node):
    first, second = node.add(), node.add(ifname="eth1")
    own = {ipaddress.ip_address(ip) for ip in second.ips}
    assert (first.sourced, second.sourced) == ((), (4,))
    assert node.kernel.sourced == own
    node.delete(ifname="eth1")
    assert node.kernel.sourced == set()
    for call in ("route_by_source", "raise_port"):
        node.kernel.fail(only=call, late=True)
        with pytest.raises(AttachFailed):
            node.add(ifname="eth2")
        assert node.kernel.sourced == set()


def test_the_hosts_own_namespace_is_refused_before_anything_is_done(node):
    node.kernel.log.clear()
    with pytest.raises(InvalidNetns):
        node.add(netns=node.kernel.own)
    assert (node.kernel.log, node.left()) == ([], NOTHING)


# --- in again ---


def test_the_same_attempt_again_is_answered_the_same(node):
    first = node.add(attempt="a1")
    node.kernel.log.clear()
    assert node.add(attempt="a1") == first
    assert {"create_port", "remove_link", "configure_inside"}.isdisjoint(node.kernel.log)


@pytest.mark.parametrize("attempt", ["a2", ""])
def test_another_attempt_is_the_specs_error_and_touches_nothing(node, attempt):
    node.add(attempt="a1" if attempt else "")
    before = (dict(node.kernel.links), node.state.snapshot())
    with pytest.raises(InterfaceExists):
        node.add(attempt=attempt)
    assert (dict(node.kernel.links), node.state.snapshot()) == before


def test_the_same_attempt_after_the_daemon_died_finishes_the_work(node):
    node.kernel.fail(only="configure_inside", kill=True)
    with pytest.raises(Killed):
        node.add(attempt="a1")
    node.restart()
    made = node.add(attempt="a1")
    assert made.state == "live"
    assert node.kernel.veths() == {made.host_veth}
    assert node.ips() == [made.addresses[0].ip]


def test_a_dead_attachment_is_healed_with_its_address(node):
    first = node.add()
    node.kernel.destroy_space(11)
    node.add("other", 13)
    second = node.add(fd=12)
    assert second.addresses == first.addresses
    assert node.kernel.veths() == {each.host_veth for each in node.state.snapshot()}


def test_a_lost_host_end_is_healed(node):
    first = node.add()
    node.kernel.remove_link(first.host_veth)
    assert node.add().addresses == first.addresses


def test_a_leftover_host_end_without_a_record_is_replaced(node):
    request = node.request()
    node.kernel.links[request.host_veth] = Link(99, request.host_veth, True, 1420, "02:00:00:00:00:01", "veth")
    made = node.add()
    assert node.kernel.links[made.host_veth].index != 99


def test_an_interface_of_that_name_in_the_container_is_not_touched(node):
    theirs = Link(77, "eth0", True, 1500, "02:00:00:00:00:02", "veth")
    node.kernel.space(11).links["eth0"] = theirs
    with pytest.raises(InterfaceExists, match="eth0 already exists"):
        node.add()
    assert node.kernel.space(11).links == {"eth0": theirs}
    assert node.left() == {**NOTHING, "inside": ["eth0"]}


def test_a_healed_attachment_may_move_to_another_service(node):
    node.add()
    node.kernel.destroy_space(11)
    moved = node.add(fd=12, service="db")
    db = node.state.services["db"]
    assert db.bridge == moved.bridge
    assert str(ipaddress.ip_interface(moved.addresses[0].address).network) in db.subnets
    assert len(node.ips()) == 1


# --- addresses asked for ---


def test_an_address_asked_for_is_given(node):
    node.add()
    wanted = ipaddress.ip_network(node.state.services["web"].subnets[0]).network_address + 40
    assert node.add("c2", 12, addresses=[wanted]).addresses[0].ip == str(wanted)


def test_an_address_in_use_is_refused_and_nothing_left(node):
    taken = node.add().addresses[0].ip
    before = node.left()
    with pytest.raises(AddressUnavailable, match=taken):
        node.add("c2", 12, addresses=[ipaddress.ip_address(taken)])
    assert node.left() == before


def test_an_address_of_a_family_the_cluster_lacks_is_refused(node):
    with pytest.raises(AddressUnavailable):
        node.add(addresses=[ipaddress.ip_address("fd00:9::7")])


def test_a_healed_attachment_may_ask_for_the_address_it_has(nodes):
    node = nodes(address_cooldown=10.0)
    address = ipaddress.ip_address(node.add().addresses[0].ip)
    node.kernel.destroy_space(11)
    assert node.add(fd=12, addresses=[address]).addresses[0].ip == str(address)


def test_an_address_is_in_use_again_only_after_its_last_owners_flows_and_neighbours_are_forgotten(nodes):
    node = nodes(address_cooldown=10.0)
    address = node.add().addresses[0].ip
    node.delete()
    assert node.kernel.flows_queued == {address}
    node.kernel.log.clear()
    node.add("c2", 12, addresses=[ipaddress.ip_address(address)])
    assert node.kernel.flows_queued == set()
    steps = [c for c in node.kernel.log if c in ("forget_neighbour", "forget_flows", "finish_flows", "create_port")]
    assert steps == ["forget_neighbour", "forget_flows", "finish_flows", "create_port"]


def test_an_address_of_no_last_owner_costs_no_deletion(node):
    node.add()
    assert "forget_neighbour" not in node.kernel.log
    assert node.kernel.flows_queued == set()


def test_a_daemon_that_begins_forgets_the_flows_of_what_was_released(nodes):
    node = nodes(address_cooldown=10.0)
    address = node.add().addresses[0].ip
    node.delete()
    node.kernel.flows_queued.clear()  # the daemon was killed before it deleted them
    node.restart()
    node.keeper.adopt()
    assert node.kernel.flows_queued == {address}


# --- failing ---


def calls_of(node, work):
    """How many calls of the kernel `work` makes."""
    node.kernel.log.clear()
    work(node)
    return len(node.kernel.log)


@pytest.mark.parametrize("late", [False, True])
def test_whatever_call_fails_nothing_of_the_attach_is_left(nodes, late):
    probe = nodes()
    probe.add("first", 10)
    for n in range(calls_of(probe, lambda each: each.add())):
        node = nodes()
        node.add("first", 10)
        before = node.left()
        node.kernel.fail(n, late=late)
        try:
            node.add()
        except CniError:
            node.kernel.heal()
            assert node.left() == before, f"call {n} failed, and something is left"
        assert not node.kernel.heal() or node.state.attachments, n
        node.kernel.heal()
        node.delete()
        assert node.left() == before


@pytest.mark.parametrize("late", [False, True])
def test_whatever_call_fails_while_healing_only_coded_errors_come_out(nodes, late):
    probe = nodes()
    probe.add()
    probe.kernel.destroy_space(11)
    for n in range(calls_of(probe, lambda each: each.add(fd=12))):
        node = nodes()
        node.add()
        node.kernel.destroy_space(11)
        node.kernel.fail(n, late=late)
        try:
            node.add(fd=12)
        except CniError:
            pass
        except OSError:
            if "find" not in node.kernel.log[-3:] and "has_interface" not in node.kernel.log[-3:]:
                raise  # test_a_failing_look_at_what_stands_is_a_coded_error has that one
        node.kernel.heal()
        assert len(set(node.ips())) == len(node.ips())
        assert node.kernel.veths() <= {each.host_veth for each in node.state.snapshot()}
        node.delete()
        assert node.left() == NOTHING


@pytest.mark.parametrize("method", ["find", "has_interface"])
def test_a_failing_look_at_what_stands_is_a_coded_error(node, method):
    node.add()
    node.kernel.fail(only=method)
    with pytest.raises(CniError):
        node.add()


def test_what_cannot_be_undone_keeps_its_record_and_its_address(node, caplog):
    caplog.set_level(logging.CRITICAL)
    node.kernel.fail(only="raise_port", late=True)
    broken = node.kernel.remove_link
    node.kernel.remove_link = refuse
    with pytest.raises(AttachFailed):
        node.add()
    node.kernel.remove_link = broken
    (kept,) = node.state.snapshot()
    assert (kept.state, node.kernel.veths()) == ("intent", {kept.host_veth})
    assert node.add("c2", 12).addresses != kept.addresses
    node.delete()
    assert [each.container for each in node.state.snapshot()] == ["c2"]


def refuse(*_):
    raise OSError(5, "no")


def refuse_port(attachment):
    raise FenceFailed(f"no place for {attachment.host_veth}")


def test_a_fence_that_cannot_be_put_in_force_fails_the_attach(node):
    node.kernel.add_port = refuse_port
    with pytest.raises(FenceFailed):
        node.add()
    assert node.left() == NOTHING


@pytest.mark.parametrize("answers", [[False], [True, False]])
def test_a_client_that_hung_up_is_not_served(node, answers):
    answers = iter(answers)
    with pytest.raises(ClientGone) as caught:
        node.add(caller_waits=lambda: next(answers))
    assert (caught.value.code, node.left()) == (11, NOTHING)


def test_records_that_cannot_be_written_fail_the_attach(node, caplog):
    caplog.set_level(logging.CRITICAL)
    node.add("first", 10)
    before = node.left()
    node.store.apply = refuse_records
    with pytest.raises(CniError) as caught:
        node.add()
    assert caught.value.code == 5
    assert node.left() == before


def refuse_records(_):
    raise InputOutput("disk full")


def test_an_address_that_was_in_use_cools_also_after_a_failed_healing(nodes):
    node = nodes(address_cooldown=10.0)
    first = node.add()
    node.kernel.destroy_space(11)
    node.kernel.fail(only="create_port")
    with pytest.raises(AttachFailed):
        node.add(fd=12)
    assert node.add("c2", 13).addresses != first.addresses


# --- out ---


def test_a_detach_leaves_nothing_and_may_be_repeated(node):
    node.add()
    for _ in range(3):
        node.delete()
        assert node.left() == NOTHING


def test_a_detach_of_what_was_never_attached(node):
    assert node.delete("absent") is None


def test_a_detach_without_a_record_removes_the_link_of_that_name(node):
    made = node.add()
    node.state.drop(made.key)
    node.delete()
    assert node.kernel.veths() == set()


def test_a_detach_needs_no_namespace(node):
    node.add()
    node.kernel.destroy_space(11)
    node.delete()
    assert node.left() == NOTHING


def test_the_link_goes_before_the_fence_and_the_fence_before_the_address(node):
    made = node.add()
    node.kernel.log.clear()
    node.delete()
    steps = [c for c in node.kernel.log if c in ("remove_link", "remove_port", "forget_neighbour")]
    assert steps == ["remove_link", "remove_port", "forget_neighbour"]
    assert made.addresses[0].ip not in node.ips()


@pytest.mark.parametrize("late", [False, True])
def test_whatever_call_fails_a_second_detach_leaves_nothing(nodes, late):
    probe = nodes()
    probe.add()
    for n in range(calls_of(probe, lambda each: each.delete())):
        node = nodes()
        made = node.add()
        node.kernel.fail(n, late=late)
        try:
            node.delete()
        except CleanupFailed as error:
            assert error.code == 106
            assert node.ips() == [made.addresses[0].ip], "the address is held for as long as the link may be there"
        else:
            assert node.kernel.heal(), f"the fault at call {n} was not told"
        node.delete()
        assert node.left() == NOTHING


# --- services ---


def fill(node, service="web"):
    """Hold every address left in the service's subnets; returns them."""
    taken = []
    for _ in range(61 * len(node.state.services[service].subnets)):
        try:
            held = node.state.lease(service)
        except CniError:
            break
        taken.append(getattr(held, "ip", held))
    return taken


def test_a_service_that_outgrows_its_subnet_gets_another(node):
    node.add()
    fill(node)
    made = node.add("c2", 12)
    first, second = node.state.services["web"].subnets
    assert ipaddress.ip_interface(made.addresses[0].address).network == ipaddress.ip_network(second)
    assert len(node.kernel.gateways(made.bridge)) == 2
    node.delete("c2")
    assert node.state.services["web"].subnets == (first,)
    assert len(node.kernel.gateways(made.bridge)) == 1


def test_growth_survives_a_restart(node):
    node.add()
    fill(node)
    made = node.add("c2", 12)
    before = node.state.services
    node.restart()
    assert node.state.services == before
    assert len(node.kernel.gateways(made.bridge)) == 2
    node.delete("c2")
    assert len(node.state.services["web"].subnets) == 1


def test_a_full_cluster_says_so_and_recovers(nodes):
    node = nodes(cluster_cidr="10.9.0.0/25")  # two slots, of which the node's own address has one
    node.add()
    leases = fill(node)
    with pytest.raises(PoolExhausted) as caught:
        node.add("c2", 12)
    assert caught.value.code == 104
    node.state.release(leases[0])
    assert node.add("c2", 12).addresses[0].ip == leases[0]


def test_a_full_cluster_in_which_something_cools_is_for_later(nodes):
    node = nodes(cluster_cidr="10.9.0.0/25", address_cooldown=60.0)
    node.add()
    fill(node)
    node.delete()
    with pytest.raises(TryAgainLater, match="1 are cooling"):
        node.add("c2", 12)


def test_shared_services_are_on_one_bridge(node):
    one, two = node.add(mode="shared"), node.add("c2", 12, service="db", mode="shared")
    assert one.bridge == two.bridge
    assert sum(link.kind == "bridge" for link in node.kernel.links.values()) == 1
    assert {node.state.services[s].mode for s in ("web", "db")} == {"shared"}


def test_an_ephemeral_services_bridge_goes_with_its_last_container(node):
    one, _ = node.add(ephemeral=True), node.add("c2", 12, ephemeral=True)
    node.delete()
    assert one.bridge in node.kernel.links
    node.delete("c2")
    assert one.bridge not in node.kernel.links
    assert node.state.services == {}


def test_a_gateway_that_cannot_be_removed_is_removed_at_the_next_look(node):
    node.add()
    fill(node)
    made = node.add("c2", 12)
    node.kernel.fail(only="remove_gateway")
    node.delete("c2")
    assert len(node.kernel.gateways(made.bridge)) == 2
    node.release.shrink_all()
    assert len(node.kernel.gateways(made.bridge)) == 1


def test_a_failed_attach_gives_its_further_slot_back(node):
    bridge = node.add().bridge
    fill(node)
    node.kernel.fail(only="create_port")
    with pytest.raises(AttachFailed):
        node.add("c2", 12)
    assert len(node.state.services["web"].subnets) == 1
    assert len(node.kernel.gateways(bridge)) == 1


@pytest.mark.parametrize("late", [False, True], ids=["refused", "done all the same"])
def test_a_further_slot_whose_gateway_fails_is_given_back_with_it(node, late):
    bridge = node.add().bridge
    fill(node)
    node.kernel.fail(only="ensure_gateway", late=late)
    with pytest.raises(AttachFailed, match="further subnet"):
        node.add("c2", 12)
    assert len(node.state.services["web"].subnets) == 1
    assert len(node.kernel.gateways(bridge)) == 1


def test_a_failed_ephemeral_attach_leaves_no_bridge(node):
    node.kernel.fail(only="create_port")
    with pytest.raises(AttachFailed):
        node.add(ephemeral=True)
    assert (node.state.services, node.kernel.links) == ({}, {})


def test_a_bridge_that_cannot_be_made_is_no_service(node):
    node.kernel.fail(only="ensure_bridge", late=True)
    with pytest.raises(AttachFailed, match="bridge"):
        node.add()
    assert node.state.services == {}
    assert node.add().state == "live"


def test_a_bridge_that_was_made_by_half_goes_again(node):
    node.kernel.fail(only="ensure_bridge", late=True)
    with pytest.raises(AttachFailed, match="bridge"):
        node.add()
    assert node.kernel.links == {}


def test_a_bridge_that_cannot_be_made_again_keeps_its_service(node):
    made = node.add()
    node.kernel.remove_link(made.bridge)
    node.kernel.fail(only="ensure_bridge")
    with pytest.raises(AttachFailed):
        node.add("c2", 12)
    assert "web" in node.state.services


def test_a_bridge_that_cannot_be_made_at_start_keeps_its_service(node):
    made = node.add()
    node.kernel.remove_link(made.bridge)
    node.kernel.fail(only="ensure_bridge")
    with contextlib.suppress(AttachFailed):
        node.segments.restore()
    node.restart()
    assert "web" in node.state.services


def test_a_service_may_change_from_shared_to_its_own_bridge(node):
    shared = node.add(mode="shared")
    own = node.add("c2", 12, mode="auto")
    assert own.bridge != shared.bridge
    node.restart()
    node.delete()
    node.delete("c2")
    assert node.left() == NOTHING


def test_a_service_with_containers_does_not_change_to_the_shared_bridge(node):
    own = node.add(mode="auto")
    before = node.left()
    with pytest.raises(InvalidConfig, match="web"):
        node.add("c2", 12, mode="shared")
    assert node.left() == before
    node.delete()
    node.add("c2", 12, mode="shared")
    assert own.bridge not in node.kernel.links


def test_taking_the_node_down_removes_the_shared_bridge(node):
    node.add(mode="shared")
    node.data_path.tear_down()
    assert node.kernel.links == {}


def test_taking_the_node_down_leaves_nothing(node):
    node.add()
    node.add("c2", 12, service="db")
    node.data_path.tear_down()
    assert (node.left(), node.kernel.links, node.state.services) == (NOTHING, {}, {})
    assert not node.kernel.loaded


def test_a_second_family_configured_later_reaches_the_services_there_are(node):
    node.add()
    node.restart(cluster_cidr6="fd00:9::/112")
    assert node.add("c2", 12).addresses


# --- garbage ---


def test_gc_frees_what_is_not_listed_and_dead(node):
    for n, container in enumerate(("kept", "dead", "alive"), start=11):
        node.add(container, n)
    node.kernel.destroy_space(12)
    notes = node.overlay.collect(NET, {("kept", "eth0")})
    assert [each.container for each in node.state.snapshot()] == ["kept", "alive"]
    assert [("alive" in note, "dead" in note) for note in notes] == [(False, True), (True, False)]
    assert "kept" in notes[1]


def test_gc_without_a_list_judges_nothing(node):
    node.add()
    node.kernel.destroy_space(11)
    assert node.overlay.collect(NET, None) == []
    assert len(node.state.snapshot()) == 1


def test_gc_leaves_other_networks_alone_and_may_be_repeated(node):
    node.add()
    node.kernel.destroy_space(11)
    for _ in range(2):
        assert node.overlay.collect("other", set()) == []
    assert len(node.state.snapshot()) == 1
    assert len(node.overlay.collect(NET, set())) == 1
    assert node.overlay.collect(NET, set()) == []


def test_gc_goes_on_after_an_error(node, caplog):
    caplog.set_level(logging.CRITICAL)
    for n, container in enumerate(("one", "two"), start=11):
        node.add(container, n)
        node.kernel.destroy_space(n)
    node.kernel.fail(only="remove_link")
    with pytest.raises(CleanupFailed, match="1 attachments"):
        node.overlay.collect(NET, set())
    assert [each.container for each in node.state.snapshot()] == ["one"]


def test_gc_goes_on_after_a_failing_look(node):
    for n, container in enumerate(("one", "two"), start=11):
        node.add(container, n)
        node.kernel.destroy_space(n)
    node.kernel.fail(only="find")
    with pytest.raises(CleanupFailed):
        node.overlay.collect(NET, set())
    assert len(node.state.snapshot()) == 1


def test_gc_does_not_take_down_an_attach_that_is_under_way(node):
    create, collected = node.kernel.create_port, []

    def create_while_collecting(*args):
        thread = threading.Thread(target=lambda: collected.append(node.overlay.collect(NET, set())))
        thread.start()
        thread.join(0.3)
        collected.append(thread)
        return create(*args)

    node.kernel.create_port = create_while_collecting
    made = node.add()
    next(each for each in collected if isinstance(each, threading.Thread)).join(10)
    assert node.state.attachments == {made.key: made}
    assert node.kernel.veths() == {made.host_veth}


# --- at once ---


def test_many_at_once_have_addresses_of_their_own(node):
    failures = []

    def work(n):
        try:
            for _ in range(3):
                node.add(f"c{n}", 20 + n)
                node.delete(f"c{n}")
            node.add(f"c{n}", 20 + n)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    for n in range(12):
        node.kernel.space(20 + n)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(set(node.ips())) == 12
    assert len(node.kernel.veths()) == 12


def test_add_and_delete_of_one_container_at_once_take_turns(node):
    def work(verb):
        for _ in range(10):
            with contextlib.suppress(InterfaceExists):
                node.add() if verb == "ADD" else node.delete()

    threads = [threading.Thread(target=work, args=(verb,)) for verb in ("ADD", "DEL") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    node.delete()
    assert node.left() == NOTHING


# --- routes ---


def route_plan(*routes, gateways=("10.9.0.65",)):
    values = dict.fromkeys(Attachment.__struct_fields__, "")
    values |= {"addresses": tuple(AssignedAddress(f"{g}/26", g) for g in gateways), "routes": routes}
    return [(r.dst, r.via) for r in planned_routes(Attachment(**values))]


def test_each_family_has_its_default_route():
    assert route_plan(gateways=("10.9.0.65", "fd00::1")) == [("0.0.0.0/0", "10.9.0.65"), ("::/0", "fd00::1")]


def test_a_configured_route_goes_by_the_gateway_of_its_family():
    assert route_plan(StaticRoute("192.0.2.0/24", "")) == [("0.0.0.0/0", "10.9.0.65"), ("192.0.2.0/24", "10.9.0.65")]


def test_a_configured_route_of_a_family_without_a_gateway_is_left_out():
    assert route_plan(StaticRoute("2001:db8::/32", "")) == [("0.0.0.0/0", "10.9.0.65")]


def test_a_configured_default_route_replaces_ours():
    assert route_plan(StaticRoute("0.0.0.0/0", "10.9.0.70")) == [("0.0.0.0/0", "10.9.0.70")]


def test_a_configured_default_route_replaces_ours_however_it_is_written():
    plan = route_plan(StaticRoute("0::/0", "fd00::70"), gateways=("fd00::1",))
    assert [via for _, via in plan] == ["fd00::70"]


def test_a_service_whose_bridge_is_anothers_is_refused(node):
    """Two names with one hash of 40 bits: the second would take the first one's bridge down with it."""
    first = node.add(service="service-87537")
    with pytest.raises(InvalidConfig, match="service-87537"):
        node.add("c2", 12, service="service-975070")
    assert [each.name for each in node.state.services.values()] == ["service-87537"]
    node.delete()
    node.segments.teardown("service-87537")
    assert first.bridge not in node.kernel.links
    assert node.add("c2", 12, service="service-975070").bridge == first.bridge
