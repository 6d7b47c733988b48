"""All the records of a cluster, read from its store."""

from __future__ import annotations

from collections.abc import Iterable

from cni.daemon.mesh.etcd import Etcd
from cni.daemon.mesh.etcd_wire import Item

KINDS = ("node", "id", "key", "slot")  # documents first: a claim is judged by what its holder says


def everything(etcd: Etcd, base: str) -> tuple[list[Item], int]:
    """Every record of ours below the base as of one moment, and the revision of that moment. What else stands there is
    not read. Raises EtcdError."""
    found: list[Item] = []
    revision = 0
    for kind in KINDS:
        items, revision = etcd.read(f"{base}{kind}/", revision)
        found += items
    return found, revision


def as_records(items: Iterable[Item]) -> list[tuple[str, bytes | None, int]]:
    """As a view takes them: key, value (None for one that is too large), and the revision that made it."""
    return [(item.key, None if item.cut else item.value, item.created) for item in items]
