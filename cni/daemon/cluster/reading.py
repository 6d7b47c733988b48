"""All the records of a cluster, read from its store."""

from __future__ import annotations

from collections.abc import Iterable

from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.etcd_protocol import KeyValue

KINDS = ("node", "id", "key", "slot")  # documents first: a claim is judged by what its holder says


def everything(etcd: EtcdClient, base: str) -> tuple[list[KeyValue], int]:
    """Every record of ours below the base as of one moment, and the revision of that moment. What else stands there is
    not read. Raises EtcdError."""
    found: list[KeyValue] = []
    revision = 0
    for kind in KINDS:
        items, revision = etcd.read(f"{base}{kind}/", revision)
        found += items
    return found, revision


def as_records(items: Iterable[KeyValue]) -> list[tuple[str, bytes | None, int]]:
    """As a view takes them: key, value (None for one that is too large), and the revision that made it."""
    return [(item.key, None if item.cut else item.value, item.created) for item in items]
