"""A store that was restored from an older backup is told from one that moved on."""

from __future__ import annotations

import pytest

from cni.daemon.cluster.store import Event, KeyValue
from cni.daemon.cluster.store_history import StoreHistory

from .test_trust import CIDR, SLOT, Machine, view_of


def item(name: str, changed: int, value: bytes = b"x") -> KeyValue:
    return KeyValue(f"/z/{name}", value, 1, changed)


@pytest.fixture
def history() -> StoreHistory:
    made = StoreHistory("/z/node/")
    assert not made.went_back([item("node/a", 7)], 1)  # the first read
    made.read([item("node/a", 7), item("slot/b", 9)], 10)
    made.follow([Event(item("node/c", 12), False)], 12)
    return made


def test_a_store_that_moved_on(history: StoreHistory) -> None:
    assert not history.went_back([item("node/a", 7), item("node/c", 12)], 12)
    assert not history.went_back([item("node/a", 30)], 30)
    assert not history.differs(item("node/c", 12))


def test_a_store_that_went_back(history: StoreHistory) -> None:
    assert history.went_back([], 11)
    assert history.went_back([item("node/a", 6)], 40)  # its revision was raised by the restore
    assert history.went_back([item("node/c", 11)], 40)
    for then in (None, item("node/c", 4), item("node/c", 12, b"y")):
        assert history.differs(then)


def test_after_a_deletion_no_record_tells(history: StoreHistory) -> None:
    history.follow([Event(item("node/c", 13), True)], 13)
    assert not history.differs(None)


@pytest.fixture
def a() -> Machine:
    return Machine("a", 1)


@pytest.fixture
def b() -> Machine:
    return Machine("b", 2)


def test_what_is_older_after_a_restore_is_no_forgery(a: Machine) -> None:
    view = view_of()
    old = a.document(sequence=1)
    a.join(view, 10, sequence=5)
    view.load([(a.key, old, 8)], 1.0, again=False)
    assert view.nodes[a.identity].sequence == 5
    assert view.strangers.texts() == {}
    assert view.is_behind()
    view.load([(a.key, old, 8)], 2.0)  # a further read
    assert view.strangers.texts() == {}
    view.put(a.key, a.document(sequence=6), 8)
    assert view.nodes[a.identity].sequence == 6
    view.put(a.key, old, 8)
    assert a.key in view.strangers.texts(), "a replay"


def test_a_claim_that_the_backup_lacks_counts_until_it_is_made_again(a: Machine) -> None:
    own = Machine("m", 9)
    view = view_of(own)
    a.join(view, 10, slices=(CIDR,))
    view.put(SLOT, a.slot(), 11)
    claims = (view.keys.id(9), view.keys.key(own.public_key))
    records = [(own.key, own.document(), 5), *((key, own.identity.encode(), 5) for key in claims)]
    view.load(records, 1.0, again=False)
    for now in (2.0, 1000.0):
        view.settle(now)
        assert view.owner_of(CIDR) == a.identity
    assert view.is_behind()
    view.load(records, 1001.0)
    view.settle(2000.0)
    assert view.owner_of(CIDR) == a.identity
    a.join(view, 20, slices=(CIDR,))
    view.put(SLOT, a.slot(), 21)
    assert not view.is_behind()


def test_the_later_document_decides_whose_a_claim_of_the_backup_is(a: Machine, b: Machine) -> None:
    """After the backup `a` released the slot and `b` took it."""
    view = view_of()
    of_before = [(a.key, a.document(slices=(CIDR,)), 10), (SLOT, a.slot(), 11)]
    a.join(view, 10)
    b.join(view, 20, slices=(CIDR,))
    view.put(SLOT, b.slot(), 21)
    view.load(of_before, 1.0, again=False)
    assert view.owner_of(CIDR) == b.identity
    assert view.strangers.texts() == {}
    assert [claim for claim, *_ in view.overwritten(b.identity)] == [CIDR]
