"""Which networks of the host the overlay's ranges overlap."""

from __future__ import annotations

import ipaddress

import pytest

from cni.daemon.model import overlap
from cni.daemon.node.ranges import inside
from cni.host.links import OUR_PROTO, RTN_LOCAL, RTN_UNICAST
from cni.host.own_networks import HeldAddress, RouteSeen, Surroundings

RANGES = ("10.200.0.0/16", "fd00:200::/48")
BLACKHOLE, UNREACHABLE = 6, 7
OWN = {ipaddress.ip_address("10.200.1.1")}


def address(link: str, text: str, peer: str = "", proto: int = 0) -> HeldAddress:
    return HeldAddress(link, ipaddress.ip_interface(text), ipaddress.ip_network(peer) if peer else None, proto)


def route(dst: str, *by: str, via: str = "", kind: int = RTN_UNICAST, table: int = 254) -> RouteSeen:
    gateways = (ipaddress.ip_address(via),) if via else ()
    return RouteSeen(ipaddress.ip_network(dst), by, gateways, kind, table)


def found(*seen: HeldAddress | RouteSeen, resolvers: tuple[str, ...] = ()) -> list[str]:
    addresses = tuple(each for each in seen if isinstance(each, HeldAddress))
    routes = tuple(each for each in seen if isinstance(each, RouteSeen))
    host = Surroundings(addresses, routes, tuple(map(ipaddress.ip_address, resolvers)))
    return [str(each.host.network) for each in overlap.overlaps(RANGES, overlap.host_networks(host, OWN))]


@pytest.mark.parametrize(
    ("seen", "network"),
    [
        (address("eth0", "10.200.5.10/24"), "10.200.5.0/24"),
        (address("eth0", "10.200.5.10/8"), "10.0.0.0/8"),
        (address("eth0", "10.200.0.1/16"), "10.200.0.0/16"),
        (address("docker0", "10.200.77.1/24"), "10.200.77.0/24"),
        (address("lo", "10.200.7.7/32"), "10.200.7.7/32"),
        (address("eth0", "10.200.1.1/32"), "10.200.1.1/32"),  # ours on lo, the host's elsewhere
        (address("tun0", "192.0.2.1/32", peer="10.200.3.3/32"), "10.200.3.3/32"),
        (address("tun0", "10.200.3.3/32", peer="192.0.2.1/32"), "10.200.3.3/32"),
        (address("eth0", "fd00:200:0:5::9/64"), "fd00:200:0:5::/64"),
        (route("10.200.5.0/26", "tun0"), "10.200.5.0/26"),
        (route("10.200.5.0/26", "tun0", table=100), "10.200.5.0/26"),
        (route("10.0.0.0/8", "tun0"), "10.0.0.0/8"),
        (route("fd00::/8", "wg0"), "fd00::/8"),
        (route("fc00::/7", "wg0"), "fc00::/7"),
        (route("0.0.0.0/0", "eth0", via="10.200.0.1"), "10.200.0.1/32"),
        (route("10.200.0.0/18", "lo", kind=RTN_LOCAL, table=255), "10.200.0.0/18"),
        (route("10.200.5.0/24", "zl-z-0-web-b", "eth0"), "10.200.5.0/24"),
        (address("veth-lan", "10.200.5.10/24"), "10.200.5.0/24"),
    ],
)
def test_what_counts(seen: HeldAddress | RouteSeen, network: str) -> None:
    assert found(seen) == [network]


@pytest.mark.parametrize(
    "seen",
    [
        address("lo", "10.200.1.1/32"),
        address("zl-z-0-web-b", "10.200.5.1/26"),
        address("eth0", "192.0.2.1/24"),
        address("eth0", "fe80::1/64"),
        route("0.0.0.0/0", "ppp0"),
        route("0.0.0.0/1", "tun0"),
        route("8.0.0.0/7", "tun0"),
        route("::/0", "eth0"),
        route("10.200.0.0/16", "eth0", via="192.0.2.9"),
        route("10.200.0.0/16", kind=BLACKHOLE),
        route("10.200.0.0/16", "lo", kind=UNREACHABLE),
        route("10.200.0.0/16", "lo"),
        route("10.200.5.0/26", "zl-z-0-web-b"),
        route("10.200.40.0/26", "zl-z-0-g"),
        route("10.200.0.9/32", "veth-99-g"),
        route("127.0.0.0/8", "lo", kind=RTN_LOCAL, table=255),
    ],
)
def test_what_does_not_count(seen: HeldAddress | RouteSeen) -> None:
    assert found(seen) == []


def test_a_local_route_of_an_address_is_that_address() -> None:
    ours = address("zl-z-0-web-b", "10.200.5.1/26")
    assert found(ours, route("10.200.5.1/32", "lo", kind=RTN_LOCAL, table=255)) == []


def test_resolvers_count_unless_they_are_the_node() -> None:
    assert found(resolvers=("10.200.0.53", "10.200.1.1", "127.0.0.53")) == ["10.200.0.53/32"]


def test_a_network_is_told_once_with_both_ranges() -> None:
    host = Surroundings((address("eth0", "10.200.5.10/24"),), (route("10.200.5.0/24", "eth0"),))
    said = overlap.told(overlap.overlaps(RANGES, overlap.host_networks(host, OWN)))
    assert said == "the overlay's range 10.200.0.0/16 overlaps 10.200.5.0/24 (address 10.200.5.10/24 on eth0)"


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "127.0.0.0/16", "169.254.0.0/16", "224.0.0.0/8", "::/0", "fe80::/64"])
def test_no_range_holds_what_is_reserved(cidr: str) -> None:
    assert overlap.reserved([cidr])
    assert not overlap.reserved(RANGES)


def test_a_network_larger_than_the_range_leaves_the_tunnels_their_routes() -> None:
    host = Surroundings((address("eth0", "10.200.5.10/24"), address("tun0", "10.1.2.3/8")))
    seen = overlap.overlaps(RANGES, overlap.host_networks(host, OWN))
    assert [str(each) for each in inside(seen)] == ["10.200.5.0/24"]


def test_whose_an_address_on_lo_is() -> None:
    held = (
        address("lo", "10.200.1.1/32"),
        address("lo", "10.200.2.1/32", proto=OUR_PROTO),
        address("lo", "10.200.3.65/32"),
        address("lo", "10.200.3.7/32"),
        address("lo", "192.0.2.1/32"),
        address("eth0", "10.200.9.1/32", proto=OUR_PROTO),
    )

    def ours(*noted: str, marked: bool = True, by_shape: tuple[str, ...] = ()) -> set[str]:
        known = [ipaddress.ip_address(each) for each in noted]
        return {str(each) for each in overlap.of_ours(held, known, marked, by_shape)}

    assert ours() == {"10.200.2.1"}
    assert ours(marked=False) == set()
    assert ours("10.200.1.1") == {"10.200.1.1", "10.200.2.1"}
    assert ours(by_shape=RANGES, marked=False) == {"10.200.1.1", "10.200.2.1", "10.200.3.65"}
