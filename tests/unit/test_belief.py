"""What a node believes of the others, as values: the store's records in, peers and problems out."""

from __future__ import annotations

import base64
import ipaddress
from typing import Any

import msgspec
import pytest

from cni.daemon.cluster.belief import MOST_NETWORKS, Belief, believe
from cni.daemon.cluster.claim_table import LINGERS
from cni.daemon.cluster.view import ClusterView
from cni.daemon.mesh.answers import SILENT, Answers
from cni.daemon.model import keys, wireguard
from cni.daemon.model.cluster_records import Dedicated, NodeDocument, Slot

BASE = "/zlayer-cni/prod/"
RANGES = ("10.200.0.0/16",)
A, B, ME = "a" * 32, "b" * 32, "c" * 32


def key_of(letter: str) -> str:
    return base64.b64encode(letter.encode() * 32).decode()


def doc(identity: str, **words: Any) -> NodeDocument:
    known: dict[str, Any] = {
        "identity": identity,
        "name": f"host-{identity[0]}",
        "place": "p",
        "node_id": ord(identity[0]),
        "public_key": key_of(identity[0]),
        "port": 51420,
        "hosts": ("192.0.2.1",),
    }
    return NodeDocument(**{**known, **words})


class Store:
    """A store's content, and what a node makes of it."""

    def __init__(self, own: str = ME, grace: float = 10.0) -> None:
        self.items: dict[str, bytes] = {}
        self.view = ClusterView(BASE, own, grace)

    def member(self, identity: str, *slots: str, **words: Any) -> None:
        """A node with its claims."""
        said = doc(identity, **words)
        for cidr in slots:
            self.items[f"{BASE}slot/{cidr.replace('/', '_')}"] = msgspec.json.encode(Slot(identity, "slice"))
        self.items[f"{BASE}key/{keys.decode(said.public_key).hex()}"] = identity.encode()
        self.items[f"{BASE}id/{said.node_id}"] = identity.encode()
        self.items[f"{BASE}node/{identity}"] = msgspec.json.encode(said)

    def load(self, now: float = 0.0) -> Belief:
        self.view.load(self.items.items(), now)
        return self.belief()

    def belief(self, *dedicated: str) -> Belief:
        return believe(self.view, ME, {key_of("c")}, dedicated, RANGES)


@pytest.fixture
def store() -> Store:
    made = Store()
    made.member(ME, "10.200.9.0/26")
    made.member(A, "10.200.1.0/26", "10.200.2.0/26", slices=("10.200.1.0/26",), subnets=("10.200.2.0/26",))
    return made


def allowed(belief: Belief) -> dict[str, set[str]]:
    return {target.name: set(target.allowed_ips) for target in belief.fleet.peers[""]}


def test_a_node_has_what_it_has_claimed(store: Store) -> None:
    belief = store.load()
    assert allowed(belief) == {"host-a": {"10.200.1.0/26", "10.200.2.0/26"}}
    assert (belief.conflicts, belief.unclaimed) == ({}, {})


def test_a_node_is_called_at_every_endpoint_that_it_publishes(store: Store) -> None:
    """`hosts` with one `port` are what an earlier version publishes and reads."""
    endpoints = ("192.0.2.1:51420", "[2001:db8::1]:443", "gate.example:7000")
    own = Dedicated(key_of("d"), 51421, ("10.200.3.0/26",))
    store.member(B, "10.200.3.0/26", endpoints=endpoints, dedicated={"db": own})
    store.items[f"{BASE}key/{keys.decode(own.public_key).hex()}"] = B.encode()
    store.load()
    peers = store.belief("db").fleet.peers
    assert {target.name: target.endpoints for target in peers[""]} == {
        "host-a": ("192.0.2.1:51420",),
        "host-b": endpoints,
    }
    assert [target.endpoints for target in peers["db"]] == [
        ("192.0.2.1:51421", "[2001:db8::1]:51421", "gate.example:51421")
    ]


@pytest.mark.parametrize(
    "endpoint", ["192.0.2.1", "192.0.2.1:0", "[2001:DB8::1]:5", "a b:5", "2001:db8::1:5:", "x:70000"]
)
def test_an_endpoint_that_is_not_canonical_is_refused(store: Store, endpoint: str) -> None:
    store.member(B, "10.200.3.0/26", endpoints=(endpoint,))
    store.load()
    assert any("endpoints" in fault for fault in store.view.faults.values())


@pytest.mark.parametrize(
    "cidr",
    [
        "10.200.1.0/27",  # half of a neighbour's
        "10.200.1.5/32",
        "10.200.1.0/26",  # a neighbour's
        "10.200.0.0/16",
        "10.200.3.0/26",  # claimed by no node
        "0.0.0.0/1",
        "0.0.0.0/0",
        "::/0",
        "192.0.2.0/26",
    ],
)
@pytest.mark.parametrize("field", ["slices", "subnets"])
def test_what_a_node_has_not_claimed_is_told_and_not_believed(store: Store, cidr: str, field: str) -> None:
    store.member(B, "10.200.5.0/26", **{field: (cidr, "10.200.5.0/26")})
    belief = store.load()
    assert allowed(belief) == {"host-a": {"10.200.1.0/26", "10.200.2.0/26"}, "host-b": {"10.200.5.0/26"}}
    assert cidr in belief.unclaimed[B]
    assert "host-b" in belief.unclaimed[B]
    assert belief.unclaimed.keys() == {B}
    assert belief.docs[B].slices + belief.docs[B].subnets == ("10.200.5.0/26",)
    assert ipaddress.ip_network(cidr) not in store.view.foreign(ME) or cidr == "10.200.1.0/26"


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "10.200.1.0/27", "10.200.1.5/32", "0.0.0.0/1", "fd00::/64"])
def test_a_claim_of_what_is_no_slot_is_none(store: Store, cidr: str) -> None:
    before = store.load()
    store.member(B, cidr, subnets=(cidr,))
    belief = store.load()
    assert allowed(belief) == {**allowed(before), "host-b": set()}
    assert ipaddress.ip_network(cidr) not in store.view.foreign(ME)
    assert list(store.view.faults) == [f"{BASE}slot/{cidr.replace('/', '_')}"]


def test_a_claim_in_a_range_that_this_node_does_not_have_is_no_fault(store: Store) -> None:
    store.member(B, "fd00::/120", "10.201.0.0/26", subnets=("fd00::/120", "10.201.0.0/26"))
    belief = store.load()
    assert allowed(belief)["host-b"] == set()
    assert belief.unclaimed == {}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"ranges": RANGES}, ""),
        ({"ranges": RANGES[:1]}, ""),  # a family that one node lacks
        ({"ranges": ("10.0.0.0/8",)}, "the overlay's range 10.0.0.0/8"),
        ({"ranges": ("10.201.0.0/16", *RANGES[1:])}, "the overlay's range 10.201.0.0/16"),
        ({"slices": ("10.201.0.0/26",)}, "a slice in another range, 10.201.0.0/26"),  # an earlier version
        ({"slices": ("10.200.7.0/26",)}, ""),
    ],
)
def test_a_node_with_another_range_is_told(store: Store, words: dict[str, Any], told: str) -> None:
    store.member(B, *words.get("slices", ()), **words)
    texts = store.load().ranges
    assert (told in texts[B]) if told else (texts == {})


def test_a_key_that_another_has_makes_no_peer(store: Store) -> None:
    store.member(B, "10.200.5.0/26", subnets=("10.200.5.0/26",))
    store.items[f"{BASE}node/{B}"] = msgspec.json.encode(doc(B, public_key=key_of("a")))
    belief = store.load()
    assert allowed(belief).keys() == {"host-a"}
    assert "host-a" in belief.conflicts[B]
    store.items[f"{BASE}node/{B}"] = msgspec.json.encode(doc(B, public_key=key_of("z")))
    assert "no node that has claimed it" in store.load().conflicts[B]
    store.items[f"{BASE}node/{B}"] = msgspec.json.encode(doc(B, public_key=key_of("c")))
    assert "this node" in store.load().conflicts[B]


def test_a_device_with_anothers_key_is_no_peer_of_a_service(store: Store) -> None:
    lie = {"db": Dedicated(key_of("a"), 51421, ("10.200.5.0/26",))}
    store.member(B, "10.200.5.0/26", "10.200.6.0/26", dedicated=lie, subnets=("10.200.6.0/26",))
    belief = store.load()
    assert "service db" in belief.unclaimed[B]
    assert "db" not in store.belief("db").fleet.peers
    assert allowed(belief)["host-b"] == {"10.200.6.0/26"}


def test_members_are_believed_inside_a_nodes_own_subnets(store: Store) -> None:
    members = {"red": ("10.200.5.7", "10.200.2.9"), "blue": ("10.200.5.8",)}
    store.member(B, "10.200.5.0/26", subnets=("10.200.5.0/26",), members=members)
    belief = store.load()
    assert belief.fleet.members == {"red": {"10.200.5.7"}, "blue": {"10.200.5.8"}}
    assert "10.200.2.9" in belief.unclaimed[B]


def test_of_all_networks_those_of_the_node_that_names_most_are_left_out() -> None:
    store = Store()
    store.member(ME, "10.200.9.0/26")
    for n in range(5):
        identity = f"{n:032x}"
        cidr = f"10.200.{n + 10}.0/26"
        many = {f"n{n}-{i}": (f"10.200.{n + 10}.{i % 60 + 2}",) if i < 60 else () for i in range(512)}
        words = {"public_key": key_of(str(n)), "node_id": n + 1, "name": f"host-{n}", "subnets": (cidr,)}
        store.member(identity, cidr, **words, members=many)
    store.member(A, "10.200.1.0/26", subnets=("10.200.1.0/26",), members={"red": ("10.200.1.2",)})
    belief = store.load()
    assert len(belief.fleet.members) == MOST_NETWORKS
    assert belief.fleet.members["red"] == {"10.200.1.2"}
    assert list(belief.unclaimed) == [f"{3:032x}", f"{4:032x}"]


def test_another_nodes_id_is_told(store: Store) -> None:
    store.member(B, "10.200.5.0/26", subnets=("10.200.5.0/26",))
    store.items[f"{BASE}node/{B}"] = msgspec.json.encode(doc(B, node_id=ord("a"), subnets=("10.200.5.0/26",)))
    belief = store.load()
    assert "node id 97" in belief.unclaimed[B]
    assert allowed(belief)["host-b"] == {"10.200.5.0/26"}


# --- claims that the store has lost -----------------------------------------------------------------------------------


def test_a_store_that_lost_everything_costs_nothing(store: Store) -> None:
    before = allowed(store.load())
    store.items = {}
    assert allowed(store.load(100.0)) == before
    store.view.settle(100_000.0)
    assert allowed(store.belief()) == before, "as long as the node is known"
    store.member(ME, "10.200.9.0/26")
    store.member(B, "10.200.1.0/26", slices=("10.200.1.0/26",))
    belief = store.load(200.0)
    assert allowed(belief) == {"host-a": {"10.200.2.0/26"}, "host-b": {"10.200.1.0/26"}}, "the first one has it"


def test_so_does_one_from_which_every_key_is_deleted_one_by_one(store: Store) -> None:
    before = allowed(store.load())
    for key in sorted(store.items):
        store.view.gone(key, 5.0)
        store.view.settle(5.0)
        assert allowed(store.belief()) == before
    store.view.settle(500.0)
    assert allowed(store.belief()) == before


def test_a_claim_that_was_given_back_counts_no_more(store: Store) -> None:
    store.load()
    store.view.gone(f"{BASE}slot/10.200.2.0_26", 5.0)
    store.view.settle(5.0 + LINGERS)
    assert allowed(store.belief()) == {"host-a": {"10.200.1.0/26"}}
    assert "10.200.2.0/26" in store.belief().unclaimed[A]


def test_a_released_node_is_no_peer_soon_after(store: Store) -> None:
    store.load()
    for key in [key for key in store.items if key.startswith(BASE) and A.encode() in store.items[key]]:
        store.view.gone(key, 5.0)
    store.view.settle(5.0 + LINGERS)
    assert store.belief().docs == {}
    assert store.belief().fleet.peers[""] == ()


def test_what_was_released_while_this_node_was_away_counts_for_the_grace_period(store: Store) -> None:
    before = allowed(store.load())
    del store.items[f"{BASE}slot/10.200.2.0_26"]
    assert allowed(store.load(50.0)) == before
    store.view.settle(60.0)
    assert allowed(store.belief()) == {"host-a": {"10.200.1.0/26"}}


def test_a_daemon_that_starts_without_the_store_believes_what_the_last_one_did(store: Store) -> None:
    store.member(B, "10.200.5.0/26", subnets=("10.200.5.0/26", "0.0.0.0/1"))
    belief = store.load()
    later = Store()
    later.view.restore(belief.docs.values())
    assert allowed(later.belief()) == allowed(belief)
    assert later.belief().unclaimed == {}


# --- where peers are called, and whether they answer ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "published", "good"),
    [
        ("192.0.2.7", True, True),
        ("2001:db8::7", True, True),
        ("10.200.3.7", True, False),
        ("10.200.3.7", False, False),
        ("172.16.5.5", True, False),  # behind a peer of the operator's
        ("172.16.5.5", False, True),
        ("127.0.0.1", True, False),
        ("127.0.0.1", False, True),
        ("0.0.0.0", True, False),
        ("224.0.0.5", True, False),
        ("::1", True, False),
    ],
)
def test_where_a_peer_may_be_called(address: str, published: bool, good: bool) -> None:
    others = [ipaddress.ip_network("172.16.0.0/12")]
    assert wireguard.is_callable(ipaddress.ip_address(address), RANGES, published, others) == good


def test_a_peer_answers_while_bytes_come() -> None:
    answers = Answers()
    answers.note({"k": 100}, 0.0)
    assert answers.answers("k", SILENT - 1)
    answers.note({"k": 100}, SILENT - 1)
    assert not answers.answers("k", SILENT)
    answers.note({"k": 132}, SILENT + 5)
    assert answers.answers("k", SILENT * 2 + 4)
    assert not answers.answers("other", 0.0)
    answers.note({}, 50.0)
    assert not answers.answers("k", 50.0)
