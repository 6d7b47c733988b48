"""BB-I: addresses: given once, within their bounds, kept while they are used and free again afterwards."""

from __future__ import annotations

import ipaddress
import itertools
import signal
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .harness import shapes
from .harness.template import Json
from .harness.world import Container, World

Lab = Callable[[str], World]
At = Callable[..., str]
Need = Callable[[str], None]

MOST = 130  # more than the smallest pool of any template holds
numbers = itertools.count(1)


def own_network(world: World, at: At, **more: object) -> Json:
    """A network that no other test uses."""
    return world.conf(at("1.1.0", "1.0.0"), name=f"zlt-ipam-{next(numbers)}", **more)


def fill(box: Container, conf: Json) -> list[Json]:
    """Attach until the pool is empty; the results."""
    results = []
    for number in range(MOST):
        answer = box.add(conf, f"n{number}")
        if answer.rc != 0:
            box.attached.pop((conf["name"], f"n{number}"))
            error = answer.failed()
            assert "address" in error["msg"].lower() or "address" in error.get("details", "").lower(), answer
            return results
        results.append(answer.ok())
    raise AssertionError(f"{MOST} addresses from the smallest pool")


def pool_of(world: World, interface: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> ipaddress.IPv4Network:
    """The network that an IPv4 address is given from. An attach without a bridge answers single addresses (/32) of a
    slot, which has 64."""
    unbridged = "unbridged" in world.template.features
    return ipaddress.IPv4Network(f"{interface.ip}/26", strict=False) if unbridged else interface.network  # type: ignore[return-value]


def test_i01_i02_i04_a_pool_from_the_first_to_the_last_address(fresh: Lab, at: At) -> None:
    """Each once; never network, broadcast or gateway; the end is an error, and a DEL frees again."""
    world = fresh("tiny")
    conf = world.conf(at("1.1.0", "1.0.0"))
    box = world.container()
    results = fill(box, conf)
    interfaces = [ipaddress.ip_interface(shapes.addresses(result)[0]) for result in results]
    gateways = {gateway for result in results for gateway in shapes.gateways(result)}
    networks = {pool_of(world, item) for item in interfaces}
    assert len({item.ip for item in interfaces}) == len(interfaces) == sum(net.num_addresses - 3 for net in networks)
    for network in networks:
        given = [item.ip for item in interfaces if pool_of(world, item) == network]
        assert given == sorted(given), "in order, from a fresh pool"
        assert network[0] not in given and network[-1] not in given
    assert not gateways & {str(item.ip) for item in interfaces}
    box.delete(conf, "n2", prev=results[2]).ok()
    again = box.attach(conf, "n2")
    assert shapes.addresses(again) == shapes.addresses(results[2])


def test_i04_status_tells_that_the_pool_is_empty(fresh: Lab, at: At, need: Need) -> None:
    need("status")
    world = fresh("tiny")
    conf = world.conf(at("1.1.0"))
    box = world.container()
    results = fill(box, conf)
    world.in_time("STATUS", conf).failed(50)
    box.delete(conf, "n0", prev=results[0]).ok()
    world.ready(conf)


def test_i01_a_released_address_is_not_the_next_one(fresh: Lab, at: At, need: Need) -> None:
    need("round-robin")
    world = fresh("base")
    box, conf = world.container(), world.conf(at("1.0.0"))
    first = box.attach(conf)
    box.delete(conf, prev=first).ok()
    assert shapes.addresses(box.attach(conf)) != shapes.addresses(first)


def test_i03_limits_of_a_range(lab: Lab, at: At) -> None:
    world = lab("limits")
    results = fill(world.container(), own_network(world, at))
    assert shapes.bare({"ips": [item for result in results for item in result["ips"]]}) == [
        "10.85.0.20",
        "10.85.0.21",
        "10.85.0.22",
    ]


def asked_by(how: str, address: str) -> tuple[Json, str | None]:
    """Ways to ask for an address: keys of the configuration, and CNI_ARGS."""
    ways: dict[str, tuple[Json, str | None]] = {
        "runtimeConfig": ({"runtimeConfig": {"ips": [address]}}, None),
        "args": ({"args": {"cni": {"ips": [address]}}}, None),
        "CNI_ARGS": ({}, f"IgnoreUnknown=1;IP={address.split('/', maxsplit=1)[0]}"),
    }
    return ways[how]


@pytest.mark.parametrize("how", ["runtimeConfig", "args", "CNI_ARGS"])
def test_i05_an_address_that_was_asked_for(world: World, at: At, need: Need, how: str) -> None:
    """Given if it is free; an error, never another address, if it is taken or not ours to give (K5)."""
    need("requested-ip")
    conf = own_network(world, at)
    base = world.container().attach(conf)
    mine = ipaddress.ip_interface(shapes.addresses(base)[0])
    pool = pool_of(world, mine)
    wanted = pool[40]

    keys, args = asked_by(how, f"{wanted}/{mine.network.prefixlen}")
    box = world.container()
    assert shapes.bare(box.attach({**conf, **keys}, args=args)) == [str(wanted)]
    for bad in (mine.ip, shapes.gateways(base)[0], pool[0], "203.0.113.7"):
        keys, args = asked_by(how, f"{bad}/{mine.network.prefixlen}")
        world.container().add({**conf, **keys}, args=args).failed()


def test_i06_an_address_of_a_family_that_is_not_there(world: World, at: At, need: Need) -> None:
    need("requested-ip")
    conf = own_network(world, at, runtimeConfig={"ips": ["2001:db8:99::5/64"]})
    world.container().add(conf).failed()


BAD_RANGES: dict[str, list[list[dict[str, str]]]] = {
    "31": [[{"subnet": "10.84.0.0/31"}]],
    "32": [[{"subnet": "10.84.0.0/32"}]],
    "host-bits": [[{"subnet": "10.84.0.5/24"}]],
    "overlap": [[{"subnet": "10.84.0.0/24"}, {"subnet": "10.84.0.128/25"}]],
    "overlap-of-sets": [[{"subnet": "10.84.0.0/24"}], [{"subnet": "10.84.0.128/25"}]],
    "mixed": [[{"subnet": "10.84.0.0/24"}, {"subnet": "fd00:84::/64"}]],
    "start-outside": [[{"subnet": "10.84.0.0/24", "rangeStart": "10.83.0.1"}]],
}


@pytest.mark.parametrize("which", BAD_RANGES)
def test_i07_ranges_that_make_no_sense(world: World, at: At, need: Need, which: str) -> None:
    need("delegates-ipam")
    conf = own_network(world, at)
    conf["ipam"] = {**conf["ipam"], "ranges": BAD_RANGES[which]}
    world.container().add(conf).failed()
    assert world.reserved(conf["name"]) == set()


def test_i08_each_interface_has_its_own_reservation(world: World, at: At) -> None:
    conf = own_network(world, at)
    box = world.container()
    one, two = box.attach(conf, "eth0"), box.attach(conf, "net1")
    assert world.reserved(conf["name"]) == {*shapes.bare(one), *shapes.bare(two)}
    box.delete(conf, "eth0", prev=one).ok()
    assert world.reserved(conf["name"]) == set(shapes.bare(two))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_i09_reservations_outlive_the_daemon(fresh: Lab, at: At, need: Need, number: int) -> None:
    need("daemon")
    world = fresh("base")
    box, conf = world.container(), world.conf(at("1.0.0"))
    first = box.attach(conf)
    world.stop_daemon(number)
    assert box.ping(shapes.gateways(first)[0]), "the data path does not need the daemon"
    other = world.container()
    second = other.attach(conf)
    assert set(shapes.addresses(first)).isdisjoint(shapes.addresses(second))
    box.check(conf, first).ok()
    assert box.ping(shapes.bare(second)[0])
    box.delete(conf, prev=first).ok()
    other.delete(conf, prev=second).ok()
    assert world.reserved() == set()


def test_i09_a_del_while_no_daemon_runs(fresh: Lab, at: At, need: Need) -> None:
    """F10: it succeeds, and the address is free when a daemon runs again."""
    need("daemon")
    world = fresh("base")
    box, conf = world.container(), world.conf(at("1.0.0"))
    result = box.attach(conf)
    world.stop_daemon()
    box.delete({**conf, "autostart": False}, prev=result).ok()
    box.remove()
    world.warm(conf)
    assert world.reserved() == set()
    assert not world.ip("link", "show", "type", "veth", "master", result["interfaces"][0]["name"])


def test_i10_half_of_two_families_is_given_back(lab: Lab, at: At) -> None:
    """The second pool is empty: the address of the first is free again."""
    world = lab("dual-tiny-v6")
    conf = own_network(world, at)
    box = world.container()
    results = fill(box, conf)
    held = {address for result in results for address in shapes.bare(result)}
    for number in range(3):
        box.add(conf, f"x{number}").failed()
        box.attached.pop((conf["name"], f"x{number}"))
    assert world.reserved(conf["name"]) == held


STEPS = st.lists(st.tuples(st.sampled_from(["add", "del", "crash", "del-gone"]), st.integers(0, 3)), max_size=12)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_i12_reservations_are_the_live_attachments(world: World, at: At, steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order. A container that vanished may keep its address until its DEL."""
    conf = own_network(world, at)
    live: dict[int, tuple[Container, Json]] = {}
    gone: dict[int, tuple[Container, Json]] = {}
    for what, who in steps:
        if what == "add" and who not in live and who not in gone:
            box = world.container(f"zlt-{conf['name']}-{who}")
            live[who] = (box, box.attach(conf))
        elif what == "del" and who in live:
            box, result = live.pop(who)
            box.delete(conf, prev=result).ok()
            box.remove()
        elif what == "crash" and who in live:
            gone[who] = live.pop(who)
            gone[who][0].vanish()
        elif what == "del-gone" and who in gone:
            box, result = gone.pop(who)
            box.delete(conf, path="").ok()
        held = [address for _, result in live.values() for address in shapes.bare(result)]
        may = [address for _, result in gone.values() for address in shapes.bare(result)]
        assert len(set(held)) == len(held)
        assert set(held) <= world.reserved(conf["name"]) <= {*held, *may}
    for box, result in [*live.values(), *gone.values()]:
        box.delete(conf, prev=result).ok()
        box.remove()
    assert world.reserved(conf["name"]) == set()
