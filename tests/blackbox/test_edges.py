"""Cases at the edge of the rules, each once got wrong here: E7, K2, PR4, C1, V9, and a fence that was flushed."""

from __future__ import annotations

import copy
import json
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


def test_an_add_after_somebody_flushed_every_table(fresh: Lab, at: At, need: Need) -> None:
    """As the restart of a firewall does. The fence is whole again for the very next container."""
    need("daemon")
    world = fresh("base")
    conf = world.conf(at("1.0.0"))
    world.container().attach(conf)
    for _ in range(3):
        for table in json.loads(world.sh("nft -j list tables"))["nftables"]:
            if "table" in table:
                world.sh(f"nft delete table {table['table']['family']} {table['table']['name']}")
        box = world.container()
        result = box.attach(conf)
        box.check(conf, result).ok()
        assert box.ping(shapes.gateways(result)[0])
