"""BB-L15 to L18, L22, and the faults of conformance 15: odd paths, foreign namespaces, the host's."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import netns, shapes
from .harness.template import Json
from .harness.world import HOST, World

Lab = Callable[[str], World]
At = Callable[..., str]
Need = Callable[[str], None]

ODD_PATHS = ["missing", "file", "directory", "fifo", "socket", "device", "dangling", "utsns", "nowhere", "long"]


@pytest.fixture
def conf(world: World, at: At) -> Json:
    return world.conf(at("1.0.0"))


@pytest.fixture
def odd_path(world: World, request: pytest.FixtureRequest) -> Iterator[str]:
    """A path that is no network namespace, of the kind asked for."""
    place = world.dir / "odd"
    kind = request.param
    if kind == "file":
        place.touch()
    elif kind == "directory":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
    elif kind == "dangling":
        place.symlink_to(world.dir / "nothing")
    special = {
        "device": "/dev/null",
        "utsns": "/proc/self/ns/uts",
        "nowhere": "/proc/4194303/ns/net",
        "missing": "/run/netns/zlt-bb-never",
        "long": "/run/netns/" + "n" * 300,
    }
    yield special.get(kind, str(place))
    if place.is_dir() and not place.is_symlink():
        place.rmdir()
    else:
        place.unlink(missing_ok=True)


@pytest.mark.parametrize("odd_path", ODD_PATHS, indirect=True)
def test_l15_del_with_a_path_that_is_no_namespace(world: World, conf: Json, odd_path: str) -> None:
    """A left-over plain file in /run/netns is common; none of these may make DEL fail, or wait."""
    box = world.container()
    box.delete(conf, path=odd_path, patience=15).ok()


@pytest.mark.parametrize("odd_path", ODD_PATHS, indirect=True)
def test_l15_add_with_a_path_that_is_no_namespace(world: World, conf: Json, odd_path: str) -> None:
    world.warm(conf)
    before = world.links()
    world.container().add(conf, path=odd_path, patience=15).failed()
    assert world.links() == before


@pytest.mark.parametrize("path", ["", "/run/netns/zlt-bb-never"], ids=["empty", "missing"])
def test_l15_del_after_the_namespace_is_gone(world: World, conf: Json, path: str) -> None:
    """D3: the address is free again; here seen by adding the same container anew."""
    box = world.container()
    result = box.attach(conf)
    box.vanish()
    box.delete(conf, prev=result, path=path).ok()
    again = world.container(box.cid)
    fresh = again.attach(conf)
    assert again.addresses() == set(shapes.addresses(fresh))


@pytest.mark.parametrize(
    "prev",
    [7, "x", [], {}, {"cniVersion": "9.9.9"}, {"ips": 5}, {"cniVersion": "1.0.0", "ips": [{"address": "x"}]}],
    ids=str,
)
def test_l16_del_with_a_garbage_previous_result(world: World, conf: Json, prev: object) -> None:
    """D4, PR3: nothing in a result that was kept for us can make DEL fail."""
    box = world.container()
    box.attach(conf)
    box.delete({**conf, "prevResult": prev}).ok()
    assert box.link() is None


def test_l16_del_without_previous_result(world: World, version: str) -> None:
    box, conf = world.container(), world.conf(version)
    box.attach(conf)
    box.delete(conf).ok()
    assert box.link() is None


def test_l17_add_where_the_name_is_taken(world: World, version: str) -> None:
    """By another program's link: an error, and the link is as it was."""
    box, conf = world.container(), world.conf(version)
    box.sh("ip link add eth0 type bridge; ip addr add 192.0.2.9/24 dev eth0; ip link set eth0 up")
    link = box.link()
    box.add(conf).failed(says=["eth0"])
    after = box.link()
    assert link is not None and after is not None and after["ifindex"] == link["ifindex"]
    assert box.addresses() == {"192.0.2.9/24"}


def test_l17_add_twice(world: World, version: str) -> None:
    """A2, A7: a second ADD with the interface in place is an error and touches nothing."""
    box, conf = world.container(), world.conf(version)
    result = box.attach(conf)
    box.add(conf).failed()
    assert box.addresses() == set(shapes.addresses(result))
    if version in {"0.4.0", "1.0.0", "1.1.0"}:
        box.check(conf, result).ok()
    assert box.ping(shapes.gateways(result)[0])


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_l18_the_hosts_own_namespace(fresh: Lab, at: At, verb: str) -> None:
    """E6: code 8 before anything is touched. The host's eth0 is alive and well afterwards."""
    world = fresh("base")
    conf = world.conf(at("1.0.0"))
    world.warm(conf)
    before = world.snapshot()
    answer = world.call(verb, conf, cid="zlt-own", path=str(world.host), ifname="eth0")
    world.assert_baseline(before)
    assert HOST in str(world.ip("addr", "show", "dev", "eth0"))
    answer.failed(8)


@pytest.mark.parametrize("how", ["/proc/self/ns/net", "/proc/thread-self/ns/net"])
def test_l18_the_plugins_own_namespace_by_proc(fresh: Lab, at: At, how: str) -> None:
    world = fresh("base")
    conf = world.conf(at("1.0.0"))
    world.warm(conf)
    before = world.snapshot()
    answer = world.call("ADD", conf, cid="zlt-own", path=how, ifname="zown0")
    world.assert_baseline(before)
    answer.failed(8)


@pytest.mark.parametrize("word", ["TRUE", "true", "1"])
def test_l18_the_hosts_own_namespace_when_told_to(fresh: Lab, at: At, word: str) -> None:
    world = fresh("base")
    conf = world.conf(at("1.0.0"))
    env = {"CNI_NETNS_OVERRIDE": word}
    own = {"cid": "zlt-own", "path": str(world.host), "ifname": "zown0", "env": env}
    world.call("ADD", conf, **own).ok()  # type: ignore[arg-type]
    assert world.ip("addr", "show", "dev", "zown0")
    world.call("DEL", conf, **own).ok()  # type: ignore[arg-type]
    assert not world.ip("link", "show", "dev", "zown0")


def test_l22_add_again_after_the_machine_restarted(world: World, version: str) -> None:
    """A7: the namespace went without a DEL; the same container and interface come again."""
    box, conf = world.container(), world.conf(version)
    box.attach(conf)
    box.vanish()
    again = world.container(box.cid)
    result = again.attach(conf)
    assert again.addresses() == set(shapes.addresses(result))


def test_d2_a_namespace_that_another_container_has_now(world: World, conf: Json) -> None:
    """The path was used again: DEL for the old container must not take the new one's interface."""
    old = world.container()
    result = old.attach(conf)
    old.vanish()
    old.path.touch()
    new = world.container()
    alive = new.attach(conf)
    old.delete(conf, prev=result, path=str(new.path)).ok()
    old.path.unlink(missing_ok=True)
    assert new.addresses() == set(shapes.addresses(alive))
    assert new.ping(shapes.gateways(alive)[0])


def test_d2_somebody_elses_interface_of_the_name(world: World, conf: Json) -> None:
    """DEL for what was never added: an interface of that name which we did not make stays."""
    box = world.container()
    box.sh("ip link add eth0 type bridge; ip addr add 192.0.2.9/24 dev eth0")
    box.delete(conf).ok()
    assert box.addresses() == {"192.0.2.9/24"}


def test_d3_an_empty_path_does_not_free_what_still_lives(world: World, conf: Json) -> None:
    """Either the link goes too or the address stays taken: never a live link without a reservation."""
    box = world.container()
    result = box.attach(conf)
    box.delete(conf, prev=result, path="").ok()
    if box.link() is None:
        return
    others = [world.container().attach(conf) for _ in range(3)]
    taken = {address for other in others for address in shapes.addresses(other)}
    assert taken.isdisjoint(shapes.addresses(result))
    check = box.check(conf, result)
    assert check.rc == 0, f"the link lives and has its addresses, but not its reservation\n{check}"


def test_d7_a_configuration_gone_wrong_does_not_stop_del(lab: Lab, at: At) -> None:
    """The conflist was broken while containers ran: they can still be removed."""
    world = lab("base")
    box, good = world.container(), world.conf(at("1.0.0"))
    result = box.attach(good)
    bad = world.conf(at("1.0.0"), variant="bad-field")
    box.delete(bad, prev=result).ok()
    box.delete(good, prev=result).ok()


def test_v9_a_field_with_a_wrong_value(lab: Lab, at: At) -> None:
    """The error has the code for it and names the value."""
    world = lab("base")
    bad = world.conf(at("1.0.0"), variant="bad-field")
    ((key, value),) = world.template.variants["bad-field"]["conf"].items()
    world.container().add(bad).failed(2, 7, says=[key, str(value)])


def test_d6_another_container_with_the_same_interface_name(world: World, conf: Json) -> None:
    one, two = world.container(), world.container()
    first, second = one.attach(conf), two.attach(conf)
    one.delete(conf, prev=first).ok()
    assert two.addresses() == set(shapes.addresses(second))
    assert two.ping(shapes.gateways(second)[0])


def test_own_default_route_beside_ours(lab: Lab, at: At) -> None:
    """A default route in the configuration is not an error where the network gives one itself."""
    world = lab("base")
    conf = world.conf(at("1.0.0"), variant="own-default")
    box = world.container()
    box.attach(conf)
    assert len(box.ip("route", "show", "default")) == 1


def test_a_pid_path(world: World, conf: Json) -> None:
    """/proc/PID/ns/net, as `ctr` gives it; then the process and its namespace are gone."""
    box = world.container()
    holder = netns.Holder(box.path)
    try:
        path = f"/proc/{holder.pid}/ns/net"
        result = box.attach(conf, path=path)
        assert box.addresses() == set(shapes.addresses(result))
        if shapes.inside(result):
            assert shapes.inside(result)[0]["sandbox"] == path
    finally:
        holder.end()
    box.delete(conf, prev=result, path=path).ok()
    assert not Path(path).exists()
