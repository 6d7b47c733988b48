"""Whose record is believed: signatures, sequences, and claims that another machine overwrites."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cni.daemon import public_keys
from cni.daemon.cluster import store_records
from cni.daemon.cluster.claim_table import LINGERS
from cni.daemon.cluster.store_records import MOST, publishable
from cni.daemon.cluster.trust import REPORT_TIME, Trust
from cni.daemon.cluster.view import ClusterView
from cni.daemon.model import keys, signing
from cni.daemon.model.cluster_records import Dedicated, NodeDocument, SignedSlot
from cni.daemon.model.signing import Signer
from cni.daemon.state.identity import FILE, SIGNING_FILE, Identity

BASE = "/zlayer-cni/prod/"
CIDR = "10.200.5.0/26"
SLOT = f"{BASE}slot/10.200.5.0_26"


class Machine:
    """One that writes into the store. `earlier`: its identity is from before there were signatures."""

    def __init__(self, name: str, number: int, earlier: bool = False) -> None:
        self.signer, self.name, self.number = Signer(signing.generate()), name, number
        self.identity = name * 32 if earlier else signing.identity_of(self.signer.public)
        self.public_key = public_keys.public_of(keys.generate())
        self.key, self.sequence = f"{BASE}node/{self.identity}", 0

    def document(self, sequence: int = 0, signed: bool = True, **words: Any) -> bytes:
        self.sequence = sequence or self.sequence + 1
        known: dict[str, Any] = {
            "identity": self.identity,
            "name": self.name,
            "place": "p",
            "node_id": self.number,
            "public_key": self.public_key,
            "port": 51420,
            "hosts": ("192.0.2.1",),
            "signer": self.signer.name if signed else "",
            "sequence": self.sequence if signed else 0,
        }
        value = msgspec.json.encode(NodeDocument(**{**known, **words}))
        return self.signer.sealed(self.key, value) if signed else value

    def slot(self, signed: bool = True, key: str = SLOT) -> bytes:
        value = msgspec.json.encode(SignedSlot(self.identity, "slice", self.signer.name if signed else ""))
        return self.signer.sealed(key, value) if signed else value

    def join(self, view: ClusterView, created: int, **words: Any) -> None:
        view.put(self.key, self.document(**words), created)
        view.put(f"{BASE}key/{keys.decode(self.public_key).hex()}", self.identity.encode(), created)
        view.put(f"{BASE}id/{self.number}", self.identity.encode(), created)


@pytest.fixture
def a() -> Machine:
    return Machine("a", 1)


@pytest.fixture
def b() -> Machine:
    return Machine("b", 2)


def view_of(own: Machine | None = None, unsigned: bool = True) -> ClusterView:
    """The view of a node that has its claims in the store."""
    own = own or Machine("m", 9)
    made = ClusterView(BASE, own.identity, 10.0, Trust(unsigned, own.identity, own.signer.name))
    own.join(made, 5)
    return made


@pytest.fixture
def view(a: Machine) -> ClusterView:
    """A node's view with the machine `a`, that has the slot."""
    made = view_of()
    a.join(made, 10, slices=(CIDR,))
    made.put(SLOT, a.slot(), 11)
    made.settle(0.0)
    assert (made.owner_of(CIDR), made.strangers.texts(), made.faults) == (a.identity, {}, {})
    return made


def test_a_document_of_another_signer_is_not_believed(view: ClusterView, a: Machine, b: Machine) -> None:
    before = view.nodes[a.identity]
    forged = [
        b.signer.sealed(a.key, json.dumps({**json.loads(a.document()), "signer": b.signer.name}).encode()),
        a.document(signed=False),
        a.document().replace(b"192.0.2.1", b"192.0.2.9"),
        Machine("a", 1).signer.sealed(a.key, json.dumps(json.loads(a.document())).encode()),
        a.signer.sealed(b.key, json.dumps(json.loads(a.document())).encode()),
    ]
    for value in forged:
        view.put(a.key, value, 12)
        assert view.nodes[a.identity] == before
        assert list(view.strangers.texts()) == [a.key]
        view.strangers.is_right(a.key)
    view.put(a.key, a.document(sequence=900), 12)
    assert view.nodes[a.identity].sequence == 900


def test_it_is_told_for_some_time_after_it_was_put_right(view: ClusterView, a: Machine) -> None:
    view.put(a.key, a.document(signed=False), 12)
    view.settle(1e6)
    assert a.key in view.strangers.texts(), "as long as it stands"
    view.put(a.key, a.document(), 12)
    view.settle(1e6)
    view.settle(1e6 + REPORT_TIME - 1)
    assert a.key in view.strangers.texts()
    view.settle(1e6 + REPORT_TIME)
    assert view.strangers.texts() == {}


def test_an_older_document_is_not_believed_again(view: ClusterView, a: Machine) -> None:
    old = a.document(hosts=("192.0.2.5",))
    view.put(a.key, old, 12)
    view.put(a.key, a.document(hosts=("192.0.2.6",)), 12)
    view.put(a.key, old, 12)
    assert view.nodes[a.identity].hosts == ("192.0.2.6",)
    assert "older" in view.strangers.texts()[a.key]


@pytest.mark.parametrize("unsigned", [True, False])
def test_versions_that_do_not_sign(unsigned: bool) -> None:
    earlier, made = Machine("d", 4, earlier=True), view_of(unsigned=unsigned)
    made.put(earlier.key, earlier.document(signed=False, slices=(CIDR,)), 1)
    made.put(SLOT, earlier.slot(signed=False), 1)
    assert (earlier.identity in made.nodes) == unsigned
    assert (made.owner_of(CIDR) == earlier.identity) == unsigned
    assert len(made.faults) == (0 if unsigned else 2)
    assert made.strangers.texts() == {}
    # It is upgraded: from its first signature on no other counts.
    made.put(earlier.key, earlier.document(slices=(CIDR,)), 1)
    assert made.nodes[earlier.identity].signer == earlier.signer.name
    other = Machine("d", 4, earlier=True)
    for value in (other.document(sequence=99), earlier.document(signed=False)):
        made.put(earlier.key, value, 1)
        assert made.nodes[earlier.identity].signer == earlier.signer.name
        assert earlier.key in made.strangers.texts()


def test_an_unsigned_document_names_no_signer() -> None:
    """Else the next one that is signed would be another's."""
    earlier, made = Machine("d", 4, earlier=True), view_of()
    made.put(earlier.key, earlier.document(signed=False, signer="ff" * 32), 1)
    assert made.nodes[earlier.identity].signer == ""


def test_a_released_identity_may_come_back_with_another_key() -> None:
    earlier, made = Machine("d", 4, earlier=True), view_of()
    earlier.join(made, 1)
    other = Machine("d", 4, earlier=True)
    for key in (earlier.key, f"{BASE}key/{keys.decode(earlier.public_key).hex()}", f"{BASE}id/4"):
        made.gone(key, 5.0)
    made.settle(5.0 + LINGERS)
    assert earlier.identity not in made.nodes
    made.put(other.key, other.document(), 7)
    assert made.nodes[other.identity].signer == other.signer.name


@pytest.mark.parametrize("signed", [True, False])
def test_a_claim_that_is_overwritten_stays(view: ClusterView, a: Machine, b: Machine, signed: bool) -> None:
    b.join(view, 12, slices=(CIDR,))
    view.put(SLOT, b.slot() if signed else json.dumps({"owner": "e" * 32, "use": "slice"}).encode(), 11)
    key = f"{BASE}key/{keys.decode(a.public_key).hex()}"
    view.put(key, b.identity.encode(), 10)
    view.put(f"{BASE}id/1", b.identity.encode(), 10)
    view.settle(1.0)
    assert view.owner_of(CIDR) == a.identity
    assert view.holder_of(a.public_key) == a.identity
    assert view.ids[1] == a.identity
    assert view.strangers.texts().keys() == {SLOT, key, f"{BASE}id/1"}
    assert {claim for claim, *_ in view.overwritten(a.identity)} == {CIDR, keys.decode(a.public_key).hex(), "#1"}
    # The holder puts it right.
    view.put(SLOT, a.slot(), 11)
    assert CIDR not in {claim for claim, *_ in view.overwritten(a.identity)}
    # So it is when all is read anew.
    items = [(a.key, a.document(slices=(CIDR,)), 10), (SLOT, b.slot(), 11), (b.key, b.document(), 12)]
    view.load(items, 2.0)
    assert view.owner_of(CIDR) == a.identity
    # When the holder gives it up, it is the other's.
    view.put(a.key, a.document(slices=()), 10)
    view.settle(3.0)
    assert view.owner_of(CIDR) == b.identity


def test_a_claim_deleted_while_its_holder_signs_that_it_has_it_stays(view: ClusterView, a: Machine, b: Machine) -> None:
    view.gone(SLOT, 5.0)
    view.settle(1000.0)
    assert view.owner_of(CIDR) == a.identity
    b.join(view, 12, slices=(CIDR,))
    view.put(SLOT, b.slot(), 20)
    assert view.owner_of(CIDR) == a.identity
    assert SLOT in view.strangers.texts()


def test_what_a_departed_node_had_may_be_claimed_once_it_was_deleted(view: ClusterView, a: Machine, b: Machine) -> None:
    """As `peer forget` does: the document is not there."""
    view.gone(a.key, 4.0)
    view.gone(SLOT, 5.0)
    view.put(SLOT, b.slot(), 20)
    assert view.owner_of(CIDR) == b.identity
    assert view.strangers.texts() == {}


def test_one_that_was_forgotten_and_comes_back_takes_nothing_from_its_heir(
    view: ClusterView, a: Machine, b: Machine
) -> None:
    """All of it is read at once: its document is there again, with what it had, and was made after the heir's claim."""
    items = [(a.key, a.document(slices=(CIDR,)), 30), (b.key, b.document(slices=(CIDR,)), 12), (SLOT, b.slot(), 20)]
    view.load(items, 2.0)
    assert view.owner_of(CIDR) == b.identity
    assert view.strangers.texts() == {}
    assert view.overwritten(a.identity) == []


def test_after_a_store_was_emptied_the_first_has_it(a: Machine, b: Machine) -> None:
    view = view_of()
    a.join(view, 10, slices=(CIDR,))
    view.put(SLOT, a.slot(), 11)
    view.load([], 5.0, again=False)
    assert view.owner_of(CIDR) == a.identity
    view.load([(b.key, b.document(slices=(CIDR,)), 2), (SLOT, b.slot(), 11)], 6.0, again=False)
    assert view.owner_of(CIDR) == b.identity
    assert view.strangers.texts() == {}


# --- what other nodes would refuse ------------------------------------------------------------------------------------


def test_every_record_is_read_alone_whatever_it_is(view: ClusterView, a: Machine) -> None:
    before = (dict(view.nodes), dict(view.slots), dict(view.ids))
    odd: list[tuple[str, bytes | None]] = [
        (f"{BASE}node/{'1' * 32}", b'{"x":' + b"[" * 1200 + b"]" * 1200 + b"}"),
        (f"{BASE}node/{'2' * 32}", b"{" * 100_000),
        (f"{BASE}node/{'3' * 32}", b" " * (store_records.LARGEST["node"] + 1)),
        (f"{BASE}node/{'4' * 32}", None),
        (f"{BASE}node/\udcff\udcfe", b"{}"),
        (f"{BASE}node/", b"{}"),
        (f"{BASE}node/a/b", b"{}"),
        (f"{BASE}id/\u0663", b"a"),
        (f"{BASE}id/\u00b2", b"a"),
        (f"{BASE}id/0001", b"a"),
        (f"{BASE}id/-1", b"a"),
        (f"{BASE}id/{'9' * 5000}", b"a"),
        (f"{BASE}id/5", b"\xff\xfe"),
        (f"{BASE}id/5", "\u0663".encode()),
        (f"{BASE}slot/10.200.005.0_26", b"{}"),
        (f"{BASE}slot/fd00:0::_120", b'{"owner":"a","use":"slice"}'),
        (f"{BASE}slot/FD00::_120", b'{"owner":"a","use":"slice"}'),
        (f"{BASE}slot/10.200.5.0_27", b'{"owner":"a","use":"slice"}'),
        (f"{BASE}slot/10.200.6.0_26", b'{"owner":"a\\nb","use":"slice"}'),
        (f"{BASE}slot/10.200.6.0_26", b"[" * 900),
        (f"{BASE}key/{'AB' * 32}", b"a"),
        (f"{BASE}key/zz", b"a"),
    ]
    for key, value in odd:
        view.put(key, value)
        assert key in view.faults, key
        view.gone(key, 1.0)
        assert view.faults == {}
    assert (dict(view.nodes), dict(view.slots), dict(view.ids)) == before
    for n in range(5000):
        view.put(f"{BASE}node/\udcff{n}", b"x")
    texts = view.refused(20)
    assert len(texts) == 20
    assert "4981 more" in texts[""]
    assert all(text.isprintable() for text in texts.values())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"port": 70000}, "port"),
        ({"port": 0}, "port"),
        ({"node_id": -1}, "node_id"),
        ({"hosts": ("a" * 64 + ".example",)}, "hosts"),
        ({"hosts": ("fd00::1%eth0",)}, "IP address"),
        ({"hosts": ("192.0.2.1",) * 33}, "33 hosts"),
        ({"members": {"red": ("fd00::1%eth0",)}}, "IP address"),
        ({"members": {"red": ("10.200.5.1",), "blue": ("10.200.5.1",)}}, "two networks"),
        ({"members": {"red": ("10.200.005.1",)}}, "IP address"),
        ({"members": {"red": ("FD00::1",)}}, "form"),
        ({"members": {f"n{n}": () for n in range(3000)}}, "3000 networks"),
        ({"members": {"red": tuple(f"10.{n >> 8}.{n & 255}.1" for n in range(5000))}}, "5000 members"),
        ({"members": {"a\nb": ()}}, "printed"),
        ({"members": {"a" * 254: ()}}, "254 characters"),
        ({"name": "x\x1b[2J"}, "printed"),
        ({"subnets": ("10.200.5.1/26",)}, "host bits"),
        ({"dedicated": {"db": Dedicated("AAAA", 51421, ())}}, "bytes"),
    ],
)
def test_a_document_is_refused_whole(view: ClusterView, a: Machine, words: dict[str, Any], why: str) -> None:
    before = view.nodes[a.identity]
    view.put(a.key, a.document(**words), 10)
    assert why in view.faults[a.key]
    assert view.nodes[a.identity] == before


def test_what_would_be_refused_is_left_out(a: Machine) -> None:
    doc = store_records.read_node(a.identity, a.document(slices=(CIDR,)))
    assert publishable(doc) == (doc, ())
    much = msgspec.structs.replace(
        doc,
        members={"a\nb": ("10.200.5.1",), **{f"n{n:04}": (f"10.200.{n >> 8}.{n & 255}",) for n in range(600)}},
        dedicated={
            "x" * 300: Dedicated(a.public_key, 1, ()),
            "db": Dedicated(public_keys.public_of(keys.generate()), 1, ()),
        },
        subnets=tuple(f"10.{n >> 8}.{n & 255}.0/26" for n in range(1100)),
        hosts=tuple(f"192.0.2.{n}" for n in range(40)),
    )
    short, left = publishable(much)
    assert len(left) == 1 + 88 + 1 + 76 + 8
    assert (len(short.members), len(short.subnets), len(short.hosts)) == (
        MOST["networks"],
        MOST["subnets"],
        MOST["hosts"],
    )
    store_records.check_node(short)


# --- the key itself ---------------------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_survives_an_earlier_version(tmp_path: Any) -> None:
    ours = Identity(str(tmp_path))
    name, identity = ours.signer().name, ours.member().identity
    assert signing.may_sign(identity, name) and signing.must_sign(identity)
    assert ours.is_known()
    assert Identity(str(tmp_path)).signer().name == name
    for file in (FILE, SIGNING_FILE):
        assert (tmp_path / file).stat().st_mode & 0o777 == 0o600
    content = json.loads((tmp_path / FILE).read_bytes())
    del content["signing"]  # as a version writes it that does not know the field
    (tmp_path / FILE).write_text(json.dumps(content))
    assert Identity(str(tmp_path)).signer().name == name
    (tmp_path / FILE).unlink()  # as an operator does to a copy
    assert Identity(str(tmp_path)).signer().name != name


def test_an_identity_from_before_is_known_once_it_was_announced(tmp_path: Any) -> None:
    (tmp_path / FILE).write_text(json.dumps({"member": {"identity": "0f" * 16}}))
    ours = Identity(str(tmp_path))
    assert not ours.is_known()
    ours.announced()
    again = Identity(str(tmp_path))
    assert again.is_known()
    assert (again.member().identity, again.signer().name) == ("0f" * 16, ours.signer().name)


def test_sequences_grow_over_restarts_and_clocks_set_back(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    last = 0
    for now in (2_000_000_000, 1_000_000_000, 1_000_000_001):
        monkeypatch.setattr("cni.daemon.state.identity.time.time", lambda now=now: now)
        ours = Identity(str(tmp_path))
        for _ in range(3):
            found = ours.next_sequence()
            assert found > last
            last = found
