"""BB-K: CHECK sees what is broken, forgives what a later plugin may change, and changes nothing itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from .harness import shapes
from .harness.template import Json
from .harness.world import Container, World

Lab = Callable[[str], World]
At = Callable[..., str]
Need = Callable[[str], None]


@dataclass
class Checked:
    """An attachment that passes CHECK; tests break it."""

    world: World
    box: Container
    conf: Json
    result: Json

    def fails(self) -> None:
        self.box.check(self.conf, self.result).failed()

    def passes(self) -> None:
        self.box.check(self.conf, self.result).ok()

    def fails_while(self, line: str) -> None:
        """CHECK fails on what `line` breaks on the host, or the host is as before when CHECK passes.

        A daemon that watches the host may repair it within milliseconds, before CHECK reads: so it is broken again and
        again, and CHECK is asked up to 150 times. If CHECK always passes, the repair must be seen.
        """
        stop, whole = threading.Event(), self._host()

        def again() -> None:
            while not stop.wait(0.02):
                self.world.sh(line, check=False)

        self.world.sh(line)
        breaking = threading.Thread(target=again)
        breaking.start()
        try:
            answers = [self.box.check(self.conf, self.result)]
            while answers[-1].rc == 0 and len(answers) < 150:
                answers.append(self.box.check(self.conf, self.result))
        finally:
            stop.set()
            breaking.join()
        if answers[-1].rc == 0:
            end = time.monotonic() + 2
            while self._host() != whole:
                assert time.monotonic() < end, f"CHECK passes, and what `{line}` broke stays broken: {answers[-1]}"
        else:
            answers[-1].failed()

    def _host(self) -> str:
        """What the host has: rules, addresses, routes."""
        return self.world.sh("nft -s list ruleset; ip -o addr show; ip route show table all | sort", check=False)

    @property
    def peer(self) -> str:
        """The host's end of eth0."""
        link = self.box.link()
        assert link is not None
        (name,) = [item["ifname"] for item in self.world.ip("link") if item["ifindex"] == link["link_index"]]
        return str(name)

    @property
    def bridge(self) -> str:
        return str(self.world.ip("link", "show", "dev", self.peer)[0]["master"])


@pytest.fixture(params=["0.4.0", "1.0.0", "1.1.0"])
def checked(world: World, request: pytest.FixtureRequest, at: At, need: Need) -> Iterator[Checked]:
    need("check")
    version = at(request.param)
    box, conf = world.container(), world.conf(version)
    made = Checked(world, box, conf, box.attach(conf))
    made.passes()
    return made  # type: ignore[return-value]


def test_k01_no_previous_result(checked: Checked) -> None:
    checked.box.check(checked.conf, None).failed()


@pytest.mark.parametrize("prev", [7, "x", []], ids=str)
def test_k01_a_previous_result_that_is_none(checked: Checked, prev: object) -> None:
    checked.world.call(
        "CHECK", {**checked.conf, "prevResult": prev}, cid=checked.box.cid, path=str(checked.box.path), ifname="eth0"
    ).failed()


BREAKS = {
    "k02-link-deleted": "ip link del eth0",
    "k02-link-renamed": "ip link set eth0 down; ip link set eth0 name other; ip link set other up",
    "k03-link-down": "ip link set eth0 down",
    "k04-address-removed": "ip addr flush dev eth0 scope global",
    "k04-address-replaced": "ip addr flush dev eth0 scope global; ip addr add 10.99.0.9/24 dev eth0",
    "k05-default-route-removed": "ip route del default",
    "k05-connected-route-removed": "ip -4 route flush proto kernel scope link dev eth0",
    "k05-default-route-blackhole": "ip route del default; ip route add blackhole default",
    "k07-wrong-mac": "ip link set eth0 address 02:aa:bb:cc:dd:ee",
}


@pytest.mark.parametrize("what", BREAKS)
def test_k_broken_in_the_container(checked: Checked, what: str) -> None:
    line = BREAKS[what]
    if "unbridged" in checked.world.template.features:
        line = line.replace("proto kernel ", "")  # the gateway's route; there is no other neighbour
    checked.box.sh(line)
    checked.fails()


def test_k05_default_route_by_another_gateway(checked: Checked) -> None:
    gateway = shapes.gateways(checked.result)[0]
    other = f"{gateway.rpartition('.')[0]}.200"
    checked.box.sh("ip route del default", f"ip route add default via {other} dev eth0 onlink")
    checked.fails()


ROUTE = "192.0.2.0/24"


@pytest.mark.parametrize("there", [False, True], ids=["lacking", "there"])
def test_c1_a_route_that_the_previous_result_has(checked: Checked, there: bool) -> None:
    gateway = shapes.gateways(checked.result)[0]
    result = {**checked.result, "routes": [*checked.result.get("routes", []), {"dst": ROUTE, "gw": gateway}]}
    if there:
        checked.box.sh(f"ip route add {ROUTE} via {gateway}")
        checked.box.check(checked.conf, result).ok()
    else:
        checked.box.check(checked.conf, result).failed()


def test_c3_the_mac_of_the_hosts_interface_in_the_previous_result(checked: Checked) -> None:
    """Those of all host interfaces at once: the host end of the veth and the bridge."""
    interfaces = [
        item if item.get("sandbox") else {**item, "mac": "02:aa:bb:cc:dd:ee"} for item in checked.result["interfaces"]
    ]
    checked.box.check(checked.conf, {**checked.result, "interfaces": interfaces}).failed()


@pytest.mark.parametrize("what", ["removed", "renamed", "down", "off-the-bridge"])
def test_k06_the_host_side(checked: Checked, what: str) -> None:
    peer = checked.peer
    if what == "off-the-bridge" and "unbridged" in checked.world.template.features:
        pytest.skip("the host end is on no bridge")
    lines = {
        "removed": f"ip link del {peer}",
        "renamed": f"ip link set {peer} down; ip link set {peer} name zlt-else; ip link set zlt-else up",
        "down": f"ip link set {peer} down",
        "off-the-bridge": f"ip link set {peer} nomaster",
    }
    if what == "removed":
        checked.world.sh(lines[what])
        checked.fails()
    else:
        checked.fails_while(lines[what])


def test_k06_the_bridges_address(fresh: Lab, at: At, need: Need) -> None:
    """In a world of its own: all containers share the bridge. Without one, the host end has the address."""
    need("check")
    world = fresh("base")
    box, conf = world.container(), world.conf(at("1.0.0"))
    made = Checked(world, box, conf, box.attach(conf))
    made.passes()
    device = made.peer if "unbridged" in world.template.features else made.bridge
    made.fails_while(f"ip addr flush dev {device} scope global")


def test_k06_masquerade_flushed(fresh: Lab, at: At, need: Need) -> None:
    need("check")
    world = fresh("masq")
    box, conf = world.container(), world.conf(at("1.0.0"), variant="masq")
    made = Checked(world, box, conf, box.attach(conf))
    made.passes()
    tables = world.sh("nft list tables | sed 's/^table //'").splitlines()
    made.fails_while("; ".join(f"nft flush table {table}" for table in tables))


def test_k08_the_reservation(checked: Checked, need: Need) -> None:
    """Released behind the container's back: its address may be given to another any moment."""
    need("delegates-ipam")
    for lease in (checked.world.data_dir / "networks").glob("*/10.*"):
        lease.unlink()
    checked.fails()


def test_k09_a_later_plugin_added_address_and_route(checked: Checked) -> None:
    checked.box.sh("ip addr add 192.0.2.7/24 dev eth0; ip route add 203.0.113.0/24 dev eth0")
    checked.passes()


def test_k10_a_later_plugin_changed_the_mtu(checked: Checked) -> None:
    checked.box.sh("ip link set eth0 mtu 1280")
    checked.passes()


def test_k10_a_later_plugin_changed_mac_and_said_so(checked: Checked) -> None:
    """`tuning` with a mac: the final result, which CHECK gets, names the new one (C2)."""
    mac = "02:aa:bb:cc:dd:ee"
    checked.box.sh(f"ip link set eth0 address {mac}")
    interfaces = [{**item, "mac": mac} if item.get("sandbox") else item for item in checked.result["interfaces"]]
    checked.box.check(checked.conf, {**checked.result, "interfaces": interfaces}).ok()


def test_k13_the_namespace_is_gone(checked: Checked) -> None:
    checked.box.vanish()
    checked.fails()


def test_k14_check_changes_nothing(fresh: Lab, at: At, need: Need, version: str) -> None:
    """The very first CHECK neither. In a world of its own: a daemon releases dead containers of other tests."""
    need("check")
    if version not in {"0.4.0", "1.0.0", "1.1.0"}:
        pytest.skip("no CHECK before 0.4.0")
    world = fresh("base")
    conf = world.conf(version)
    world.warm(conf)
    box = world.container()
    made = Checked(world, box, conf, box.attach(conf))
    world.warm(conf)
    before, inner = world.snapshot(), world.look(box.path)
    for _ in range(3):
        made.passes()
    world.assert_baseline(before)
    world.assert_same(inner, lambda: world.look(box.path))


def test_k14_a_failing_check_mends_nothing(checked: Checked) -> None:
    checked.box.sh("ip addr flush dev eth0 scope global")
    checked.fails()
    assert checked.box.addresses() == set()
    checked.fails()


def test_k_check_of_what_was_never_added(checked: Checked) -> None:
    checked.world.container().check(checked.conf, checked.result).failed()


def test_k12_check_without_a_daemon(fresh: Lab, at: At, need: Need) -> None:
    """The daemon is only restarting, as far as one can know: 11, not a verdict (conformance C7)."""
    need("daemon")
    world = fresh("base")
    box, conf = world.container(), world.conf(at("1.0.0"))
    result = box.attach(conf)
    world.stop_daemon()
    box.check({**conf, "autostart": False}, result).failed(11)
