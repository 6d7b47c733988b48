"""Nodes that are gone for good and still hold ids, slots and keys in etcd: who they are, and what would be given back.

Nothing gives it back by itself: a node that returns, be it after a year, must find what it had. So somebody has to say
that it will not (`zlayer-cni peer forget`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.etcd_protocol import Compare, Delete, EtcdError
from cni.daemon.cluster.reading import everything
from cni.daemon.cluster.view import ClusterView, StoreKeys
from cni.errors import InvalidConfig, TryAgainLater

log = logging.getLogger(__name__)

AT_ONCE = 50  # claims in one transaction: etcd takes 128 operations
SHORTEST = 4  # characters of an identity that may stand for all of it


@dataclass(frozen=True)
class DepartedNode:
    """A node that is not heard of. `node_id` 0: it holds none. `keys`: what it holds in etcd, the keys there."""

    identity: str
    node_id: int
    name: str
    keys: tuple[str, ...]


def departed(items: Mapping[str, bytes], own: str, names: Mapping[str, str], base: str) -> list[DepartedNode]:
    """Those who hold something and say nothing, by node id. `items`: everything below `base`; `own` is never one."""
    view = ClusterView(base)
    view.load(items.items(), 0.0)
    held: dict[str, list[str]] = {}
    for number, identity in view.ids.items():
        held.setdefault(identity, []).append(view.keys.id(number))
    for cidr, slot in view.slots.items():
        held.setdefault(slot.owner, []).append(view.keys.slot(cidr))
    for key, identity in view.holders.items():
        held.setdefault(identity, []).append(f"{base}key/{key}")
    numbers = {identity: number for number, identity in view.ids.items()}
    gone = held.keys() - view.nodes.keys() - {own}
    found = [DepartedNode(each, numbers.get(each, 0), names.get(each, ""), tuple(sorted(held[each]))) for each in gone]
    return sorted(found, key=lambda each: (each.node_id, each.identity))


def find(gone: Iterable[DepartedNode], word: str) -> DepartedNode:
    """The one that a word means: a node id, a name, an identity or the beginning of one. Raises InvalidConfig."""
    every = list(gone)
    exact = [each for each in every if word and word in (str(each.node_id or ""), each.name, each.identity)]
    found = exact or [each for each in every if len(word) >= SHORTEST and each.identity.startswith(word)]
    if len(found) != 1:
        which = "more than one" if found else "none"
        raise InvalidConfig(
            f"{word!r} is {which} of the nodes that are gone (`zlayer-cni peer gone`)",
            "one that is heard of cannot be forgotten: run `zlayer-cni uninstall` on it, or end it, and wait",
        )
    return found[0]


class DepartedNodes:
    """As etcd has them now."""

    def __init__(self, etcd: EtcdClient, keys: StoreKeys, own: str, names: Mapping[str, str]) -> None:
        """`own`: this node's identity; `names`: of the nodes that this one knows, by identity."""
        self._etcd, self._keys, self._own, self._names = etcd, keys, own, names

    def all(self) -> tuple[list[DepartedNode], dict[str, bytes]]:
        """Those who are not heard of, and everything that stands in etcd. Raises TryAgainLater."""
        try:
            items = {item.key: item.value for item in everything(self._etcd, self._keys.base)[0]}
        except EtcdError as error:
            raise TryAgainLater("etcd cannot be asked", str(error)) from error
        return departed(items, self._own, self._names, self._keys.base), items

    def forget(self, word: str) -> DepartedNode:
        """What a departed node holds is nobody's any more. Raises InvalidConfig if it is not one, or has just come
        back; TryAgainLater."""
        gone, items = self.all()
        who = find(gone, word)
        away = Compare(self._keys.node(who.identity), "CREATE", 0)
        try:
            for start in range(0, len(who.keys), AT_ONCE):
                keys = who.keys[start : start + AT_ONCE]
                same = [Compare(key, "VALUE", items[key]) for key in keys]
                if not self._etcd.transact([away, *same], [Delete(key) for key in keys])[0]:
                    raise InvalidConfig(f"{who.name or who.identity} has just come back, or was forgotten by another")
        except EtcdError as error:
            raise TryAgainLater("etcd cannot be asked", str(error)) from error
        log.warning("forgot node %d (%s), which is gone for good: %d claims", who.node_id, who.identity, len(who.keys))
        return who
