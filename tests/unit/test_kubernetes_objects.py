"""Records as objects of Kubernetes' API, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.daemon.cluster import store_records
from cni.daemon.cluster.kubernetes import lease_ring, objects
from cni.daemon.cluster.store import StoreError, WrongServer

BASE = "/zlayer/"


def as_stored(plural: str, name: str, value: bytes, lease: int = 0, **metadata: Any) -> dict[str, Any]:
    """The object as the API server gives it."""
    made = objects.new_object(plural, name, value, lease, None)
    made["metadata"] |= {"uid": "1f4e", "resourceVersion": "7", "creationTimestamp": "2026-11-30T10:00:00Z", **metadata}
    return made


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("id", "3", "id-3"),
        ("key", "00ff", "key-00ff"),
        ("node", "a1b2", "a1b2"),
        ("name", "a1b2/web", "name.web.a1b2"),
        ("name", "a1b2/_", "index.a1b2"),
        ("slot", "10.200.5.0_26", "slot-10-200-5-0-26"),
        ("slot", "fd00:200::5:0_120", "slot-fd000200000000000000000000050000-120"),
    ],
)
def test_a_record_has_one_name_and_comes_back_under_its_key(kind: str, name: str, expected: str) -> None:
    assert objects.object_name(kind, name) == expected
    assert objects.record_key(BASE, objects.plural_of(kind), expected) == f"{BASE}{kind}/{name}"


@pytest.mark.parametrize("name", ["slot-010-200-5-0-26", "slot-10-200-5-1-26", "slot-x-26", "id-03", "other", "key-0F"])
def test_a_name_in_another_form_is_no_second_record_of_the_same_claim(name: str) -> None:
    kind, _, rest = objects.record_key(BASE, objects.CLAIMS, name).removeprefix(BASE).partition("/")
    read = {"id": store_records.read_id, "key": store_records.read_holder, "slot": store_records.read_slot}[kind]
    with pytest.raises(ValueError):
        read(rest, b'{"owner":"a1","use":"slice"}' if kind == "slot" else b"a1")


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_a_record_is_kept_byte_for_byte(text: str) -> None:
    value = text.encode()
    assert objects.read_object(BASE, objects.CLAIMS, as_stored(objects.CLAIMS, "id-3", value)).item.value == value


def test_what_people_see_is_not_what_is_read() -> None:
    made = as_stored(objects.CLAIMS, "id-3", b"a1b2")
    made["spec"]["owner"] = "another"
    assert objects.read_object(BASE, objects.CLAIMS, made).item.value == b"a1b2"


def test_the_creation_of_two_claims_differs_and_a_document_counts_as_older() -> None:
    one = objects.read_object(BASE, objects.CLAIMS, as_stored(objects.CLAIMS, "id-3", b"a")).item.created
    two = objects.read_object(BASE, objects.CLAIMS, as_stored(objects.CLAIMS, "id-3", b"a", uid="2")).item.created
    document = objects.read_object(BASE, objects.NODES, as_stored(objects.NODES, "a", b"{}")).item.created
    assert one != two
    assert document <= min(one, two)


@pytest.mark.parametrize("raw", [{}, {"metadata": 3}, {"metadata": {"name": "a"}}, {"metadata": None}])
def test_an_answer_that_is_no_object_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(WrongServer):
        objects.read_object(BASE, objects.NODES, raw)


def test_the_lines_of_a_watch() -> None:
    made = as_stored(objects.NODES, "a1", b"{}", lease=9)
    added = objects.read_change(BASE, objects.NODES, json.dumps({"type": "ADDED", "object": made}).encode())
    assert added.event is not None and not added.event.gone and added.event.item.lease == 9 and added.revision == 7
    gone = objects.read_change(BASE, objects.NODES, json.dumps({"type": "DELETED", "object": made}).encode())
    assert gone.event is not None and gone.event.gone
    mark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "12"}}}
    assert objects.read_change(BASE, objects.NODES, json.dumps(mark).encode()) == objects.Change(None, None, 12)
    error = {"type": "ERROR", "object": {"code": 410, "message": "too old"}}
    with pytest.raises(StoreError) as caught:
        objects.read_change(BASE, objects.NODES, json.dumps(error).encode())
    assert objects.is_outdated(caught.value)
    with pytest.raises(WrongServer):
        objects.read_change(BASE, objects.NODES, b"<html>")


@given(st.sets(st.text("0123456789abcdef", min_size=1, max_size=6), min_size=2, max_size=40))
def test_every_node_is_looked_after_by_another_one_also_when_two_neighbours_are_gone(identities: set[str]) -> None:
    ring = dict.fromkeys(identities)
    watched = {identity: lease_ring.successors(identity, ring) for identity in identities}
    for identity in identities:
        watchers = {each for each, others in watched.items() if identity in others}
        assert identity not in watched[identity]
        assert len(watchers) == min(lease_ring.WATCHED, len(identities) - 1)
