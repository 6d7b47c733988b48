"""The addresses at which other nodes can call this one, whatever the host's routes look like."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from cni.host import underlay
from tests.mesh.fleet import inside, run

pytestmark = pytest.mark.root
RANGES = ("10.200.0.0/16",)
CASES = {
    "a default route": ("address add 203.0.113.1/24 dev eth0", "route add default via 203.0.113.254"),
    "no default route": ("address add 203.0.113.1/24 dev eth0",),
    "ECMP": (
        "address add 203.0.113.1/24 dev eth0",
        "address add 198.51.100.1/24 dev eth1",
        "route add default nexthop via 203.0.113.254 nexthop via 198.51.100.254",
    ),
    "a next hop group": (
        "address add 203.0.113.1/24 dev eth0",
        "address add 198.51.100.1/24 dev eth1",
        "nexthop add id 1 via 203.0.113.254 dev eth0",
        "nexthop add id 2 via 198.51.100.254 dev eth1",
        "nexthop add id 3 group 1/2",
        "route add default nhid 3",
    ),
    "an address on lo": (
        "address add 203.0.113.1/32 dev lo",
        "address add 10.200.0.1/32 dev lo",
        "route add default dev eth0 src 203.0.113.1",
    ),
    "an address on lo alone": ("address add 203.0.113.1/32 dev lo", "route add 198.51.100.0/24 dev eth0"),
    "a default route in another table": (
        "address add 203.0.113.1/24 dev eth0",
        "route add default via 203.0.113.254 table 100",
        "rule add from all lookup 100",
    ),
    "a rule for marked packets": (
        "address add 203.0.113.1/24 dev eth0",
        "route add default via 203.0.113.254 table 100",
        "rule add fwmark 7 lookup 100",
    ),
    "bridges of containers": (
        "link add docker0 type bridge",
        "address add 172.17.0.1/16 dev docker0",
        "link set docker0 up",
        "address add 203.0.113.1/24 dev eth0",
    ),
    "IPv6": ("address add 2001:db8::5/64 dev eth0 nodad", "-6 route add default via 2001:db8::1"),
}


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"zlt-u{uuid.uuid4().hex[:8]}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        for link in ("eth0", "eth1"):
            run("ip", "-n", name, "link", "add", link, "type", "veth", "peer", "name", f"{link}-far")
            for end in (link, f"{link}-far"):
                run("ip", "-n", name, "link", "set", end, "up")
        yield name
    finally:
        run("ip", "netns", "delete", name)


@pytest.mark.parametrize("case", CASES)
def test_a_node_knows_its_own_addresses(namespace: str, case: str) -> None:
    for words in CASES[case]:
        run("ip", "-n", namespace, *words.split())
    addresses = [str(address) for address in inside(f"/run/netns/{namespace}", lambda: underlay.addresses(RANGES))]
    expected = {"ECMP": ["198.51.100.1", "203.0.113.1"], "IPv6": ["2001:db8::5"]}
    expected["a next hop group"] = expected["ECMP"]
    if case == "bridges of containers":
        assert addresses == ["203.0.113.1", "172.17.0.1"], "those of bridges last"
    else:
        assert sorted(addresses) == expected.get(case, ["203.0.113.1"])


def test_a_node_without_an_address_has_none(namespace: str) -> None:
    assert inside(f"/run/netns/{namespace}", lambda: underlay.addresses(RANGES)) == []
