"""What the cluster's store holds, as one node sees it: who is there, and who holds what.

The first three kinds of records (store_records.py) are claimed by transaction and stay until they are given back: a
node that returns finds what it had. A claim that a store has lost, with this node's own, counts on until its holder
or another node claims it again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from cni.daemon.books import keys
from cni.daemon.mesh import store_records
from cni.daemon.mesh.store_records import (
    GLOBAL,
    LONGEST_KEY,
    SERVICE,
    SLICE,
    SPARE,
    Dedicated,
    Keys,
    Network,
    NodeDoc,
    Slot,
    every_cidr,
)
from cni.daemon.mesh.wireguard import Target, network_of
from cni.printable import printable

__all__ = ["GLOBAL", "SERVICE", "SLICE", "SPARE", "Dedicated", "Fleet", "Keys", "Network", "NodeDoc", "Slot", "View"]

LINGERS = 2.0  # seconds for which a deleted claim counts: the deletions of a whole store come in several answers
MOST_RECORDS = 400_000  # in the whole view: 10,000 nodes with 36 slots each
MOST_BYTES = 256 << 20  # of nodes' documents in the whole view
MOST_FAULTS = 1000  # refused records that are named; of the rest only the number is kept
FOREVER = float("inf")


@dataclass(frozen=True)
class Fleet:
    """The other nodes, for the mesh: the peers of each device (`GLOBAL` or a service), and who of those behind them is
    a member of which isolation network."""

    peers: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    members: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Past:
    """A claim that is no more in the store, and until when it counts: seconds on the view's clock."""

    owner: str
    until: float


class View:
    """Everything below the base, kept in step. `now` is seconds on a clock that nobody sets."""

    def __init__(self, base: str, own: str = "", grace: float = 0.0) -> None:
        """`own`: this node's identity; `grace`: seconds for which a claim counts that was not there at a `load`."""
        self.keys = Keys(base)
        self._own, self._grace = own, grace
        self.nodes: dict[str, NodeDoc] = {}
        self._sizes: dict[str, int] = {}  # bytes of the documents in `nodes`
        self._bytes = 0
        self.lost: dict[str, float] = {}  # since when a node in `nodes` is not heard of
        self.slots: dict[str, Slot] = {}
        self.ids: dict[int, str] = {}
        self.holders: dict[str, str] = {}  # of keys
        self.past: dict[str, Past] = {}  # claims by CIDR or hexadecimal key
        self.faults: dict[str, str] = {}
        self.more_faults = 0

    # --- what the store says -----------------------------------------------------------------------------------------

    def restore(self, docs: Iterable[NodeDoc]) -> None:
        """What an earlier daemon of this node believed, with the claims that it rested on."""
        for doc in docs:
            try:
                store_records.check_node(doc)
            except ValueError:
                continue  # an earlier version was less strict
            self.nodes[doc.identity] = doc
            claims = (*every_cidr(doc), *map(_hex, store_records.every_key(doc)))
            self.past.update(dict.fromkeys(claims, Past(doc.identity, FOREVER)))

    def load(self, items: Iterable[tuple[str, bytes]], now: float) -> None:
        """All there is. Who was known and is not there counts as lost from now on, not as gone."""
        before = {cidr: slot.owner for cidr, slot in self.slots.items()} | self.holders
        past = {claim: Past(owner, now + self._grace) for claim, owner in before.items()}
        past |= {claim: Past(each.owner, now + self._grace) for claim, each in self.past.items()}
        self.slots, self.ids, self.holders, self.faults, self.more_faults = {}, {}, {}, {}, 0
        self.past = {}
        heard = set()
        for key, value in items:
            self.put(key, value)
            if key.startswith(f"{self.keys.base}node/"):
                heard.add(key.rpartition("/")[2])
        self.past = past
        for identity in self.nodes.keys() - heard:
            self.lost.setdefault(identity, now)
        self.settle(now)

    def put(self, key: str, value: bytes) -> None:
        """A key has this value. What cannot be read is noted, and what stood there before counts on."""
        kind, _, name = key.removeprefix(self.keys.base).partition("/")
        if kind not in store_records.LARGEST:
            return
        try:
            self._put(kind, name, value)
        except Exception as error:  # noqa: BLE001 - another machine's words: whatever they raise, the other records are read
            self._refuse(key, kind, name, error)
            return
        self.faults.pop(key, None)

    def _put(self, kind: str, name: str, value: bytes) -> None:
        if len(name) > LONGEST_KEY or not name.isascii():
            raise ValueError("the key is too long, or not ASCII")
        store_records.check_size(kind, value)
        match kind:
            case "node":
                self._put_node(name, value)
            case "slot":
                cidr, slot = store_records.read_slot(name, value)
                self._check_room(cidr in self.slots)
                self.slots[cidr] = slot
                self.past.pop(cidr, None)
            case "id":
                number, identity = store_records.read_id(name, value)
                self._check_room(number in self.ids)
                self.ids[number] = identity
            case "key":
                public, identity = store_records.read_holder(name, value)
                self._check_room(public in self.holders)
                self.holders[public] = identity
                self.past.pop(public, None)

    def _put_node(self, name: str, value: bytes) -> None:
        doc = store_records.read_node(name, value)
        self._check_room(name in self.nodes)
        total = self._bytes - self._sizes.get(name, 0) + len(value)
        if total > MOST_BYTES:
            raise ValueError(f"the documents of all nodes have more than {MOST_BYTES} bytes")
        self.nodes[name], self._sizes[name], self._bytes = doc, len(value), total
        self.lost.pop(name, None)

    def _check_room(self, known: bool) -> None:
        """Raises ValueError where the view is full and this record is a further one."""
        if not known and len(self.nodes) + len(self.slots) + len(self.ids) + len(self.holders) >= MOST_RECORDS:
            raise ValueError(f"there are more than {MOST_RECORDS} records")

    def _refuse(self, key: str, kind: str, name: str, error: Exception) -> None:
        if key not in self.faults and len(self.faults) >= MOST_FAULTS:
            self.more_faults += 1
            return
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        said = f"the record {key[: LONGEST_KEY // 4]}{self._writer(kind, name)} is not used: {reason}"
        self.faults[key] = printable(said)

    def _writer(self, kind: str, name: str) -> str:
        """Who wrote a record, as far as its key says."""
        if kind != "node":
            return ""
        known = self.nodes.get(name)
        return f" of the node {known.name}" if known is not None else ""

    def gone(self, key: str, now: float) -> None:
        """There is no such key any more."""
        kind, _, name = key.removeprefix(self.keys.base).partition("/")
        self.faults.pop(key, None)
        match kind:
            case "node":
                if name in self.nodes:
                    self.lost.setdefault(name, now)
            case "slot":
                cidr = name.replace("_", "/")
                slot = self.slots.pop(cidr, None)
                if slot is not None:
                    self.past[cidr] = Past(slot.owner, now + LINGERS)
            case "id":
                self.ids = {number: owner for number, owner in self.ids.items() if str(number) != name}
            case "key":
                holder = self.holders.pop(name, None)
                if holder is not None:
                    self.past[name] = Past(holder, now + LINGERS)

    def settle(self, now: float) -> None:
        """After a `load`, after some `put` and `gone`, and now and then: decide which lost claims count on.

        Where this node's own claims are missing too, the store was emptied or put back, and they count until they are
        made again. Else they were given back, or an operator released them.
        """
        if not self.past:
            return
        reset = bool(self._own) and self._own not in self.holders.values() and self._own not in self.ids.values()
        wanted = {
            claim: identity
            for identity, doc in self.nodes.items()
            for claim in (*every_cidr(doc), *map(_hex, store_records.every_key(doc)))
        }
        self.past = {
            claim: Past(each.owner, FOREVER) if reset else each
            for claim, each in self.past.items()
            if (reset or each.until > now)
            and wanted.get(claim) == each.owner
            and claim not in self.slots
            and claim not in self.holders
        }

    # --- what follows from it ----------------------------------------------------------------------------------------

    def overdue(self, now: float, grace: float) -> list[NodeDoc]:
        """Who has been lost for at least `grace` seconds."""
        over = [identity for identity, since in self.lost.items() if now - since >= grace]
        return [self.nodes[identity] for identity in over if identity in self.nodes]

    def drop(self, identity: str) -> None:
        """Forget a node that is not heard of."""
        self.lost.pop(identity, None)
        self._bytes -= self._sizes.pop(identity, 0)
        self.nodes.pop(identity, None)

    def owner_of(self, cidr: str) -> str | None:
        """Who has claimed a slot; None for nobody."""
        slot = self.slots.get(cidr)
        if slot is not None:
            return slot.owner
        past = self.past.get(cidr)
        return past.owner if past is not None else None

    def holder_of(self, public_key: str) -> str | None:
        """Who has claimed a WireGuard key; None for nobody."""
        raw = _hex(public_key)
        past = self.past.get(raw)
        return self.holders.get(raw) or (past.owner if past is not None else None)

    def foreign(self, own: str) -> list[Network]:
        """The slots that other nodes hold."""
        held = {cidr for cidr, slot in self.slots.items() if slot.owner != own}
        lost = {cidr for cidr, each in self.past.items() if each.owner != own and "/" in cidr}
        return [network_of(cidr) for cidr in sorted(held | lost)]

    def knows(self, own: str, node_id: int, public_key: str, slices: Iterable[str]) -> bool:
        """Whether the claims that make this node a member are all there."""
        return (
            self.ids.get(node_id) == own
            and self.holders.get(_hex(public_key)) == own
            and all(cidr in self.slots and self.slots[cidr].owner == own for cidr in slices)
        )

    def refused(self, most: int) -> dict[str, str]:
        """The records that are not used, by key: at most so many sentences, the last of which counts the rest."""
        if len(self.faults) + self.more_faults <= most:
            return dict(self.faults)
        shown = dict(sorted(self.faults.items())[: most - 1])
        rest = len(self.faults) + self.more_faults - len(shown)
        return shown | {"": f"{rest} more records are not used, such as {_some(self.faults.keys() - shown.keys())}"}

    def name_of(self, identity: str | None) -> str:
        """A node, for a sentence."""
        doc = self.nodes.get(identity or "")
        return f"{doc.name} ({identity})" if doc is not None else (identity or "nobody")


def _hex(public_key: str) -> str:
    return keys.decode(public_key).hex()


def _some(names: Collection[str]) -> str:
    return printable(min(names, default="")[:100])
