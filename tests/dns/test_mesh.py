"""Names over three nodes with a real etcd: where they appear and go, and what a lost node or store does to them."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import dns.message
import dns.rcode
import dns.reversename
import pytest

from cni.overlay import wire
from tests.mesh.etcds import LEASE, PROGRAM, Clustered
from tests.mesh.fleet import Container, Node, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]
TUNNEL = 12.0  # seconds after which a tunnel that is asked counts as silent
SOON = 1.0  # seconds in which a name appears and goes on every node


@pytest.fixture(scope="module")
def trio() -> Iterator[Clustered]:
    made = Clustered("n")
    try:
        for number in (1, 2, 3):
            made.member(number, cluster_cidr6="fd00:200::/48", dns={"upstreams": []})
        for node in made.nodes.values():
            wait_for(lambda node=node: node.status().peer_count == 2, "two peers")  # type: ignore[misc]
        yield made
    finally:
        made.clean()


@functools.cache
def zone_of(node: Node) -> str:
    return str(node.tool("status")["dns"]["zone"])


@functools.cache
def server_of(node: Node) -> str:
    return str(node.status().node_ip)


def query(asker: Container, name: str, kind: str = "A") -> dns.message.Message:
    """The answer of the asker's own node."""
    question = dns.message.make_query(name, kind)
    with asker.socket(2) as sock:
        sock.settimeout(5)
        sock.sendto(question.to_wire(), (server_of(asker.node), 53))
        return dns.message.from_wire(sock.recv(65535))


def told(asker: Container, name: str, kind: str = "A") -> set[str]:
    full = f"{name}.{zone_of(asker.node)}." if not name.endswith(".") else name
    return {data.to_text() for rrset in query(asker, full, kind).answer for data in rrset}


def seconds_until(what: object, limit: float = 10.0) -> float:
    began = time.monotonic()
    wait_for(what, "a name", limit, step=0.01)  # type: ignore[arg-type]
    return time.monotonic() - began


def test_a_service_is_its_containers_on_all_nodes(trio: Clustered) -> None:
    one, two, three = trio.nodes.values()
    asker = one.container("asker")
    there = [node.container("spread") for node in (two, three)]
    wanted = {container.address for container in there}
    assert seconds_until(lambda: told(asker, "spread") == wanted) < SOON
    assert told(asker, "spread", "AAAA") == {container.address6 for container in there}
    assert told(asker, f"{there[0].name}.spread") == {there[0].address}
    zone = zone_of(one)
    back = dns.reversename.from_address(there[1].address).to_text()
    assert told(asker, back, "PTR") == {f"{there[1].name}.spread.{zone}."}
    two.remove(there[0])
    assert seconds_until(lambda: told(asker, "spread") == {there[1].address}) < SOON
    three.remove(there[1])
    assert seconds_until(lambda: told(asker, "spread") == set()) < SOON
    for service in ("spread", f"{there[0].name}.spread"):
        assert query(asker, f"{service}.{zone}.").rcode() == dns.rcode.NXDOMAIN


def test_a_member_elsewhere_is_seen_by_its_own_network(trio: Clustered) -> None:
    one, two, _ = trio.nodes.values()
    there = two.container("hidden", isolationNetwork="closed")
    same, other = one.container("same", isolationNetwork="closed"), one.container("other", isolationNetwork="else")
    flat = one.container("flat")
    assert seconds_until(lambda: told(same, "hidden") == {there.address}) < SOON
    assert told(other, "hidden") == told(flat, "hidden") == set()
    answer = one.tool("resolve", "hidden", "--from", flat.name, check=False)
    assert answer["code"] == "NXDOMAIN"
    assert {each["address"] for each in answer["withheld"]} == {there.address, there.address6}


def test_nodes_have_names_on_every_node(trio: Clustered) -> None:
    one, two, _ = trio.nodes.values()
    asker = one.container("asker")
    own = two.status().node_ip
    back = dns.reversename.from_address(str(own)).to_text()
    (name,) = told(asker, back, "PTR")
    assert ".node." in name
    assert own in told(asker, name)


def test_a_registered_name_is_the_clusters(trio: Clustered) -> None:
    one, two, _ = trio.nodes.values()
    asker, target = one.container("asker"), two.container("target")
    two.ask(wire.RegisterDns("front.example.com", target.address))
    two.ask(wire.RegisterDns("front", target.address))
    assert seconds_until(lambda: told(asker, "front.example.com.") == {target.address}) < SOON
    assert told(asker, "front") == {target.address}
    two.ask(wire.UnregisterDns("front.example.com"))
    two.ask(wire.UnregisterDns("front"))
    assert seconds_until(lambda: told(asker, "front") == set()) < SOON


def test_an_alias_elsewhere_speaks_to_its_own_service(trio: Clustered) -> None:
    one, two, _ = trio.nodes.values()
    target = two.container("crew", runtimeConfig={"aliases": ["primary"]})
    mate, stranger = one.container("crew"), one.container("stranger")
    assert seconds_until(lambda: told(mate, "primary") == {target.address}) < SOON
    assert told(stranger, "primary") == set()


def test_a_killed_node_takes_its_names_along(trio: Clustered) -> None:
    one, _, three = trio.nodes.values()
    asker, there = one.container("asker"), three.container("mortal")
    wait_for(lambda: told(asker, "mortal") == {there.address}, "the name")
    three.cut()
    three.end(9)
    try:
        gone = seconds_until(lambda: told(asker, "mortal") == set(), 4 * LEASE + TUNNEL)
        assert gone < 2 * LEASE + TUNNEL
    finally:
        three.cut(healed=True)
        three.start()
    assert seconds_until(lambda: told(asker, "mortal") == {there.address}, 20)


def test_a_partition_takes_names_along_and_brings_them_back(trio: Clustered) -> None:
    """Node 3 runs on and is alone: it knows its own names, the others lose them with its lease, and all come back."""
    one, _, three = trio.nodes.values()
    asker, alone = one.container("asker"), three.container("asker")
    there, here = three.container("parted"), one.container("joined")
    wait_for(lambda: told(asker, "parted") == {there.address}, "the name")
    wait_for(lambda: told(alone, "joined") == {here.address}, "the name on the other side")
    three.cut()
    try:
        gone = seconds_until(lambda: told(asker, "parted") == set(), 4 * LEASE + TUNNEL)
        assert gone < 2 * LEASE + TUNNEL
        assert told(alone, "parted") == {there.address}
        late = one.container("joined")
        assert told(asker, "joined") == {here.address, late.address}
    finally:
        three.cut(healed=True)
    seconds_until(lambda: told(asker, "parted") == {there.address}, 30)
    seconds_until(lambda: told(alone, "joined") == {here.address, late.address}, 30)


def test_names_outlast_etcd(trio: Clustered) -> None:
    one, two, _ = trio.nodes.values()
    asker, there = one.container("asker"), two.container("lasting")
    wait_for(lambda: told(asker, "lasting") == {there.address}, "the name")
    trio.etcd.end(9)
    try:
        for _ in range(20):
            time.sleep(0.1 * LEASE)
            assert told(asker, "lasting") == {there.address}
        own = one.container("asker")
        assert told(asker, "asker") >= {own.address}
    finally:
        trio.etcd.start()
    fresh = two.container("lasting")
    assert seconds_until(lambda: told(asker, "lasting") == {there.address, fresh.address}, 30)


def test_a_record_that_its_node_has_not_signed_is_not_answered(trio: Clustered) -> None:
    one, two, _ = trio.nodes.values()
    asker, there = one.container("asker"), two.container("forged")
    wait_for(lambda: told(asker, "forged") == {there.address}, "the name")
    records = trio.ask(lambda client: client.read(f"{trio.base(two)}name/"))[0]
    (record,) = [item for item in records if item.key.endswith("/forged")]
    trio.put(record.key, record.value.replace(there.address.encode(), asker.address.encode()))
    assert seconds_until(lambda: told(asker, "forged") == set(), 5) < SOON
