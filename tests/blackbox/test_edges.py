"""Cases at the edge of the rules, each once got wrong here: E7, K2, PR4, C1, V9, L26."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest

from .harness import shapes
from .harness.template import Json
from .harness.world import Container, World

Lab = Callable[[str], World]
At = Callable[..., str]
Need = Callable[[str], None]


@pytest.fixture
def conf(world: World, at: At) -> Json:
    return world.conf(at("1.1.0", "1.0.0"))


@pytest.fixture
def box(world: World) -> Container:
    return world.container()


@pytest.mark.parametrize("ifname", ["eth%d", "%d", "all", "default"])
def test_e7_a_name_that_means_something_else_to_the_kernel(
    world: World, conf: Json, box: Container, need: Need, ifname: str
) -> None:
    """`%d` would come out as a number that the runtime does not know of. DEL has nothing to do, and says nothing."""
    need("daemon")
    before = world.links(box.path)
    box.add(conf, ifname).failed(4, says=["CNI_IFNAME", ifname])
    assert world.links(box.path) == before
    box.delete(conf, ifname).ok()


@pytest.mark.parametrize(
    "dns", [{"Servers": ["bogus"]}, {"servers": ["10.0.0.1/8"]}, {"Searches": ["a b"]}, {"options": ["a\nb"]}], ids=str
)
def test_k2_dns_that_no_resolver_could_read(conf: Json, box: Container, need: Need, dns: Json) -> None:
    need("capability-dns")
    (member,) = dns
    box.add({**conf, "runtimeConfig": {"dns": dns}}).failed(2, 7, says=[member.lower()])
    assert box.link() is None


def test_k2_dns_with_the_empty_words_of_some_kubelets(conf: Json, box: Container, need: Need) -> None:
    need("capability-dns")
    result = box.attach({**conf, "runtimeConfig": {"dns": {"Servers": ["10.0.0.10"], "Searches": [""]}}})
    assert result["dns"] == {"nameservers": ["10.0.0.10"]}


@pytest.mark.parametrize("member", [{"table": 100}, {"priority": 7}, {"mtu": 1300}, {"scope": 253}], ids=str)
def test_v9_a_route_that_would_not_be_made_as_it_says(
    conf: Json, box: Container, need: Need, member: dict[str, int]
) -> None:
    need("daemon")
    ((key, value),) = member.items()
    box.add({**conf, "routes": [{"dst": "192.0.2.0/24", **member}]}).failed(2, says=[key, str(value)])
    assert box.link() is None


@pytest.mark.parametrize(("ours", "theirs"), [("1.0.0", "0.2.0"), ("0.2.0", "1.0.0"), ("1.0.0", "9.9.9")])
def test_pr4_a_previous_result_of_another_shape(
    world: World, box: Container, need: Need, ours: str, theirs: str
) -> None:
    """Read in the configuration's shape it would be empty, and what an earlier plugin made would be lost."""
    need("daemon")
    old = {"cniVersion": theirs, "ip4": {"ip": "192.0.2.9/24"}, "ips": [{"address": "192.0.2.9/24"}]}
    broken = world.conf(ours, prevResult=old)
    box.add(broken).failed(6, says=["prevResult"])
    assert box.link() is None
    box.delete(broken).ok()


def change(result: Json, where: int, **members: Any) -> Json:
    found = copy.deepcopy(result)
    found["interfaces"][where].update(members)
    return found


@pytest.mark.parametrize("what", ["mac", "host-end", "bridge", "address"])
def test_c1_a_result_that_is_not_what_there_is(conf: Json, box: Container, need: Need, what: str) -> None:
    need("check")
    need("daemon")
    if what == "bridge" and "unbridged" in box.world.template.features:
        pytest.skip("the result has no bridge")
    result = box.attach(conf)
    number = next(n for n, each in enumerate(result["interfaces"]) if each.get("sandbox"))
    more = {"address": "192.0.2.9/24", "interface": number}
    changed = {
        "mac": change(result, number, mac="02:aa:bb:cc:dd:ee"),
        "host-end": change(result, number - 1, name="veth01234567"),
        "bridge": change(result, 0, name="cni9"),
        "address": {**result, "ips": [*result["ips"], more]},
    }[what]
    box.check(conf, changed).failed()
    box.check(conf, result).ok()


@pytest.mark.parametrize("verb", ["CHECK", "DEL", "GC", "STATUS"])
def test_a_closed_stdout_stops_no_verb_without_a_result(
    world: World, box: Container, at: At, need: Need, verb: str
) -> None:
    need("daemon")
    conf = world.conf(at("1.1.0"))
    result = box.attach(conf)
    answer = world.call(
        verb,
        {**conf, "prevResult": result},
        cid=box.cid,
        path=str(box.path),
        ifname="eth0",
        command=["sh", "-c", 'exec "$@" >&-', "sh", *world.command],
    )
    assert answer.rc == 0, answer
    assert (box.link() is None) == (verb == "DEL")


def soon(ready: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def with_mac(box: Container, result: Json, mac: str) -> Json:
    """The final result after `tuning` with a `mac`, and what it does."""
    box.sh(f"ip link set eth0 address {mac}")
    number = next(n for n, each in enumerate(result["interfaces"]) if each.get("sandbox"))
    return change(result, number, mac=mac)


def test_l26_a_mac_that_a_later_plugin_sets_does_not_cut_the_container_off(fresh: Lab, at: At, need: Need) -> None:
    need("daemon")
    world = fresh("base")
    conf = world.conf(at("1.0.0"))
    world.warm(conf)
    before = world.snapshot()
    neighbour, box = world.container(), world.container()
    other = neighbour.attach(conf)
    first = box.attach(conf)
    (gateway,) = shapes.gateways(first)
    assert box.ping(gateway)
    final = with_mac(box, first, "02:aa:bb:cc:dd:ee")
    assert soon(lambda: box.ping(gateway))
    assert neighbour.ping(shapes.bare(first)[0])
    box.check(conf, final).ok()
    box.delete(conf, prev=final).ok()
    neighbour.delete(conf, prev=other).ok()
    for each in (neighbour, box):
        each.remove()
    world.assert_baseline(before)


def test_a_mac_of_another_is_not_taken_over(fresh: Lab, at: At, need: Need) -> None:
    """A container with a neighbour's MAC, or the gateway's, would receive that one's frames."""
    need("daemon")
    world = fresh("base")
    conf = world.conf(at("1.0.0"))
    neighbour = world.container()
    other = neighbour.attach(conf)
    (gateway,) = shapes.gateways(other)
    for theirs in (shapes.inside(other)[0]["mac"], other["interfaces"][0]["mac"], other["interfaces"][1]["mac"]):
        box = world.container()
        result = box.attach(conf)
        with_mac(box, result, theirs)
        assert not soon(lambda: box.ping(gateway), 2)  # noqa: B023 - called at once
        assert neighbour.ping(gateway)
        own = shapes.inside(result)[0]["mac"]
        with_mac(box, result, own)
        assert soon(lambda: box.ping(gateway))  # noqa: B023 - called at once
