"""What the daemon knows: written before it counts, the same after a restart, no address given twice."""

import ipaddress
import itertools
import threading
import time

import msgspec
import pytest

from cni.daemon.events import Events
from cni.daemon.model.records import AssignedAddress, Attachment, Lease, Service
from cni.daemon.settings import Settings
from cni.daemon.state import address_pool as addresses_module
from cni.daemon.state import state as state_module
from cni.daemon.state.state import Locks, NeedsSlot, State
from cni.daemon.state.store import Store
from cni.daemon.state.tables import Tables
from cni.errors import AddressUnavailable, InputOutput, InvalidConfig, PoolExhausted, TryAgainLater


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(state_module, "boot_clock", made)
    monkeypatch.setattr(addresses_module, "boot_clock", made)
    return made


@pytest.fixture
def daemons(tmp_path, clock):
    """Starts daemons' states, all on one store; closes it afterwards."""
    stores = []

    def start(**settings):
        if stores:
            stores[-1].close()
        stores.append(Store(tmp_path / "state.db", "boot"))
        ranges = Settings(**{"cluster_cidr": "10.9.0.0/23", "address_cooldown": 10.0, **settings})
        return State(stores[-1], ranges, Events())

    yield start
    stores[-1].close()


def attachment(container="c1", **members):
    values = {
        "network": "blue",
        "container": container,
        "ifname": "eth0",
        "state": "intent",
        "service": "web",
        "mode": "auto",
        "isolation": None,
        "bridge": "zl-web-b",
        "host_veth": f"zl-{container}-v",
        "host_mac": "02:00:00:00:00:01",
        "mac": "",
        "addresses": (),
        "mtu": 1420,
        "netns": (4, 99),
        "sandbox": "/run/netns/x",
    }
    return Attachment(**{**values, **members})


def attach(state, container="c1", *wanted):
    state.take_service("web", "auto", "zl-web-b")
    return state.reserve(attachment(container), "web", [ipaddress.ip_address(each) for each in wanted])


def ip_of(made):
    return made.addresses[0].ip


def knowledge(state):
    """All of it, to compare two daemons."""
    return (
        state.node,
        state.attachments,
        state.services,
        state.leases,
        state._addresses.held,
        state._addresses.released,
        {version: dict(registry.held) for version, registry in state._segments.items()},
    )


# --- restarts ---


def test_the_next_daemon_knows_the_same(daemons, clock):
    state = daemons(cluster_cidr6="fd00:9::/112")
    for container in ("c1", "c2", "c3"):
        attach(state, container)
        clock.now += 1
    state.drop(("blue", "c2", "eth0"))
    state.take_service("db", "auto", "zl-db-b")
    state.grow_service("db", 4)
    state.grow_service("db", 6)
    state.lease("db")
    state.release(state.lease("db").ip)
    state.note_service(Service(name="far", mode="shared", bridge="zl-sh"))
    state.update_node(wg_public_key="key", set_up=True)
    before = knowledge(state)
    assert knowledge(daemons(cluster_cidr6="fd00:9::/112")) == before


@pytest.mark.parametrize(
    ("kind", "key", "body"),
    [
        ("attachment", "blue/c9/eth0", b'{"network":'),
        ("attachment", "blue/c9/eth0", b"\xff\x00"),
        ("attachment", "blue/c9/eth0", msgspec.json.encode(attachment("c8"))),
        (
            "attachment",
            "blue/c9/eth0",
            msgspec.json.encode(attachment("c9", addresses=(AssignedAddress("x/y", "10.9.0.1"),))),
        ),
        (
            "attachment",
            "blue/c9/eth0",
            msgspec.json.encode(attachment("c9", addresses=(AssignedAddress("10.9.0.70/26", ""),))),
        ),
        ("lease", "no address", msgspec.json.encode(Lease("10.9.0.80", "web"))),
        ("released", "10.9.0.81", b"nan"),
        ("released", "10.9.0.81", b"inf"),
        ("released", "here", b"1.0"),
        ("service", "db", msgspec.json.encode(Service(name="db", mode="auto", bridge="b", subnets=("10.9/x",)))),
        ("service", "db", msgspec.json.encode(Service(name="web", mode="auto", bridge="b"))),
        ("node", "node", b"[]"),
    ],
)
def test_a_record_that_cannot_be_is_set_aside(daemons, kind, key, body):
    """It keeps no daemon from starting, and stays to be looked at."""
    attach(state := daemons())
    before = knowledge(state)
    state._store.apply([(kind, key, body)])
    for state in (daemons(), daemons()):
        assert knowledge(state) == before
        assert state._store.load(f"unreadable {kind}") == [(key, body)]


def test_an_address_that_rests_since_tomorrow_rests_from_now_on(daemons, clock):
    daemons()._store.apply([("released", "10.9.0.66", str(clock.now + 10_000).encode())])
    state, subnet = daemons(), ipaddress.ip_network("10.9.0.64/26")
    assert state._addresses.cooling([subnet]) == 1
    clock.now += 11
    assert state._addresses.cooling([subnet]) == 0


def test_a_table_of_the_registry_leaves_out_what_it_cannot_read(daemons):
    store = daemons()._store
    store.apply([("name", "a.b", b'{"endpoints":'), ("peer", "x", b"5")])
    for registry in (Tables(store), Tables(store)):
        assert (registry.names.all(), registry.peers.all()) == ({}, {})


def test_what_an_agent_said_of_the_node_goes_before_the_file(daemons):
    daemons().update_node(node_id=7, deployment="prod")
    node = daemons(node_id=3).node
    assert (node.node_id, node.deployment) == (7, "prod")


def test_a_slot_in_use_stays_its_services_after_a_restart(daemons):
    state = daemons()
    slots = {name: state.take_service(name, "auto", f"zl-{name}").subnets for name in ("a", "b", "c")}
    again = daemons()
    assert {name: again.take_service(name, "auto", f"zl-{name}").subnets for name in ("c", "b", "a")} == slots
    assert again.take_service("d", "auto", "zl-d").subnets not in slots.values()


def test_a_cluster_range_that_does_not_fit_the_services_is_told(daemons):
    state = daemons()
    state.take_service("web", "auto", "zl-web-b")
    state.lease("web")
    with pytest.raises(InvalidConfig, match=r"10\.9"):
        daemons(cluster_cidr="10.77.0.0/16")


def test_a_service_without_users_does_not_hold_on_to_another_range(daemons):
    daemons().take_service("web", "auto", "zl-web-b")
    state = daemons(cluster_cidr="10.77.0.0/16")
    assert "web" not in state.services
    assert state.take_service("web", "auto", "zl-web-b").subnets[0].startswith("10.77.")


@pytest.mark.parametrize(
    ("cluster", "small"),
    [("10.9.0.0/26", "/26 must be more specific than cluster prefix /26"), ("fd00:9::/124", "prefix /124")],
)
def test_a_cluster_too_small_for_slots_is_told_to_who_wants_one(daemons, cluster, small):
    daemons().update_node(cluster_cidr=cluster)
    for state in (daemons(), daemons()):
        assert not state.has_room("web")
        assert state.lacks("web") == []
        for mode in ("auto", "dedicated"):
            with pytest.raises(InvalidConfig, match="failed to build ServiceSubnetRegistry") as caught:
                state.take_service("web", mode, "zl-web-b")
            assert caught.value.msg.endswith(small)
        assert state.services == {}
    state.update_node(cluster_cidr="10.9.0.0/25")
    assert state.take_service("web", "auto", "zl-web-b").subnets == ("10.9.0.64/26",)


def test_one_family_too_small_is_too_small(daemons):
    state = daemons(cluster_cidr="fd00:9::/64", cluster_cidr6="10.9.0.0/23")
    state.update_node(cluster_cidr6="10.9.0.0/27")
    with pytest.raises(InvalidConfig, match="cluster prefix /27"):
        state.take_service("web", "auto", "zl-web-b")
    assert not state.has_room("web")


@pytest.mark.parametrize("kind", ["attachment", "service", "lease", "released", "node"])
def test_a_record_that_cannot_be_read_does_not_keep_the_daemon_from_starting(daemons, tmp_path, kind):
    attach(daemons())
    store = Store(tmp_path / "state.db", "boot")
    store.apply([(kind, "10.9.0.77", b"\0not JSON")])
    store.close()
    assert ip_of(daemons().attachments[("blue", "c1", "eth0")])


# --- services ---


def test_a_service_is_taken_once(daemons):
    state = daemons()
    first = state.take_service("web", "auto", "zl-web-b")
    assert state.take_service("web", "auto", "other") == first
    assert state.take_service("web", "isolated", "other").subnets == first.subnets


def test_the_nodes_own_address_is_in_no_services_slot(daemons):
    state = daemons()
    own = state.node_address(4)
    for n in range(7):
        service = state.take_service(f"s{n}", "auto", f"b{n}")
        assert not any(own in network for network in service.networks(4))
    with pytest.raises(PoolExhausted):
        state.take_service("s7", "auto", "b7")
    assert "s7" not in state.services


def test_growing_takes_a_slot_and_shrinking_gives_back_only_what_is_idle(daemons):
    state = daemons()
    attach(state)
    first, second = state.grow_service("web", 4).subnets
    third = state.grow_service("web", 4).subnets[2]
    wanted = ipaddress.ip_network(third).network_address + 9
    attach(state, "c2", str(wanted))
    assert state.shrink_service("web") == (ipaddress.ip_network(second),)
    assert state.services["web"].subnets == (first, third)
    state.drop(("blue", "c2", "eth0"))
    assert state.shrink_service("web") == (ipaddress.ip_network(third),)
    assert state.shrink_service("web") == ()
    assert state.shrink_service("absent") == ()


def test_the_first_slot_is_kept_also_when_idle(daemons):
    state = daemons()
    state.take_service("web", "auto", "b")
    assert state.shrink_service("web") == ()


def test_nobody_new_gets_an_address_in_a_subnet_that_another_node_has(daemons):
    """And it goes with the last who is in it, once the service has another."""
    state = daemons()
    state.take_service("web", "auto", "zl-web")
    (lost,) = state.services["web"].subnets
    old = attach(state, "c1")
    state.set_lost([lost])
    with pytest.raises(NeedsSlot):
        attach(state, "c2")
    with pytest.raises(NeedsSlot):
        state.lease("web")
    _, fresh = state.grow_service("web", 4).subnets
    assert ipaddress.ip_address(ip_of(attach(state, "c2"))) in ipaddress.ip_network(fresh)
    assert state.idle_slots("web") == ()
    state.drop(old.key)
    assert state.shrink_service("web") == (ipaddress.ip_network(lost),)
    state.set_lost([])
    assert state.shrink_service("web") == ()


def test_slots_grown_shrunk_and_grown_again_never_meet(daemons):
    state = daemons()
    state.take_service("db", "auto", "b2")
    attach(state)
    for _ in range(3):
        state.grow_service("web", 4)
        state.grow_service("db", 4)
        networks = [each for service in state.services.values() for each in service.subnets]
        assert len(set(networks)) == len(networks)
        state.shrink_service("db")
        state = daemons()


def test_a_dropped_services_slot_is_free(daemons):
    state = daemons()
    slot = state.take_service("web", "auto", "b").subnets
    assert state.drop_service("web").subnets == slot
    assert state.drop_service("web") is None
    assert state.take_service("web", "auto", "b").subnets == slot


def test_a_slot_with_addresses_in_use_is_nobody_elses(daemons):
    state = daemons(cluster_cidr="10.9.0.0/25")
    attach(state)
    state.drop_service("web")
    with pytest.raises(PoolExhausted):
        state.take_service("db", "auto", "b2")


def test_growing_into_a_full_cluster_changes_nothing(daemons):
    state = daemons(cluster_cidr="10.9.0.0/25")
    state.take_service("web", "auto", "b")
    before = knowledge(state)
    with pytest.raises(PoolExhausted):
        state.grow_service("web", 4)
    assert knowledge(state) == before


# --- addresses ---


def test_addresses_are_given_in_order_and_once(daemons):
    state = daemons()
    made = [ip_of(attach(state, f"c{n}")) for n in range(61)]
    assert made == sorted(set(made), key=ipaddress.ip_address)
    with pytest.raises(NeedsSlot) as caught:
        attach(state, "c61")
    assert caught.value.version == 4
    assert len(state.attachments) == 61


def test_a_released_address_cools_across_a_restart_and_comes_last(daemons, clock):
    state = daemons()
    first = ip_of(attach(state))
    state.drop(("blue", "c1", "eth0"))
    state = daemons()
    assert state.in_cooldown([first]) == [first]
    assert ip_of(attach(state, "c3")) != first
    clock.now += 10
    assert state.in_cooldown([first]) == []
    assert ip_of(attach(state, "c2", first)) == first


def test_an_address_that_is_requested_by_name_has_no_cooldown(daemons):
    state = daemons()
    first = ip_of(attach(state))
    state.drop(("blue", "c1", "eth0"))
    assert state.left_behind() == [first]
    assert ip_of(attach(state, "c2", first)) == first
    assert state.left_behind() == []
    assert state.in_cooldown([first]) == [first], "the caller deletes what the last owner left"


def test_a_reservation_that_was_never_used_does_not_cool(daemons):
    state = daemons()
    first = ip_of(attach(state))
    state.drop(("blue", "c1", "eth0"), used=False)
    assert ip_of(attach(state, "c2")) == first


def test_an_address_is_new_to_its_neighbours_only_with_another_mac(daemons):
    """Only then an attach announces it: a bridge floods an announcement to all of its ports."""
    state = daemons()
    made = attach(state)
    first, own = ip_of(made), made.mac
    assert not state.had_other_mac([first], own), "the address had no owner before"
    state.drop(made.key)
    assert not state.had_other_mac([first], own)
    assert state.had_other_mac([first], "0a:00:00:00:00:07")
    assert state.had_other_mac([first, "10.0.9.9"], "0a:00:00:00:00:07")
    tuned = msgspec.structs.replace(attach(state, "c2", first), mac="0a:00:00:00:00:07")
    state.save(tuned)
    state.drop(tuned.key)
    assert state.had_other_mac([first], own)
    assert daemons().had_other_mac([first], own), "the next daemon does not know the last owner's MAC"


def test_what_is_counted_is_what_a_search_finds(daemons):
    state = daemons(cluster_cidr6="fd00:9::/112")
    state.take_service("web", "auto", "zl-web-b")
    state.grow_service("web", 4)
    slots = {version: state.services["web"].networks(version) for version in (4, 6)}
    made = [attach(state, f"c{number}") for number in range(70)]
    assert {ipaddress.ip_network(f"{ip_of(each)}/26", strict=False) for each in made} == set(slots[4])
    for network in (*slots[4], *slots[6], ipaddress.ip_network("10.200.0.0/16"), ipaddress.ip_network("fd00:9::/112")):
        held = [address for address in state._addresses.held if address.version == network.version]
        for part in (network, *itertools.islice(network.subnets(new_prefix=network.max_prefixlen - 2), 40)):
            assert state.has_held_address(part) == any(address in part for address in held), part
    assert state.in_use("web")
    for each in made:
        state.drop(each.key)
    assert not state.in_use("web")
    assert not any(state.has_held_address(network) for network in (*slots[4], *slots[6]))


def test_dropping_twice_changes_nothing(daemons, clock):
    state = daemons()
    attach(state)
    state.drop(("blue", "c1", "eth0"))
    before = knowledge(state)
    clock.now += 5
    state.drop(("blue", "c1", "eth0"))
    assert knowledge(state) == before


def test_a_record_saved_again_holds_its_address_once(daemons):
    state = daemons()
    made = attach(state)
    for _ in range(3):
        state.save(made)
    state.drop(made.key)
    assert knowledge(state)[4] == {}


def test_an_address_that_was_asked_for_is_refused_while_held(daemons):
    state = daemons()
    taken = ip_of(attach(state))
    with pytest.raises(AddressUnavailable):
        attach(state, "c2", taken)
    assert [key[1] for key in state.attachments] == ["c1"]


def test_both_families_or_none(daemons):
    state = daemons(cluster_cidr6="fd00:9::/112")
    made = attach(state)
    assert [ipaddress.ip_interface(held.address).network.prefixlen for held in made.addresses] == [26, 120]
    with pytest.raises(AddressUnavailable):
        attach(state, "c2", made.addresses[1].ip)
    assert len(knowledge(state)[4]) == 2


@pytest.mark.parametrize("change", ["reserve", "save", "drop", "take", "grow", "shrink", "lease", "release", "node"])
def test_what_cannot_be_written_did_not_happen(daemons, monkeypatch, change):
    state = daemons()
    made = attach(state)
    state.grow_service("web", 4)
    lease = state.lease("web").ip
    before = knowledge(state)

    def full(_changes):
        raise InputOutput("disk full")

    monkeypatch.setattr(state._store, "apply", full)
    with pytest.raises(InputOutput):
        {
            "reserve": lambda: attach(state, "c2"),
            "save": lambda: state.save(attachment("c9")),
            "drop": lambda: state.drop(made.key),
            "take": lambda: state.take_service("db", "auto", "b"),
            "grow": lambda: state.grow_service("web", 4),
            "shrink": lambda: state.shrink_service("web"),
            "lease": lambda: state.lease("web"),
            "release": lambda: state.release(lease),
            "node": lambda: state.update_node(node_id=9),
        }[change]()
    assert knowledge(state) == before


def test_many_releases_do_not_pile_up(daemons, clock):
    state = daemons(cluster_cidr="10.0.0.0/8", address_cooldown=0.0)
    state.take_service("web", "auto", "b")
    state._addresses.released = {ipaddress.ip_address("10.0.0.0") + n: 0.0 for n in range(5000)}
    attach(state)
    state.drop(("blue", "c1", "eth0"))
    assert len(state._addresses.released) == 1


# --- leases ---


def test_a_lease_is_nobodys_address_until_it_is_released(daemons, clock):
    state = daemons()
    state.take_service("web", "auto", "b")
    lease = state.lease("web").ip
    assert ip_of(attach(state)) != lease
    with pytest.raises(AddressUnavailable):
        attach(state, "c2", lease)
    assert state.release(lease)
    assert not state.release(lease)
    assert ip_of(attach(state, "c2", lease)) == lease


def test_releasing_does_not_take_an_attachments_address(daemons):
    state = daemons()
    made = attach(state)
    assert not state.release(ip_of(made))
    assert state.attachments == {made.key: made}


def test_a_lease_of_no_service_is_a_key_error(daemons):
    with pytest.raises(KeyError):
        daemons().lease("absent")


# --- room ---


def test_there_is_room_until_the_cluster_is_full(daemons, clock):
    state = daemons(cluster_cidr="10.9.0.0/25")
    assert state.has_room("web")
    made = [attach(state, f"c{n}") for n in range(61)]
    assert not state.has_room("web")
    assert not state.has_room("other")
    state.drop(made[0].key)
    assert not state.has_room("web")
    assert isinstance(state.full("web", 4), TryAgainLater)
    clock.now += 10
    assert state.has_room("web")
    assert isinstance(state.full("web", 4), PoolExhausted)


def test_asking_for_room_takes_none(daemons):
    state = daemons()
    before = knowledge(state)
    assert state.has_room("web")
    assert knowledge(state) == before


# --- locks ---


def test_one_lock_per_name():
    locks, order = Locks(), []

    def work(name, seconds):
        with locks.holding(name):
            order.append(f"{name} in")
            time.sleep(seconds)
            order.append(f"{name} out")

    with locks.holding("b"):
        first = threading.Thread(target=work, args=("a", 0.05))
        first.start()
        first.join(5)
        assert order == ["a in", "a out"]
    threads = [threading.Thread(target=work, args=("a", 0.01)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert order == ["a in", "a out"] * 6


def test_a_lock_nobody_wants_is_forgotten():
    locks = Locks()
    with pytest.raises(ZeroDivisionError), locks.holding("a"), locks.holding("a"):
        1 / 0  # noqa: B018
    assert locks._held == {}


@pytest.mark.parametrize(
    ("bridge", "mac", "refused"),
    [
        ("zl-web-b", "06:00:00:00:00:01", True),
        ("zl-db-b", "06:00:00:00:00:01", False),
        ("zl-web-b", "06:00:00:00:00:02", False),
        ("zl-web-b", "0a:58:0a:09:00:77", True),
        ("zl-web-b", "02:00:00:00:00:01", True),
    ],
)
def test_a_mac_is_one_ports_on_a_bridge(daemons, bridge, mac, refused):
    state = daemons()
    state.take_service("web", "auto", "zl-web-b")
    state.reserve(attachment(mac="06:00:00:00:00:01"), "web", [])
    again = attachment(mac="06:00:00:00:00:01")
    assert state.reserve(again, "web", []).mac == again.mac  # its own it keeps
    wanted = attachment("c2", mac=mac, bridge=bridge)
    if refused:
        with pytest.raises(AddressUnavailable, match=mac):
            state.reserve(wanted, "web", [])
        assert wanted.key not in state.attachments
    else:
        assert state.reserve(wanted, "web", []).mac == mac
