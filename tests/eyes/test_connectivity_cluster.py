"""The connectivity test in a cluster on etcd, with three nodes: green, and each planted fault by its own code alone."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni import answers
from cni.cli import ask
from cni.host import wg_engine
from tests.eyes.test_connectivity import (
    FAULTS,
    PLANTED,
    accepting,
    check,
    failed,
    inside,
    judged,
    left,
    nft,
    ready,
    repeated,
)
from tests.mesh.etcds import ADDRESS, PROGRAM, Clustered
from tests.mesh.fleet import Node, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not wg_engine.find(), reason="no WireGuard engine here (apt-get install wireguard-go)"),
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]


@contextlib.contextmanager
def cluster(tag: str, **settings: object) -> Iterator[tuple[Clustered, list[Node]]]:
    """Three nodes that reach each other; what they know of each other lasts for the test."""
    made = Clustered(tag)
    try:
        etcd = {"endpoints": [made.etcd.url], "lease": 120, "grace": 600}
        nodes = [made.member(number, cluster={"etcd": etcd}, **settings) for number in (1, 2, 3)]
        for node in nodes:
            inside(
                node, "sysctl", "-qw", *(f"net.bridge.bridge-nf-call-{kind}=0" for kind in ("iptables", "ip6tables"))
            )
            wait_for(lambda node=node: node.status().peer_count == 2, "the peers")  # type: ignore[misc]
        ready(*nodes)
        yield made, nodes
    finally:
        made.clean()


def forgotten(one: Node, two: Node) -> None:
    """The session between the two is over, as after three minutes."""
    lines = {line.split()[0]: line.split()[1:] for line in one.wg("show", one.device, "allowed-ips").splitlines()}
    where = {line.split()[0]: line.split()[1] for line in one.wg("show", one.device, "endpoints").splitlines()}
    old = next(each for each in lines if where[each].startswith(f"{two.underlay}:"))
    again = ("peer", old, "endpoint", where[old], "allowed-ips", ",".join(lines[old]), "persistent-keepalive", "25")
    one.wg("set", one.device, "peer", old, "remove", *again)


@pytest.fixture(scope="module")
def three() -> Iterator[list[Node]]:
    with cluster("e") as (_, nodes):
        yield nodes


def test_a_good_cluster_is_green(three: list[Node]) -> None:
    one, two, other = three
    with accepting(two, other):
        result = check(one)
    assert result["ok"], failed(result)
    assert sum(cell["kind"] == "other node, tcp" and cell["got"] for cell in result["cells"]) == 2
    assert sum(cell["kind"] == "same network, tcp" and cell["got"] for cell in result["cells"]) == 2
    assert [left(node) for node in three] == [[], [], []]


SAME = ("bridge-nf-call", "foreign-drop", "stale-address", "fence-dormant")
"""The faults that are planted as between two nodes of a YAML."""


def as_they_come(source: Node, marker: str, one: Node, *rule: str) -> Callable[[], None]:
    """A rule of routing on `one` for each container of the test on `source`, as soon as it is attached; returns what
    ends that and deletes the rules."""
    planted: list[str] = []

    def step() -> None:
        for each in ask.ask(str(source.directory / "run"), "attachments", list[answers.Attachment]):
            address = each.addresses[0].partition("/")[0]
            if marker in each.container_id and address not in planted:
                inside(one, "ip", "rule", "add", "pref", "5", "to", address, *rule)
                planted.append(address)

    end = repeated(step, 0.01)

    def undo() -> None:
        end()
        for _ in planted:
            inside(one, "ip", "rule", "del", "pref", "5")

    return undo


def plant_rp_filter(one: Node, two: Node) -> Callable[[], object]:
    """Strict, and the route back to the containers is another one for the host's own look-ups."""
    filters = ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter")
    inside(one, "sysctl", "-qw", *(f"{name}=1" for name in filters))
    inside(one, "ip", "route", "replace", "default", "dev", "eth0", "table", "99")
    forget = as_they_come(one, "connectivity-", one, "iif", "lo", "lookup", "99")

    def undo() -> None:
        forget()
        inside(one, "sysctl", "-qw", *(f"{name}=0" for name in filters))

    return undo


def plant_route_missing(one: Node, two: Node) -> Callable[[], object]:
    """Another program's rule takes the containers of the other node out of the table."""
    return as_they_come(two, "-far-", one, "unreachable")


PLANTED_HERE = {
    **{fault: PLANTED[fault] for fault in SAME},
    "rp-filter": plant_rp_filter,
    "route-missing": plant_route_missing,
}


@pytest.mark.parametrize("fault", PLANTED_HERE)
def test_a_planted_fault_has_its_code(three: list[Node], fault: str) -> None:
    one, two, _ = three
    ready(*three)
    with accepting(two):
        undo = PLANTED_HERE[fault](one, two)
        try:
            result = check(one)
        finally:
            undo()
    judged(result, fault)
    wait_for(lambda: not left(one) and not left(two), "the end", 45)


def test_another_clock_has_its_code(three: list[Node]) -> None:
    library = next(iter(Path("/usr/lib").rglob("libfaketime.so.1")), None)
    if library is None:
        pytest.skip("no libfaketime here (apt-get install libfaketime)")
    one, two, _ = three
    ready(*three)
    with accepting(two, env={"LD_PRELOAD": str(library), "FAKETIME": "-3h"}):
        judged(check(one), "clock")


def test_another_subnet_has_its_code(three: list[Node]) -> None:
    """This node does not hear of the subnet that the other one takes for the test: etcd does not answer it."""
    one, two, _ = three
    ready(*three)
    nft(one, f"table ip planted {{ chain out {{ type filter hook output priority 0; ip daddr {ADDRESS} drop; }}; }}")
    try:
        wait_for(lambda: one.problem("store-unreachable"), "the problem", 30)
        with accepting(two):
            judged(check(one), "wrong-subnet")
    finally:
        inside(one, "nft", "delete table ip planted")
        wait_for(lambda: not one.problem("store-unreachable"), "its end", 60)


# --- what lasts ------------------------------------------------------------------------------------------------------


def test_dropped_datagrams_have_their_code(three: list[Node]) -> None:
    """Nothing of WireGuard leaves the other node any more, and its sessions are over."""
    one, two, _ = three
    nft(two, "table ip planted { chain out { type filter hook output priority 0; udp sport 51420 drop; }; }")
    forgotten(one, two)
    try:
        judged(check(one), "udp-dropped")
    finally:
        inside(two, "nft", "delete table ip planted")


def test_a_wrong_key_has_its_code(three: list[Node], tmp_path: Path) -> None:
    """The other node's device has got another key behind its daemon's back."""
    one, two, _ = three
    two.end(signal.SIGKILL)  # it would put the key right
    key = tmp_path / "key"
    key.write_text(two.wg("genkey"))
    two.wg("set", two.device, "private-key", str(key))
    forgotten(one, two)
    try:
        judged(check(one), "wrong-key")
    finally:
        two.start()


def test_a_narrow_path_has_its_code(three: list[Node]) -> None:
    """The last one here: what was measured of the path stays known for a while."""
    one, two, _ = three
    ready(*three)
    rule = "type filter hook input priority 0; udp dport 51420 udp length > 1400 drop;"
    nft(two, f"table ip planted {{ chain in {{ {rule} }}; }}")
    try:
        with accepting(two):
            judged(check(one), "mtu")
    finally:
        inside(two, "nft", "delete table ip planted")


def test_a_full_pool_has_its_code() -> None:
    """Four subnets: one for each node, and there is no other for the second service."""
    with cluster("p", cluster_cidr="10.200.0.0/24") as (_, nodes):
        judged(check(nodes[0]), "pool-full")


def test_every_fault_is_planted() -> None:
    others = {"mtu", "clock", "wrong-subnet", "udp-dropped", "wrong-key", "pool-full"}
    assert {*PLANTED_HERE, *others} == set(FAULTS)
