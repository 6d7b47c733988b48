"""One node's view of the cluster's store: the node documents and the claims.

The records of ids, slots and keys (store_records.py) are claimed by transaction and stay until they are released, so a
node that returns finds its claims. If the store has lost a claim together with this node's own claims, the claim stays
in force until its holder or another node makes it again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import msgspec

from cni.addresses import Network
from cni.daemon.cluster import store_records
from cni.daemon.cluster.claim_table import ClaimBook
from cni.daemon.cluster.store_records import LONGEST_KEY, StoreKeys
from cni.daemon.cluster.trust import NotItsOwn, Outdated, Strangers, Trust
from cni.daemon.model import signing
from cni.daemon.model.cluster_records import SPARE, NodeDocument, Slot, hexadecimal
from cni.daemon.model.wireguard import network_of
from cni.printable import printable

MOST_RECORDS = 400_000  # in the whole view: 10,000 nodes with 36 slots each
MOST_BYTES = 256 << 20  # of node documents in the whole view
MOST_FAULTS = 1000  # refused records that are kept by name; the rest is only counted


Record = tuple[str, bytes | None, int] | tuple[str, bytes]
"""A key, its value (None: larger than the limit), and its creation revision."""


class ClusterView:
    """The records below the base, updated from reads and watch events. `now` is in seconds on a monotonic clock."""

    def __init__(self, base: str, own: str = "", grace: float = 0.0, trust: Trust | None = None) -> None:
        """`own`: this node's identity; `grace`: seconds for which a claim counts that was missing in a `load`;
        `trust`: checks signatures; None accepts every record."""
        self.lock = threading.RLock()
        """Held by a thread while it reads or changes the view together with other threads."""
        self.keys = StoreKeys(base)
        self._own_key, self._trust = self.keys.node(own), trust
        self.nodes: dict[str, NodeDocument] = {}
        self._sizes: dict[str, int] = {}  # bytes of the documents in `nodes`
        self._bytes = 0
        self.own_record = b""  # the record of this node's document in the store
        self.lost: dict[str, float] = {}  # nodes in `nodes` without a document, and since when
        self._published: dict[str, int] = {}  # the store's revision at which each node's document was made
        self.claims = ClaimBook(own, grace, self.nodes, self.lost, self._published)
        self.unsigned: set[str] = set()  # slots whose record is not signed
        self.faults: dict[str, str] = {}
        self.more_faults = 0
        self.strangers = Strangers()
        self._outdated: dict[str, bytes | None] = {}  # records of before the store went back, not written again yet
        self._unreturned: set[str] = set()  # nodes whose document was lost when the store went back

    @property
    def slots(self) -> dict[str, Slot]:
        """The slots, by CIDR."""
        return self.claims.slots

    @property
    def ids(self) -> dict[int, str]:
        """The holder of each node id."""
        return self.claims.ids

    @property
    def holders(self) -> dict[str, str]:
        """The holder of each WireGuard key, by its hexadecimal digits."""
        return self.claims.holders

    def with_slots_alone(self) -> ClusterView:
        """A copy with the slots only, for decisions about slots in another thread."""
        copy = ClusterView(self.keys.base)
        copy.claims.slots.update(self.slots)
        return copy

    # --- what the store says -----------------------------------------------------------------------------------------

    def restore(self, docs: Iterable[NodeDocument]) -> None:
        """Load the documents that an earlier daemon of this node used, and the claims that they list."""
        for doc in docs:
            try:
                store_records.check_node(doc)
            except ValueError:
                continue  # an earlier version accepted more
            self.nodes[doc.identity] = doc
        self.claims.restore(self.nodes.values())

    def load(self, items: Iterable[Record], now: float, again: bool = True) -> None:
        """Take in a full read of the store. A known node without a document counts as lost from now on, not as gone.
        `again`: the store is the one read before, at the same or a later revision; otherwise it went back, and records
        of before are no forgeries."""
        every = [(record[0], record[1], record[2] if len(record) > 2 else 0) for record in items]
        published = {key.rpartition("/")[2] for key, _, _ in every if key.startswith(self.keys.node(""))}
        missing = self.nodes.keys() - published
        if not again:
            self._unreturned |= missing - self.lost.keys()
        for identity in missing:
            self.lost.setdefault(identity, now)
        self.claims.begin(now, not again)
        self.faults, self.more_faults, self.own_record = {}, 0, b""
        self.strangers.look_again()
        for key, value, created in every:
            if not again:
                self._outdated[key] = value
            self.put(key, value, created)
        self.claims.end()
        self.settle(now)

    def put(self, key: str, value: bytes | None, created: int = 0) -> None:
        """Take in a record: its value (None: larger than the limit) and its creation revision. A record that is
        unreadable or not accepted is noted, and the record before it stays in force."""
        kind, _, name = key.removeprefix(self.keys.base).partition("/")
        if kind not in store_records.LARGEST:
            return
        if key == self._own_key:
            self.own_record = value or b""
        try:
            self._put(kind, name, value, created)
        except NotItsOwn as error:
            if isinstance(error, Outdated) and key in self._outdated and self._outdated[key] == value:
                return
            self._outdated.pop(key, None)
            of = self.name_of(name) if kind == "node" else name
            self.strangers.note(key, f"the record {_shown(key)} of {_shown(of)} is not that node's own: {error}")
            return
        except Exception as error:  # noqa: BLE001 - untrusted input: no error in one record stops the reading of others
            self._outdated.pop(key, None)
            self._refuse(key, kind, name, error)
            return
        self._outdated.pop(key, None)
        self.faults.pop(key, None)
        self.strangers.is_right(key)

    def _put(self, kind: str, name: str, value: bytes | None, created: int) -> None:
        if value is None:
            raise ValueError("it is larger than any of ours" if name else "there are more of its kind than are read")
        if len(name) > LONGEST_KEY or not name.isascii():
            raise ValueError("the key is too long, or not ASCII")
        store_records.check_size(kind, value)
        if kind == "node":
            self._put_node(name, value)
            self._published[name] = created
            return
        use = ""
        if kind == "slot":
            claim, slot = store_records.read_slot(name, value)
            owner, use = slot.owner, slot.use
            self.unsigned.discard(claim)
            if self._trust is not None:
                self._trust.check_slot(self.keys.slot(claim), value, slot, self.nodes.get(owner))
        elif kind == "id":
            number, owner = store_records.read_id(name, value)
            claim = f"#{number}"
        else:
            claim, owner = store_records.read_holder(name, value)
        self._check_room(self.claims.owner(claim) is not None)
        self.claims.put(claim, owner, use, value, created)
        if use and not signing.is_signed(value):
            self.unsigned.add(claim)

    def _put_node(self, name: str, value: bytes) -> None:
        doc, earlier = store_records.read_node(name, value), self.nodes.get(name)
        signer = self._trust.check_node(self.keys.node(name), value, doc, earlier) if self._trust is not None else ""
        self._check_room(earlier is not None)
        total = self._bytes - self._sizes.get(name, 0) + len(value)
        if total > MOST_BYTES:
            raise ValueError(f"the documents of all nodes have more than {MOST_BYTES} bytes")
        self.nodes[name] = doc if doc.signer == signer else msgspec.structs.replace(doc, signer=signer)
        self._sizes[name], self._bytes = len(value), total
        self.lost.pop(name, None)
        self._unreturned.discard(name)

    def _check_room(self, is_known: bool) -> None:
        """Raises ValueError if the view is full and this record is a new one."""
        if not is_known and len(self.nodes) + len(self.claims) >= MOST_RECORDS:
            raise ValueError(f"there are more than {MOST_RECORDS} records")

    def _refuse(self, key: str, kind: str, name: str, error: Exception) -> None:
        if key not in self.faults and len(self.faults) >= MOST_FAULTS:
            self.more_faults += 1
            return
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        document = self.nodes.get(name) if kind == "node" else None
        of = f" of the node {document.name}" if document is not None else ""
        self.faults[key] = printable(f"the record {_shown(key)}{of} is not used: {reason}")

    def gone(self, key: str, now: float) -> None:
        """Take in the deletion of a key."""
        kind, _, name = key.removeprefix(self.keys.base).partition("/")
        self.faults.pop(key, None)
        self._outdated.pop(key, None)
        self.strangers.is_right(key)
        if key == self._own_key:
            self.own_record = b""
        match kind:
            case "node":
                if name in self.nodes:
                    self.lost.setdefault(name, now)
            case "slot":
                self.claims.gone(name.replace("_", "/"), now)
            case "id":
                self.claims.gone(f"#{name}", now)
            case "key":
                self.claims.gone(name, now)

    def settle(self, now: float) -> None:
        """Decide which missing claims stay in force: after a `load`, after `put` and `gone`, and periodically."""
        for claim, contested in self.claims.settle(now):
            self.put(self.key_of(claim), contested.value, contested.created)
        for identity in self.lost.keys() - self.claims.everyone() if self.lost else ():
            self.drop(identity)  # an operator has released its claims
        self.strangers.settle(now)

    def is_waiting(self) -> bool:
        """Whether the view can change with time alone, without a change in the store."""
        return bool(
            self.lost or self.claims.past or self.claims.contested or self.strangers.texts() or self.is_behind()
        )

    def is_behind(self) -> bool:
        """Whether the store went back, and a document or a claim that this node knows is not written again yet."""
        return bool(self._outdated or self._unreturned or any(former.back for former in self.claims.past.values()))

    # --- what follows from it ----------------------------------------------------------------------------------------

    def overdue(self, now: float, grace: float) -> list[NodeDocument]:
        """The nodes that have been lost for at least `grace` seconds."""
        over = [identity for identity, since in self.lost.items() if now - since >= grace]
        return [self.nodes[identity] for identity in over if identity in self.nodes]

    def drop(self, identity: str) -> None:
        """Remove a node's document."""
        self.lost.pop(identity, None)
        self._unreturned.discard(identity)
        self._published.pop(identity, None)
        self._bytes -= self._sizes.pop(identity, 0)
        self.nodes.pop(identity, None)

    def owner_of(self, cidr: str) -> str | None:
        """The identity that has claimed a slot; None if it is free."""
        return self.claims.owner(cidr)

    def holder_of(self, public_key: str) -> str | None:
        """The identity that has claimed a WireGuard key; None if it is not claimed."""
        return self.claims.owner(hexadecimal(public_key))

    def foreign(self, own: str) -> list[Network]:
        """The slots that other nodes hold."""
        claimed = {cidr for cidr, slot in self.slots.items() if slot.owner != own}
        lost = {cidr for cidr, former in self.claims.past.items() if former.owner != own and "/" in cidr}
        return [network_of(cidr) for cidr in sorted(claimed | lost)]

    def overwritten(self, own: str) -> list[tuple[str, str, str, bytes]]:
        """The claims of this node that were overwritten: claim, key in the store, use of a slot, and the record that is
        there instead."""
        mine = [(claim, contested) for claim, contested in self.claims.contested.items() if contested.holder == own]
        return [
            (claim, self.key_of(claim), self.slots[claim].use if claim in self.slots else SPARE, contested.value)
            for claim, contested in mine
        ]

    def knows(self, own: str, node_id: int, public_key: str, slices: Iterable[str]) -> bool:
        """Whether the store has all the claims that make this node a member."""
        return (
            self.ids.get(node_id) == own
            and self.holders.get(hexadecimal(public_key)) == own
            and all(cidr in self.slots and self.slots[cidr].owner == own for cidr in slices)
        )

    def refused(self, most: int) -> dict[str, str]:
        """A sentence for each record that is not used, by key: at most `most`, the last of which counts the rest."""
        if len(self.faults) + self.more_faults <= most:
            return dict(self.faults)
        shown = dict(sorted(self.faults.items())[: most - 1])
        rest = len(self.faults) + self.more_faults - len(shown)
        return shown | {
            "": f"{rest} more records are not used, such as {_shown(min(self.faults.keys() - shown.keys()))}"
        }

    def key_of(self, claim: str) -> str:
        """The key of a claim in the store."""
        if claim.startswith("#"):
            return self.keys.id(int(claim[1:]))
        return self.keys.slot(claim) if "/" in claim else self.keys.named_key(claim)

    def name_of(self, identity: str | None) -> str:
        """A node's name and identity, for a sentence."""
        doc = self.nodes.get(identity or "")
        return f"{doc.name} ({identity})" if doc is not None else (identity or "no node")


def _shown(name: str) -> str:
    """An untrusted key or identity in printable form, for a sentence."""
    return printable(name[:128])
