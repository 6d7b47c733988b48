"""BB-L12, L19, L27 and A6: what is left behind. In a module of its own, so that nothing else lives in the world."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from .harness import netns, shapes
from .harness.calls import BARE_ENV
from .harness.world import World

Lab = Callable[[str], World]
At = Callable[..., str]


@pytest.mark.parametrize("variant", ["base", "v6", "dual", "masq"])
def test_l12_del_leaves_nothing(lab: Lab, version: str, variant: str) -> None:
    """Links, addresses, routes, rules, neighbours, nftables, sysctls, processes, files: as before the ADD."""
    world = lab(variant)
    conf = world.conf(version, variant=variant)
    world.warm(conf)
    before = world.snapshot()
    box = world.container()
    result = box.attach(conf)
    box.delete(conf, prev=result).ok()
    assert box.link() is None
    box.remove()
    world.assert_baseline(before)


def test_l12_del_leaves_the_container_as_it_was(lab: Lab, at: At) -> None:
    """Inside too: links, addresses, routes and sysctls of the container's namespace."""
    world = lab("base")
    conf = world.conf(at("1.0.0"))
    world.warm(conf)
    box = world.container()
    box.delete(conf, prev=box.attach(conf)).ok()
    before = world.look(box.path)
    box.delete(conf, prev=box.attach(conf)).ok()
    world.assert_same(before, lambda: world.look(box.path))


def test_l12_del_leaves_no_neighbour(lab: Lab, at: At) -> None:
    """The next owner of the address has another MAC; a bridge with other ports keeps its neighbours."""
    world = lab("base")
    conf = world.conf(at("1.0.0"))
    world.container().attach(conf)
    box = world.container()
    result = box.attach(conf)
    assert box.ping(shapes.gateways(result)[0])
    (address,) = shapes.bare(result)
    assert any(entry["dst"] == address for entry in world.ip("neigh"))
    box.delete(conf, prev=result).ok()
    assert not [entry for entry in world.ip("neigh") if entry["dst"] == address and "FAILED" not in entry["state"]]


@pytest.mark.parametrize("variant", ["base", "masq"])
def test_l12_del_without_the_namespace_leaves_nothing(lab: Lab, at: At, variant: str) -> None:
    world = lab(variant)
    conf = world.conf(at("1.0.0"), variant=variant)
    world.warm(conf)
    before = world.snapshot()
    box = world.container()
    result = box.attach(conf)
    box.vanish()
    box.delete(conf, prev=result, path="").ok()
    world.assert_baseline(before)


def test_l19_no_namespace_at_the_path(lab: Lab, at: At) -> None:
    world = lab("base")
    conf = world.conf(at("1.0.0"))
    world.warm(conf)
    before = world.snapshot()
    box = world.container()
    box.add(conf, path="/run/netns/zlt-bb-never").failed()
    world.assert_baseline(before)


def test_l27_a_result_that_the_version_cannot_hold(lab: Lab, at: At) -> None:
    """No address, and a version whose results need one: an error, and nothing stays of the attempt."""
    world = lab("base")
    conf = world.conf(at("0.2.0"), variant="l2")
    box = world.container()
    box.add(conf).failed()
    assert box.link() is None
    assert not world.ip("link", "show", "type", "veth", "master", conf["bridge"])


def test_a6_addresses_that_the_version_cannot_hold(lab: Lab, at: At) -> None:
    world = lab("ranges3")
    box = world.container()
    box.add(world.conf(at("0.2.0"))).failed()
    assert box.link() is None


def test_a6_stdout_that_nobody_reads(lab: Lab, at: At) -> None:
    """The runtime is gone before the result is written: the attachment must not stay."""
    world = lab("base")
    conf = world.conf(at("1.0.0"))
    world.warm(conf)
    before = world.snapshot()
    box = world.container()
    read, write = os.pipe()
    os.close(read)
    env = {
        **BARE_ENV,
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": box.cid,
        "CNI_NETNS": str(box.path),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": world.cni_path,
    }
    done = netns.inside(world.host, lambda: world.spawn(env, json.dumps(conf).encode(), stdout=write))
    os.close(write)
    assert done.returncode != 0, done
    box.vanish()
    world.assert_baseline(before)


@pytest.mark.parametrize("breaking", ["ifname-taken", "unreachable-route"])
def test_a6_a_failure_late_in_add_leaves_nothing(lab: Lab, at: At, breaking: str) -> None:
    """The interface exists already, or a route cannot be set: what was made before is taken back."""
    world = lab("base")
    conf = world.conf(at("1.0.0"))
    world.warm(conf)
    box = world.container()
    box.sh("ip link add eth0 type bridge" if breaking == "ifname-taken" else "ip link set lo up")
    if breaking != "ifname-taken":
        conf = late_failure(world, conf)
    before = world.snapshot()
    box.add(conf).failed()
    world.assert_baseline(before)


def late_failure(world: World, conf: shapes.Json) -> shapes.Json:
    """A route by a gateway that is nowhere: found out only when everything else is in place."""
    route = {"dst": "10.123.0.0/16", "gw": "192.0.2.77"}
    if "ipam" in conf:
        return {**conf, "ipam": {**conf["ipam"], "routes": [route]}}
    return {**conf, "routes": [route]}
