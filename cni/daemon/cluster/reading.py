"""Reads all records of a cluster from its store."""

from __future__ import annotations

from collections.abc import Iterable

from cni.daemon.cluster.store import ClusterStore, KeyValue

KINDS = ("node", "id", "key", "slot")  # documents first: a claim is checked against its holder's document


def everything(store: ClusterStore, base: str) -> tuple[list[KeyValue], int]:
    """Every record of the known kinds below the base as of one revision, and that revision. Other keys are not read.
    Raises StoreError."""
    records: list[KeyValue] = []
    revision = 0
    for kind in KINDS:
        items, revision = store.read(f"{base}{kind}/", revision)
        records += items
    return records, revision


def as_records(items: Iterable[KeyValue]) -> list[tuple[str, bytes | None, int]]:
    """The records in the form of a view: key, value (None if it is too large), and the creation revision."""
    return [(item.key, None if item.cut else item.value, item.created) for item in items]
