"""What is kept between two looks is what would be found again, and nothing is taken for the same that is not."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable
from typing import Any

import pytest

from cni.daemon.events import Events
from cni.daemon.mesh.measured import MeasuredPath, MeasuredPaths, Measurements
from cni.daemon.mesh.paths import Memo, PathPlanner
from cni.daemon.mesh.resolver import Resolver
from cni.daemon.model.wireguard import Target
from cni.daemon.problem_board import ProblemBoard
from cni.host.tunnel_routes import UnderlayRoute
from cni.host.worker import Crew

NEAR, FAR = "192.0.2.7:51420", "198.51.100.9:51420"


class Paths:
    """Stands in for the kernel's routing table: the bytes that each address's path carries; no entry, no way."""

    def __init__(self, **mtus: int) -> None:
        self.mtus = {ipaddress.ip_address(key.replace("_", ".").strip(".")): mtu for key, mtu in mtus.items()}
        self.told: dict[Any, int] = {}  # what ICMP messages have told the kernel

    def ways_to(self, addresses: Iterable[Any]):
        return {each: self._way_to(each) for each in addresses}

    def _way_to(self, address: Any):
        if address not in self.mtus:
            return None
        return UnderlayRoute(2, self.told.get(address, self.mtus[address]), address in self.told, self.mtus[address])


@pytest.fixture
def paths():
    return Paths(_192_0_2_7=1500, _198_51_100_9=1400)


@contextlib.contextmanager
def planner(paths, *ranges, measurements=None):
    resolver = Resolver(Crew(), ProblemBoard(Events()), Events())
    try:
        yield PathPlanner(paths, lambda: ranges, tuple, resolver, measurements or Measurements())
    finally:
        resolver.stop()


@pytest.fixture
def ways(paths):
    with planner(paths) as made:
        yield made


def target(key="A", endpoints=(NEAR,), allowed=("10.200.1.0/26",)):
    return Target(key, endpoints, allowed, 25)


def look(ways, *targets, mtu=1420):
    """(endpoint by key, MTU by destination) after a look; the routes themselves."""
    wanted = {each.public_key: each for each in targets}
    ways.refresh(wanted.values())
    peers = ways.peers("wg", wanted)
    routes = ways.routes("wg", wanted, peers, mtu, {4: ipaddress.ip_address("10.200.0.1")})
    return {k: p.endpoint for k, p in peers.items()}, {str(d): r.mtu for d, r in routes.items()}, routes


def test_what_is_the_same_is_the_same_object(ways):
    first, again = look(ways, target()), look(ways, target())
    assert first[0] == {"A": NEAR}
    assert again[2] is first[2]


@pytest.mark.parametrize(
    "other",
    [
        target(allowed=("10.200.2.0/26",)),
        target(endpoints=(FAR,)),
        target("B"),
    ],
    ids=["networks", "endpoint", "key"],
)
def test_what_is_different_is_not(ways, other):
    before = look(ways, target())
    after = look(ways, other)
    assert after[:2] != before[:2]
    assert look(ways, target())[:2] == before[:2]


def test_the_kernel_is_asked_at_every_look(ways, paths):
    assert look(ways, target(endpoints=(FAR,)))[1] == {"10.200.1.0/26": 1328}
    paths.mtus[ipaddress.ip_address("198.51.100.9")] = 1500
    assert look(ways, target(endpoints=(FAR,)))[1] == {"10.200.1.0/26": 0}


@pytest.mark.parametrize(
    ("in_kernel", "told", "mtu", "doubted"),
    [
        (False, 1400, 0, True),
        (True, 1400, 1328, False),
        (True, 600, 1280, True),  # a forged message: no less than 1,280 bytes because of one
    ],
)
def test_what_the_kernel_was_told_of_a_path_after_its_measurement(paths, in_kernel, told, mtu, doubted):
    """Kernel WireGuard's datagrams are fragmented to that size, and all packets pass: the measurement refutes it only
    for a userspace engine."""
    address, measurements = ipaddress.ip_address("192.0.2.7"), Measurements()
    with planner(paths, measurements=measurements) as made:
        made.note_engine(in_kernel)
        assert look(made, target())[1] == {"10.200.1.0/26": 0}
        paths.told[address] = told
        made.refresh([target()])
        full = made.full(address, 1420)
        measurements.put(MeasuredPaths({"A": MeasuredPath(full, full, NEAR, made.told_at(address) + 1)}))
        assert look(made, target())[1] == {"10.200.1.0/26": mtu}
        assert bool(made.doubted()) == doubted
        assert made.narrow({"A": target()}, 1420) == {}


def test_of_several_endpoints_the_first_with_a_way(ways, paths):
    both = target(endpoints=("203.0.113.1:5", FAR))
    assert look(ways, both)[0] == {"A": FAR}
    paths.mtus[ipaddress.ip_address("203.0.113.1")] = 1500
    assert look(ways, both)[0] == {"A": "203.0.113.1:5"}
    paths.mtus.clear()
    assert look(ways, both)[0] == {"A": "203.0.113.1:5"}, "the first, where there is no way to any"


def test_each_device_has_its_own(ways):
    one, two = {"A": target("A")}, {"B": target("B", (FAR,))}
    ways.refresh([*one.values(), *two.values()])
    assert ways.peers("g", one)["A"].endpoint == NEAR
    assert ways.peers("d", two)["B"].endpoint == FAR
    assert ways.peers("g", one)["A"].endpoint == NEAR


def test_kept_asks_again_only_for_something_else():
    kept, asked = Memo(), []

    def double(n: int) -> int:
        asked.append(n)
        return 2 * n

    assert [kept("x", double, n) for n in (1, 1, 2, 1)] == [2, 2, 4, 2]
    assert asked == [1, 2, 1]


def test_a_published_endpoint_costs_no_other_peer_its_route(paths):
    """Inside the overlay's range, or inside what the operator has put behind another peer: it is not called there."""
    with planner(paths, "10.200.0.0/16") as made:
        site = target("S", ("203.0.113.1:1",), ("198.51.100.0/24",))
        liar = Target("L", ("10.200.1.5:51420", FAR, NEAR), ("10.200.2.0/26",), published=True, name="liar")
        only = Target("O", ("10.200.1.5:51420",), ("10.200.3.0/26",), published=True)
        wanted = {each.public_key: each for each in (target("A", (NEAR,), ("10.200.1.0/26",)), site, liar, only)}
        peers = made.peers("wg", wanted)
        assert {key: peer.endpoint for key, peer in peers.items()} == {
            "A": NEAR,
            "S": "203.0.113.1:1",
            "L": NEAR,
            "O": "",
        }
        assert made.refused("wg") == {"10.200.1.5:51420": "O", FAR: "liar"}
        routes = {str(dst) for dst in made.routes("wg", wanted, peers, 1420, {})}
        assert routes == {"10.200.1.0/26", "10.200.2.0/26", "10.200.3.0/26", "198.51.100.0/24"}
        assert made.circles("wg", wanted, peers) == ()
        round_ = {"A": target("A", (NEAR,), ("192.0.2.0/24",))}
        assert made.circles("wg", round_, made.peers("wg", round_)) == ("192.0.2.0/24 of A",)


def restored(ways, *proven: str) -> None:
    """A planner takes over from an earlier daemon, which called A at FAR."""
    ways.restore("wg", {}, {"A": FAR}, proven)


def called(ways, answers_at: str | None = FAR) -> str:
    """Where A is called, which answers there."""
    return ways.peers("wg", {"A": target()}, None if answers_at is None else {"A": answers_at})["A"].endpoint


def test_a_path_that_an_earlier_daemon_found_stays_until_probes_say_otherwise(ways):
    restored(ways, "A")
    assert called(ways) == FAR
    assert ways.proven("wg") == ["A"]
    ways.set_proven("wg", {}, frozenset({"A"}))
    assert called(ways, None) == FAR
    assert ways.proven("wg") == ["A"]
    ways.set_proven("wg", {}, frozenset())  # the search has ended without a path
    assert called(ways) == NEAR
    assert ways.proven("wg") == []


def test_a_path_that_an_earlier_daemon_found_ends_with_the_peers_silence(ways):
    restored(ways, "A")
    assert called(ways, "") == NEAR
    assert called(ways) == NEAR


def test_what_no_probe_had_found_is_not_kept(ways):
    restored(ways)
    assert called(ways) == NEAR


def test_the_endpoint_of_before_is_refused_where_it_may_not_be_called(paths):
    with planner(paths, "198.51.100.0/24") as ways:
        restored(ways, "A")
        assert called(ways) == NEAR
