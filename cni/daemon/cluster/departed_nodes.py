"""Nodes that publish no document and still hold ids, slots and keys in etcd, and the release of their claims.

Claims are never released automatically: a node that returns, even after a year, must find what it had. An operator
declares that a node will not return (`zlayer-cni peer forget`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cni.daemon.cluster.reading import everything
from cni.daemon.cluster.store import ClusterStore, Compare, Delete, StoreError
from cni.daemon.cluster.view import ClusterView
from cni.daemon.state.identity import Identity
from cni.errors import InvalidConfig, TryAgainLater

log = logging.getLogger(__name__)

AT_ONCE = 50  # claims in one transaction: etcd accepts 128 operations
SHORTEST = 4  # characters: the shortest prefix of an identity that may name a node


@dataclass(frozen=True)
class DepartedNode:
    """A node without a document. `node_id` 0: it holds no id. `keys`: the keys in etcd of its claims."""

    identity: str
    node_id: int
    name: str
    keys: tuple[str, ...]


def departed(items: Mapping[str, bytes], own: str, names: Mapping[str, str], base: str) -> list[DepartedNode]:
    """The nodes that hold claims and publish no document, sorted by node id. `items`: every record below `base`; the
    node `own` is never among them."""
    view = ClusterView(base)
    view.load(items.items(), 0.0)
    claims: dict[str, list[str]] = {}
    for number, identity in view.ids.items():
        claims.setdefault(identity, []).append(view.keys.id(number))
    for cidr, slot in view.slots.items():
        claims.setdefault(slot.owner, []).append(view.keys.slot(cidr))
    for key, identity in view.holders.items():
        claims.setdefault(identity, []).append(f"{base}key/{key}")
    numbers = {identity: number for number, identity in view.ids.items()}
    gone = claims.keys() - view.nodes.keys() - {own}
    nodes = [DepartedNode(i, numbers.get(i, 0), names.get(i, ""), tuple(sorted(claims[i]))) for i in gone]
    return sorted(nodes, key=lambda node: (node.node_id, node.identity))


def find(gone: Iterable[DepartedNode], word: str) -> DepartedNode:
    """The node that `word` names: by a node id, a name, an identity or a prefix of an identity. Raises InvalidConfig if
    it names no node or several."""
    nodes = list(gone)
    exact = [node for node in nodes if word and word in (str(node.node_id or ""), node.name, node.identity)]
    matches = exact or [node for node in nodes if len(word) >= SHORTEST and node.identity.startswith(word)]
    if len(matches) != 1:
        which = "more than one" if matches else "none"
        raise InvalidConfig(
            f"{word!r} is {which} of the nodes that are gone (`zlayer-cni peer gone`)",
            "one that is heard of cannot be forgotten: run `zlayer-cni uninstall` on it, or end it, and wait",
        )
    return matches[0]


class DepartedNodes:
    """The departed nodes as etcd has them now."""

    def __init__(self, store: ClusterStore, view: ClusterView, identity: Identity) -> None:
        self._store, self._view, self._identity = store, view, identity
        self._keys = view.keys

    def all(self) -> list[DepartedNode]:
        """The departed nodes. Raises TryAgainLater if etcd does not answer."""
        return self._read()[0]

    def _read(self) -> tuple[list[DepartedNode], dict[str, bytes]]:
        """The departed nodes, and every record in etcd by key. Raises TryAgainLater if etcd does not answer."""
        try:
            items = {item.key: item.value for item in everything(self._store, self._keys.base)[0]}
        except StoreError as error:
            raise TryAgainLater(f"{self._store.name} cannot be asked", str(error)) from error
        with self._view.lock:
            names = {identity: doc.name for identity, doc in self._view.nodes.items()}
        return departed(items, self._identity.member().identity, names, self._keys.base), items

    def forget(self, word: str) -> DepartedNode:
        """Delete the claims of the departed node that `word` names. Raises InvalidConfig if it is no departed node or
        has just returned; TryAgainLater if etcd does not answer."""
        gone, items = self._read()
        node = find(gone, word)
        absent = Compare(self._keys.node(node.identity), "CREATE", 0)
        try:
            for start in range(0, len(node.keys), AT_ONCE):
                keys = node.keys[start : start + AT_ONCE]
                unchanged = [Compare(key, "VALUE", items[key]) for key in keys]
                if not self._store.transact([absent, *unchanged], [Delete(key) for key in keys])[0]:
                    raise InvalidConfig(f"{node.name or node.identity} has just come back, or was forgotten by another")
        except StoreError as error:
            raise TryAgainLater(f"{self._store.name} cannot be asked", str(error)) from error
        log.warning("released the %d claims of node %d (%s)", len(node.keys), node.node_id, node.identity)
        return node
