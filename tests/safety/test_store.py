"""What a holder of the store's credentials can write: it stops no node, and moves nothing that another node has."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.etcd_protocol import b64
from cni.daemon.cluster.store import Put, StoreError, Unreachable
from cni.daemon.model import keys
from cni.daemon.state.identity import Identity
from cni.secret import Secret
from tests.mesh.etcds import PROGRAM, Clustered
from tests.mesh.fleet import Container, Node, arrives, wait_for

from .test_words import allowed, stranger, told

pytestmark = [
    pytest.mark.usefixtures("engine"),
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]


@pytest.fixture
def join(clustered: Clustered, program: tuple[str, ...]) -> Callable[..., Node]:
    """Makes a node of the cluster that runs the frozen program: join(number, **settings)."""

    def make(number: int, **settings: Any) -> Node:
        node = clustered.member(number, start=False, **settings)
        node.program = program
        node.start()
        return node

    return make


@pytest.fixture
def pair(clustered: Clustered, join: Callable[..., Node]) -> tuple[Container, Container]:
    """Two containers on two nodes that reach each other."""
    one, two = join(1), join(2)
    for node in (one, two):
        wait_for(lambda node=node: node.status().peer_count == 1, "a peer")  # type: ignore[misc]
    here, there = one.container(), two.container()
    arrives(here, there)
    return here, there


def put_raw(store: Clustered, *records: tuple[bytes, bytes]) -> None:
    """Records whose keys need not be text."""

    def work(client: EtcdClient) -> None:
        for key, value in records:
            client._call("/v3/kv/put", {"key": b64(key), "value": b64(value)})

    store.ask(work)


def identity_of(store: Clustered, node: Node) -> str:
    return str(store.document(node)["identity"])


@pytest.mark.long
def test_no_record_stops_or_slows_another_node(
    clustered: Clustered, join: Callable[..., Node], pair: tuple[Container, Container]
) -> None:
    """JSON nested deep, odd digits, keys that are not UTF-8, thousands of networks, megabytes."""
    here, there = pair
    one, two = here.node, there.node
    base = clustered.base(one).encode()
    networks = {f"net{n}": [] for n in range(3000)}
    wide = json.dumps({**clustered.document(two), "identity": "b" * 32, "name": "wide", "members": networks})
    put_raw(
        clustered,
        (base + b"node/" + b"a" * 32, b'{"x":' + b"[" * 1200 + b"]" * 1200 + b"}"),
        (base + b"node/" + b"c" * 32, b'{"x":' * 90_000 + b"1" + b"}" * 90_000),
        (base + b"node/" + b"b" * 32, wide.encode()),
        (base + b"slot/10.200.77.0_26", b"[" * 5000),
        (base + "id/\u0663\u0664".encode(), b"a" * 32),
        (base + "id/\u00b2".encode(), b"a" * 32),
        (base + b"id/0007", b"a" * 32),
        (base + b"id/", b"a" * 32),
        (base + "slot/\u0661\u0660.200.77.0_26".encode(), b"{}"),
        (base + b"key/" + b"A" * 64, b"a" * 32),
        (base + b"key/zz", b"\xff\xfe"),
        (base + b"something/else", b"\xff" * 1000),
        *((base + b"node/\xff\xfe%d" % n, b"x") for n in range(1300)),
        *((base + b"node/" + b"%032d" % n, b"[" * 1_200_000) for n in range(12)),
    )
    wait_for(lambda: "b" * 32 in told(one, "record-refused"), "what is refused is told")
    texts = told(one, "record-refused")
    assert "more records are not used" in texts
    assert len(texts) < 10_000
    began = time.monotonic()
    fresh = one.container("fresh")
    assert time.monotonic() - began < 5, "an ADD does not wait"
    late = two.container("late")
    arrives(fresh, late)  # what is told later is heard
    three = join(3)
    wait_for(lambda: three.status().peer_count == 2, "a new node joins", 30)
    arrives(three.container(), here)
    assert one.serves()
    assert resident(one) < 200, "megabytes"
    for node in (one, two, three):
        assert "unexpected error" not in node.log.read_text()


def resident(node: Node) -> float:
    """Megabytes of memory of the daemon."""
    pid = int((node.directory / "run/overlayd.pid").read_text())
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 1024


def test_no_put_moves_what_another_node_has(
    clustered: Clustered, join: Callable[..., Node], pair: tuple[Container, Container]
) -> None:
    """A subnet, a key, an id and a document are overwritten: what their node has is believed, and the rest is told."""
    here, there = pair
    one, two = here.node, there.node
    three = join(3)
    other = three.container()
    arrives(here, other)
    arrives(other, there)
    base, victim, key = clustered.base(one), identity_of(clustered, two), str(two.status().public_key)
    doc = clustered.document(two)
    slot = str(doc["subnets"][0])
    before = allowed(one)[key]
    stolen = f"{base}slot/{slot.replace('/', '_')}"
    # Two puts: the subnet is another's, who says so.
    clustered.put(stolen, json.dumps({"owner": "e" * 32, "use": "service:web"}).encode())
    thief = stranger(clustered, one, "e" * 32, subnets=[slot])
    for node in (one, two, three):
        wait_for(lambda node=node: slot.replace("/", "_") in told(node, "record-not-its-own"), "it is told")  # type: ignore[misc]
    # One put: its key is another's, who says so, or does not.
    clustered.put(f"{base}key/{keys.decode(key).hex()}", b"e" * 32)
    clustered.put(f"{base}id/{doc['node_id']}", b"e" * 32)
    wait_for(lambda: keys.decode(key).hex() in told(one, "record-not-its-own"), "it is told")
    # One put: its document is another's.
    for lie in ({**doc, "public_key": thief["public_key"]}, {**doc, "subnets": [], "hosts": []}):
        clustered.put(f"{base}node/{victim}", json.dumps(lie).encode())
        wait_for(lambda: victim in told(one, "record-not-its-own"), "it is told")
        assert allowed(one)[key] == before
        assert here.pings(there.address)
    for node in (one, three):
        assert allowed(node)[key] == before
        assert not allowed(node).get(thief["public_key"])
    assert here.pings(there.address)
    assert other.pings(there.address)

    def repaired() -> bool:
        found = clustered.records(one)
        owner = json.loads(found[stolen.removeprefix(base)])["owner"]
        return owner == victim and found[f"key/{keys.decode(key).hex()}"].decode() == victim

    wait_for(repaired, "the claims stand again")
    wait_for(lambda: clustered.document(two)["subnets"] == doc["subnets"], "the document stands again")
    # And after a restart of everyone.
    for node in (one, two, three):
        node.end()
        node.start()
    wait_for(lambda: allowed(one).get(key) == before, "the same as before")
    arrives(here, there)


def test_a_claim_deleted_under_its_node_is_made_again(clustered: Clustered, pair: tuple[Container, Container]) -> None:
    """Deleted, and claimed by another in the same breath."""
    here, there = pair
    one, two = here.node, there.node
    base, victim = clustered.base(one), identity_of(clustered, two)
    slot = str(clustered.document(two)["subnets"][0])
    key = f"{base}slot/{slot.replace('/', '_')}"
    value = json.dumps({"owner": "e" * 32, "use": "slice"}).encode()
    clustered.ask(
        lambda client: (client._call("/v3/kv/deleterange", {"key": b64(key.encode())}), client.put(key, value))
    )
    thief = stranger(clustered, one, "e" * 32, subnets=[slot])
    wait_for(lambda: slot.replace("/", "_") in told(one, "record-not-its-own"), "it is told")
    wait_for(lambda: json.loads(clustered.records(one)[key.removeprefix(base)])["owner"] == victim, "it is made again")
    assert here.pings(there.address)
    assert not allowed(one)[thief["public_key"]]


def test_an_older_document_again_is_not_believed(clustered: Clustered, pair: tuple[Container, Container]) -> None:
    """What a node once signed says no more what is so."""
    here, there = pair
    one, two = here.node, there.node
    victim = identity_of(clustered, two)
    old = clustered.records(one)[f"node/{victim}"]
    fresh = two.container("afterwards")
    arrives(here, fresh)
    clustered.put(f"{clustered.base(one)}node/{victim}", old)
    wait_for(lambda: "older" in told(one, "record-not-its-own"), "it is told")
    assert here.pings(fresh.address)
    wait_for(lambda: clustered.records(one)[f"node/{victim}"] != old, "the newer one stands again")


def test_unsigned_nodes_are_believed_only_where_the_yaml_says_so(
    clustered: Clustered, join: Callable[..., Node]
) -> None:
    etcd = {"endpoints": [clustered.etcd.url], "lease": 5, "grace": 4}
    one, two = join(1), join(2, cluster={"etcd": etcd, "unsigned_nodes": "refuse"})
    for node in (one, two):
        wait_for(lambda node=node: node.status().peer_count == 1, "a peer")  # type: ignore[misc]
    arrives(one.container(), two.container())
    slot = "10.200.250.0/26"
    clustered.put(
        f"{clustered.base(one)}slot/{slot.replace('/', '_')}", json.dumps({"owner": "d" * 32, "use": "slice"}).encode()
    )
    earlier = stranger(clustered, one, "d" * 32, slices=[slot])
    wait_for(lambda: allowed(one).get(earlier["public_key"]) == {slot}, "it is believed")
    wait_for(lambda: "not signed" in told(two, "record-refused"), "it is refused, and told")
    assert earlier["public_key"] not in allowed(two)


def test_a_role_of_etcd_is_enough_for_a_node(clustered: Clustered, program: tuple[str, ...]) -> None:
    """The recipe of docs/mesh.md: a role for what all nodes write, and one for each node's own document."""
    where = {"endpoints": [clustered.etcd.url], "lease": 5, "grace": 4}
    one, two = (
        clustered.member(n, start=False, cluster={"etcd": {**where, "user": f"node{n}", "password": f"secret{n}"}})
        for n in (1, 2)
    )
    base = clustered.base(one)

    def call(path: str, body: dict[str, object]) -> Callable[[EtcdClient], object]:
        return lambda client: client._call(f"/v3/auth/{path}", body)

    def grant(role: str, kind: str, key: str, prefix: bool = True) -> Callable[[EtcdClient], object]:
        end = key[:-1] + chr(ord(key[-1]) + 1)
        perm = {"permType": kind, "key": b64(key.encode()), **({"range_end": b64(end.encode())} if prefix else {})}
        return call("role/grant", {"name": role, "perm": perm})

    steps = [call("role/add", {"name": "zlayer"}), grant("zlayer", "READ", base)]
    steps += [grant("zlayer", "READWRITE", f"{base}{kind}/") for kind in ("id", "key", "slot")]
    for node in (one, two):
        number, role = node.number, f"zlayer-{node.number}"
        identity = Identity(str(node.directory / "data")).member().identity
        steps += [
            call("role/add", {"name": role}),
            grant(role, "READWRITE", f"{base}node/{identity}", prefix=False),
            *([grant(role, "READWRITE", f"{base}name/{identity}/")] if node is two else []),
            call("user/add", {"name": f"node{number}", "password": f"secret{number}"}),
            call("user/grant", {"user": f"node{number}", "role": "zlayer"}),
            call("user/grant", {"user": f"node{number}", "role": role}),
        ]
    steps += [call("user/add", {"name": "root", "password": "secret"}), call("role/add", {"name": "root"})]
    steps += [call("user/grant", {"user": "root", "role": "root"}), call("enable", {})]
    for step in steps:
        clustered.ask(step)
    for node in (one, two):
        node.program = program
        node.start()
    arrives(one.container(), two.container())
    wait_for(lambda: one.problem("names-not-shared"), "what a role of before names does not permit")
    own = Identity(str(one.directory / "data")).member().identity
    more = grant("zlayer-1", "READWRITE", f"{base}name/{own}/")
    clustered.ask(more, user="root", password=Secret("secret"))
    wait_for(lambda: one.tool("status")["problems"] == [], "names are shared")
    victim = Identity(str(two.directory / "data")).member().identity

    def answer(key: str) -> str:
        """What etcd says to a put by the first node's user; "" while it is too busy with passwords to say anything."""
        try:
            clustered.ask(
                lambda client: client.transact([], [Put(key, b"x")]), user="node1", password=Secret("secret1")
            )
        except Unreachable:
            return ""
        except StoreError as error:
            return str(error)
        return "done"

    elsewhere = ("/zlayer-cni/other/id/1", "/elsewhere")  # another deployment's, and what is none of ours
    for key in (f"{base}node/{victim}", *elsewhere):
        assert "permission denied" in wait_for(lambda key=key: answer(key), f"an answer about {key}")  # type: ignore[misc]
