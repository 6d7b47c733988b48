"""BB-L: ADD, CHECK and DEL of one container, at every CNI version; what one attachment looks like while it lives."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from .harness import shapes
from .harness.template import Json
from .harness.world import OUTSIDE, Container, World

Lab = Callable[[str], World]
At = Callable[..., str]
Need = Callable[[str], None]

CHECKED = ("0.4.0", "1.0.0", "1.1.0")


@dataclass
class Attached:
    """One live attachment that several tests look at."""

    world: World
    box: Container
    conf: Json
    result: Json


@pytest.fixture(scope="module")
def live(shared: Lab, version: str) -> Iterator[Attached]:
    """An attachment of the base network, once for each version; tests only read it."""
    world = shared("base")
    box = world.container()
    box.keep = True
    conf = world.conf(version)
    yield Attached(world, box, conf, box.attach(conf))
    box.remove(detach=True)


@pytest.mark.parametrize("variant", ["base", "v6", "dual"])
def test_l01_l02_l03_add_and_del(lab: Lab, version: str, variant: str) -> None:
    """ADD gives the families asked for, the container has them, CHECK agrees, DEL takes them away."""
    world = lab(variant)
    box, conf = world.container(), world.conf(version)
    result = box.attach(conf)
    shapes.validate(result, version)
    families = {ipaddress.ip_interface(address).version for address in shapes.addresses(result)}
    assert families == {"base": {4}, "v6": {6}, "dual": {4, 6}}[variant]
    assert box.addresses() == set(shapes.addresses(result))
    if version in CHECKED:
        box.check(conf, result).ok()
    box.delete(conf, prev=result).ok()
    assert box.link() is None


def test_l04_three_ranges(lab: Lab, version: str) -> None:
    """Two addresses of one family do not fit into a result before 0.3.0."""
    world = lab("ranges3")
    box, conf = world.container(), world.conf(version)
    if version in shapes.OLD:
        box.add(conf).failed()
        return
    assert len(shapes.addresses(box.attach(conf))) == 3
    assert len(box.addresses()) == 3


def test_l05_the_link_is_what_the_result_says(live: Attached, version: str) -> None:
    link = live.box.link()
    assert link is not None and "UP" in link["flags"] and link["operstate"] == "UP"
    if version not in shapes.OLD:
        (mine,) = shapes.inside(live.result)
        assert (mine["name"], mine["mac"]) == ("eth0", link["address"])
        assert mine.get("mtu", link["mtu"]) == link["mtu"]


def test_l05_the_mtu_that_was_asked_for(lab: Lab, version: str) -> None:
    world = lab("mtu")
    box, conf = world.container(), world.conf(version, variant="mtu")
    result = box.attach(conf)
    link = box.link()
    assert link is not None and link["mtu"] == conf["mtu"]
    assert box.world.ip("link", "show", "dev", _peer(box))[0]["mtu"] == conf["mtu"]
    if version == "1.1.0" and "result-mtu" in world.template.features:
        assert shapes.inside(result)[0].get("mtu") == conf["mtu"]


def test_l06_the_sandbox_is_the_string_that_was_given(lab: Lab, version: str) -> None:
    if version in shapes.OLD:
        pytest.skip("there are no interfaces in the result before 0.3.0")
    world = lab("base")
    box = world.container()
    path = str(box.path).replace("/run/", "/var/run/./")
    (mine,) = shapes.inside(box.attach(world.conf(version), path=path))
    assert mine["sandbox"] == path


def test_l07_the_addresses_are_the_containers(live: Attached) -> None:
    assert live.box.addresses() == set(shapes.addresses(live.result))
    (link,) = live.box.ip("addr", "show", "dev", "eth0")
    for info in link["addr_info"]:
        assert info["scope"] != "global" or not info.get("tentative"), "not usable on return (A10)"


def test_l08_the_default_route_goes_by_the_gateway(live: Attached) -> None:
    (route,) = live.box.ip("route", "show", "default")
    assert route.get("gateway") in shapes.gateways(live.result)
    assert route["dev"] == "eth0"
    assert "prefsrc" not in route


def test_l09_the_host_side(live: Attached, version: str) -> None:
    peer = _peer(live.box)
    link = live.world.ip("link", "show", "dev", peer)[0]
    assert "UP" in link["flags"] and link["linkinfo"]["info_kind"] == "veth"
    if version in shapes.OLD:
        return
    hosts = {item["name"]: item for item in shapes.host_side(live.result)}
    assert peer in hosts, "the host veth is in the result (conformance R6)"
    assert hosts[peer].get("mac", link["address"]) == link["address"]
    interfaces = live.result["interfaces"]
    bridges = 0 if "unbridged" in live.world.template.features else 1
    in_order = [bool(item.get("sandbox")) for item in interfaces]
    assert in_order == [False] * bridges + [False, True], "bridge, host veth, container"
    assert [item["name"] for item in interfaces[:bridges]] == [link.get("master")] * bridges
    assert {item.get("interface") for item in live.result["ips"]} == {bridges + 1}


def test_l10_gateway_neighbour_and_outside_answer(live: Attached) -> None:
    other = live.world.container()
    second = shapes.bare(other.attach(live.conf))
    assert all(live.box.ping(gateway) for gateway in shapes.gateways(live.result))
    assert all(live.box.ping(address) for address in second)
    assert all(other.ping(address) for address in shapes.bare(live.result))
    assert set(second).isdisjoint(shapes.bare(live.result))


def test_l10_two_families_reach_each_other(lab: Lab, at: At) -> None:
    world = lab("dual")
    conf = world.conf(at("1.0.0"))
    one, two = world.container(), world.container()
    first, second = one.attach(conf), two.attach(conf)
    assert all(one.ping(target) for target in [*shapes.bare(second), *shapes.gateways(first)])
    assert all(two.ping(target) for target in shapes.bare(first))


def test_l10_the_world_outside_answers_through_masquerade(lab: Lab, at: At) -> None:
    """The outside has no route back: it answers only what comes from the host's address."""
    world = lab("masq")
    box = world.container()
    box.attach(world.conf(at("1.0.0"), variant="masq"))
    assert box.ping(OUTSIDE)


def test_l11_check_after_add(live: Attached, version: str) -> None:
    if version not in CHECKED:
        pytest.skip("no CHECK before 0.4.0")
    for _ in range(2):
        live.box.check(live.conf, live.result).ok()


def test_l13_del_again_and_again(lab: Lab, version: str) -> None:
    world = lab("base")
    box, conf = world.container(), world.conf(version)
    result = box.attach(conf)
    for _ in range(3):
        box.delete(conf, prev=result).ok()
    box.delete(conf, path="").ok()


def test_l14_del_of_what_was_never_added(lab: Lab, version: str) -> None:
    world = lab("base")
    box, conf = world.container(), world.conf(version)
    box.delete(conf).ok()
    box.delete(conf, path="").ok()
    box.delete(conf, path="/run/netns/zlt-bb-never").ok()


def test_l20_two_interfaces_of_one_container(lab: Lab, version: str) -> None:
    """The same network twice in one container (A8); the DEL of one leaves the other (D6)."""
    world = lab("base")
    box, conf = world.container(), world.conf(version)
    first, second = box.attach(conf, "eth0"), box.attach(conf, "net1")
    assert set(shapes.addresses(first)).isdisjoint(shapes.addresses(second))
    box.delete(conf, "eth0", prev=first).ok()
    assert box.link("eth0") is None
    assert box.addresses("net1") == set(shapes.addresses(second))
    if version in CHECKED:
        box.check(conf, second, "net1").ok()
    box.delete(conf, "net1", prev=second).ok()
    assert box.link("net1") is None


def test_l21_two_networks_of_one_container(lab: Lab, version: str) -> None:
    world = lab("base")
    box = world.container()
    one, two = world.conf(version), world.conf(version, variant="second", name="zlt-second")
    first, second = box.attach(one, "eth0"), box.attach(two, "net1")
    assert {*box.addresses("eth0"), *box.addresses("net1")} == {*shapes.addresses(first), *shapes.addresses(second)}
    box.delete(two, "net1", prev=second).ok()
    assert box.addresses("eth0") == set(shapes.addresses(first))
    box.delete(one, "eth0", prev=first).ok()


def test_l22_add_again_after_del(lab: Lab, version: str) -> None:
    world = lab("base")
    box, conf = world.container(), world.conf(version)
    for _ in range(2):
        result = box.attach(conf)
        assert box.addresses() == set(shapes.addresses(result))
        box.delete(conf, prev=result).ok()


def test_l25_the_shape_of_the_result(live: Attached, version: str) -> None:
    shapes.validate(live.result, version)


def test_l25_nothing_that_the_version_does_not_know(live: Attached, version: str) -> None:
    """mtu, socketPath and pciID came with 1.1.0."""
    for item in live.result.get("interfaces", []) if version != "1.1.0" else []:
        assert set(item) <= shapes.LINK_KEYS, f"{item} at {version}"


def test_l23_an_empty_dns_is_left_out(live: Attached) -> None:
    assert "dns" not in live.result or live.result["dns"], "R4: omitted when its four members are empty"


def test_l23_dns_of_the_configuration(lab: Lab, version: str) -> None:
    world = lab("dns")
    conf = world.conf(version, variant="dns")
    assert world.container().attach(conf)["dns"] == conf["dns"]


def _peer(box: Container) -> str:
    """The host's end of the container's eth0, by the kernel's own word on it."""
    link = box.link()
    assert link is not None
    (name,) = [item["ifname"] for item in box.world.ip("link") if item["ifindex"] == link.get("link_index")]
    assert isinstance(name, str)
    return name
