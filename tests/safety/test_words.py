"""What another node says of itself costs no other node anything, and is believed only as far as its claims go."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest

from cni.daemon import public_keys
from cni.daemon.model import keys
from tests.mesh.etcds import GRACE, LEASE, PROGRAM, Clustered
from tests.mesh.fleet import PORT, Container, Node, arrives, wait_for

pytestmark = [
    pytest.mark.usefixtures("engine"),
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]


@pytest.fixture
def trio(clustered: Clustered, program: tuple[str, ...]) -> Clustered:
    """Three nodes that know each other."""
    for number in (1, 2, 3):
        node = clustered.member(number, start=False)
        node.program = program
        node.start()
    for node in clustered.nodes.values():
        wait_for(lambda node=node: node.status().peer_count == 2, "two peers")  # type: ignore[misc]
    return clustered


def told(node: Node, code: str) -> str:
    """The texts of a problem, one after the other."""
    return "; ".join(each["text"] for each in node.tool("status")["problem_details"] if each["code"] == code)


def stranger(store: Clustered, node: Node, identity: str, **words: Any) -> dict[str, Any]:
    """A further machine with the store's credentials: it claims a key and says something of itself."""
    public = public_keys.public_of(keys.generate())
    doc = {
        "identity": identity,
        "name": f"host-{identity[:4]}",
        "place": "elsewhere",
        "node_id": 77,
        "public_key": public,
        "port": PORT,
        "hosts": ["198.51.100.77"],
        **words,
    }
    base = store.base(node)
    store.put(f"{base}key/{keys.decode(public).hex()}", identity.encode())
    store.put(f"{base}id/{doc['node_id']}", identity.encode())
    store.put(f"{base}node/{identity}", json.dumps(doc).encode())
    return doc


def allowed(node: Node) -> dict[str, set[str]]:
    """The allowed IPs of each peer on a node's device."""
    lines = [line.split("\t") for line in node.wg("show", node.device, "allowed-ips").splitlines()]
    return {key: set(cidrs.split()) - {"(none)"} for key, cidrs in lines}


def routes(node: Node) -> set[str]:
    """What leads into a node's device."""
    return {route["dst"] for route in node.ip("route", "show", "dev", node.device)}


@pytest.mark.long
def test_an_endpoint_inside_another_nodes_subnet_costs_that_node_nothing(trio: Clustered) -> None:
    """A subnet of node 2 is where node 3 says that it is called; an address, and then a whole list."""
    one, two, three = trio.nodes.values()
    here, there = one.container(), two.container()
    arrives(here, there)
    before = routes(one)
    three.end()
    victim = there.address.rpartition(".")[0]
    three.settings["advertise"] = [f"{victim}.1:{PORT}", f"{there.address}:{PORT}", f"{three.underlay}:{PORT}"]
    three.start()
    key = str(three.status().public_key)
    wait_for(lambda: there.address in told(one, "endpoint-refused"), "it is told on node 1")
    wait_for(lambda: there.address in told(two, "endpoint-refused"), "it is told on node 2")
    assert here.pings(there.address)
    assert there.pings(here.address)
    assert routes(one) >= before
    assert told(one, "route-circular") == ""
    late = three.container()
    arrives(here, late)  # it is called where else it says
    endpoint = dict(line.split("\t") for line in one.wg("show", one.device, "endpoints").splitlines())[key]
    assert endpoint == f"{three.underlay}:{PORT}"


def test_a_node_is_believed_for_exactly_what_it_has_claimed(trio: Clustered) -> None:
    one, two, three = trio.nodes.values()
    here, there, other = one.container(), two.container(), three.container()
    arrives(here, there)
    arrives(here, other)
    net = there.address.rpartition(".")[0]
    slot = next(cidr for cidr in trio.document(two)["subnets"] if cidr.startswith(net))
    half = slot.replace("/26", "/27")
    lies = [half, f"{there.address}/32", "0.0.0.0/1", "128.0.0.0/1", "10.200.0.0/16", slot, "192.0.2.0/26"]
    before = {node.number: (allowed(node), routes(node)) for node in (one, three)}
    doc = stranger(trio, one, "f" * 32, subnets=lies, slices=["0.0.0.0/0", "::/0"], members={"red": [there.address]})
    for node in (one, two, three):
        wait_for(lambda node=node: "0.0.0.0/0" in told(node, "claim-missing"), "it is told")  # type: ignore[misc]
        assert "host-ffff" in told(node, "claim-missing")
    for node in (one, three):
        found, ways = allowed(node), routes(node)
        assert found.pop(doc["public_key"]) == set()
        assert (found, ways) == before[node.number]
    # A claim of what is no slot is none.
    for cidr in ("0.0.0.0_0", "0.0.0.0_1", half.replace("/", "_"), f"{there.address}_32"):
        trio.put(f"{trio.base(one)}slot/{cidr}", json.dumps({"owner": "f" * 32, "use": "slice"}).encode())
    wait_for(lambda: "0.0.0.0_0" in told(one, "record-refused"), "what is no slot is told")
    fresh = one.container("a-new-service")
    assert fresh.address.startswith("10.200.")
    assert allowed(one)[doc["public_key"]] == set()
    assert here.pings(there.address)
    assert here.pings(other.address)
    # Another key's holder is no peer, and takes nothing.
    thief = stranger(trio, one, "e" * 32, node_id=78, subnets=[slot])
    trio.put(f"{trio.base(one)}node/{'e' * 32}", json.dumps({**thief, "public_key": two.status().public_key}).encode())
    wait_for(lambda: "host-eeee" in told(one, "peer-key-conflict"), "the key's holder is told")
    assert allowed(one)[two.status().public_key or ""] == before[1][0][two.status().public_key or ""]
    assert here.pings(there.address)


def alarm(store: Clustered, action: str) -> None:
    """etcd takes no more data, as when its quota is reached; or it does again."""

    def ask(client: Any) -> None:
        member = client._call("/v3/maintenance/status", {})["header"]["member_id"]
        client._call("/v3/maintenance/alarm", {"action": action, "memberID": member, "alarm": "NOSPACE"})

    store.ask(ask)


def stays(store: Clustered, pairs: list[tuple[Container, Container]], seconds: float) -> None:
    """For that long, every node has its peers and every pair a way."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for node in store.nodes.values():
            assert node.daemon is not None
            if node.daemon.poll() is None:
                assert len(allowed(node)) == len(store.nodes) - 1, f"node {node.number} has lost a peer"
        for one, two in pairs:
            assert one.pings(two.address)
        time.sleep(1)


@pytest.mark.long
def test_a_store_that_takes_nothing_more_costs_no_node_its_place(trio: Clustered) -> None:
    """The NOSPACE alarm: leases are renewed, and every put is refused."""
    one, two, three = trio.nodes.values()
    pairs = [(one.container(), two.container()), (one.container(), three.container())]
    for pair in pairs:
        arrives(*pair)
    alarm(trio, "ACTIVATE")
    fresh = two.container("held-in-advance", isolationNetwork="red")  # there is something to publish
    wait_for(lambda: told(two, "store-writes-refused"), "it is told")
    stays(trio, pairs, LEASE + GRACE + 3)
    assert told(one, "node-unheard") == "", "the lease was renewed"
    alarm(trio, "DEACTIVATE")
    wait_for(lambda: not told(two, "store-writes-refused"), "etcd takes again")
    wait_for(lambda: "red" in trio.document(two)["members"], "the rest is published")
    arrives(two.container("held-in-advance", isolationNetwork="red"), fresh)


@pytest.mark.long
def test_a_peer_whose_tunnel_answers_is_not_pruned(trio: Clustered) -> None:
    """A daemon that is stopped renews no lease, and another's words are deleted over and over: the tunnels stay."""
    one, two, three = trio.nodes.values()
    pairs = [(one.container(), two.container()), (one.container(), three.container())]
    for pair in pairs:
        arrives(*pair)
    assert two.daemon is not None
    two.daemon.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: told(one, "node-unheard"), "the lease and the grace are over", LEASE + GRACE + 10)
        stays(trio, pairs, 17)  # longer than a silence that counts
    finally:
        two.daemon.send_signal(signal.SIGCONT)
    wait_for(lambda: not told(one, "node-unheard"), "it is heard of again")
    engine = three.engine()
    three.end(signal.SIGKILL)
    if not engine:
        pytest.skip("the kernel's WireGuard cannot be killed")
    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: len(allowed(one)) == 1, "one that does not answer is pruned", LEASE + GRACE + 30)
