"""The claims of the cluster's store (ids, slots and keys) as one node holds them, and which of two records counts.

A claim is made by creating a record. It ends when its holder deletes the record, or an operator does so for a departed
holder. A record that changes its owner without having been deleted was overwritten by a node other than the holder. A
record that is deleted while its holder's signed document still lists the claim was not released. In both cases the
claim stays in force.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cni.daemon.cluster.trust import Outdated
from cni.daemon.model.cluster_records import NodeDocument, Slot, claims_of

LINGERS = 2.0  # seconds for which a deleted claim counts: the deletion of a whole store arrives in several answers
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Past:
    """A claim that is no longer in the store, and until when it counts: seconds on the view's clock. `back`: the store
    went back and has lost it, so it counts until it is made again."""

    owner: str
    until: float
    back: bool = False


@dataclass(frozen=True, slots=True)
class Contested:
    """A record that is not used because another node, `holder`, has the claim. `value`: of the record in the store;
    `created`: its creation revision."""

    holder: str
    value: bytes
    created: int


class ClaimBook:
    """The claims of one store, named by a CIDR, a key in hexadecimal digits, or `#` and a node id."""

    def __init__(
        self,
        own: str,
        grace: float,
        nodes: Mapping[str, NodeDocument],
        lost: Mapping[str, float],
        published: Mapping[str, int],
    ) -> None:
        """`own`: this node's identity; `grace`: seconds for which a claim counts that was missing in a full read.
        `nodes`, `lost`, `published` are maintained by the view: the nodes' documents, the nodes whose document has
        disappeared, and the store's revision since which each document has existed without a break."""
        self._own, self._grace, self._nodes, self._lost, self._published = own, grace, nodes, lost, published
        self.slots: dict[str, Slot] = {}
        self.ids: dict[int, str] = {}
        self.holders: dict[str, str] = {}  # of keys
        self.past: dict[str, Past] = {}
        self.contested: dict[str, Contested] = {}
        self._created: dict[str, int] = {}  # the store's revision at which each claim was made
        self._before: tuple[dict[str, str], dict[str, Slot], dict[str, int]] = ({}, {}, {})
        self._went_back = False  # during a full read of a store that went back

    def owner(self, claim: str) -> str | None:
        """The identity that holds the claim; None if it is free."""
        recorded = self._recorded_owner(claim)
        if recorded is not None:
            return recorded
        past = self.past.get(claim)
        return past.owner if past is not None else None

    def _recorded_owner(self, claim: str) -> str | None:
        if claim.startswith("#"):
            return self.ids.get(_number(claim))
        slot = self.slots.get(claim)
        return slot.owner if slot is not None else self.holders.get(claim)

    def owners(self) -> dict[str, str]:
        """Every recorded claim, with its owner."""
        slots = {cidr: slot.owner for cidr, slot in self.slots.items()}
        return slots | self.holders | {f"#{number}": owner for number, owner in self.ids.items()}

    def everyone(self) -> set[str]:
        """The identities that hold any claim in force."""
        return {*self.owners().values(), *(former.owner for former in self.past.values())}

    # --- reading -----------------------------------------------------------------------------------------------------

    def begin(self, now: float, put_back: bool) -> None:
        """Prepare for a full read. `put_back`: the store was restored to an earlier revision, or is another store."""
        owners = self.owners()
        fresh = Past("", FOREVER, back=True) if put_back else Past("", now + self._grace)
        past = {claim: replace(fresh, owner=owner) for claim, owner in owners.items() if claim[0] != "#"}
        earlier = {
            claim: former if former.back else replace(fresh, owner=former.owner) for claim, former in self.past.items()
        }
        self.past, self._went_back = earlier | past, put_back
        self._before = ({}, {}, {}) if put_back else (owners, self.slots, self._created)
        self.slots, self.ids, self.holders, self.contested, self._created = {}, {}, {}, {}, {}

    def end(self) -> None:
        """Finish a full read: forget the claims from before it."""
        self._before, self._went_back = ({}, {}, {}), False

    def put(self, claim: str, owner: str, use: str, value: bytes, created: int) -> None:
        """Take in a record that gives the claim to `owner`. Raises Outdated if another node holds it."""
        holder = self._holder(claim, owner, created)
        if holder is not None and holder != owner:
            self.contested[claim] = Contested(holder, value, created)
            if self._recorded_owner(claim) is None and claim in self._before[0]:
                before = self._before[1].get(claim)
                self._set(claim, holder, before.use if before is not None else "", self._before[2].get(claim, 0))
            raise Outdated(f"it says that {owner} has what {holder} has claimed")
        self._set(claim, owner, use, created)
        self.contested.pop(claim, None)

    def _holder(self, claim: str, claimant: str, created: int) -> str | None:
        """The node that keeps the claim against a record of `claimant` created at revision `created`; None if the
        record counts."""
        if self._went_back and claim in self.past:
            # The record is of before; the documents that this node has are later ones.
            before = self.past[claim].owner
            return before if self._is_held(claim, before) and not self._is_held(claim, claimant) else None
        recorded, made = self._recorded_owner(claim), self._created.get(claim)
        if recorded is None:
            recorded, made = self._before[0].get(claim), self._before[2].get(claim)
        if recorded is not None and made == created:
            return recorded  # the record was overwritten in place; a claim is only made by creating a record
        owner = recorded or (self.past[claim].owner if claim in self.past else None)
        if owner is None or not self._signs_for(claim, owner):
            return None
        # An operator releases only a node without a document. If that node returns, its document lists its old claims
        # again, but a record that was created before the document counts.
        return owner if self._published.get(owner, 0) <= created else None

    def _signs_for(self, claim: str, owner: str) -> bool:
        """Whether `owner` publishes a signed document that lists the claim."""
        doc, past = self._nodes.get(owner), self.past.get(claim)
        if doc is None or not doc.signer or owner in self._lost or (past is not None and past.until == FOREVER):
            return False
        return self._is_held(claim, owner)

    def _set(self, claim: str, owner: str, use: str, created: int) -> None:
        if claim.startswith("#"):
            self.ids[int(claim[1:])] = owner
        elif "/" in claim:
            self.slots[claim] = Slot(owner, use)
        else:
            self.holders[claim] = owner
        self._created[claim] = created
        self.past.pop(claim, None)

    def gone(self, claim: str, now: float) -> None:
        """Take in the deletion of a record."""
        self.contested.pop(claim, None)
        owner = self._recorded_owner(claim)
        if owner is None:
            return
        self._created.pop(claim, None)
        if claim.startswith("#"):
            self.ids.pop(_number(claim), None)
            return
        self.slots.pop(claim, None)
        self.holders.pop(claim, None)
        self.past[claim] = Past(owner, now + LINGERS)

    # --- deciding ----------------------------------------------------------------------------------------------------

    def settle(self, now: float) -> list[tuple[str, Contested]]:
        """Decide which missing claims stay in force. Returns the contested records whose holder no longer lists the
        claim.

        If this node's own claims are missing too, the store was emptied or restored, and missing claims count until
        they are made again. Otherwise their holder or an operator released them, unless the holder's signed document
        still lists them.
        """
        if self.past:
            reset = bool(self._own) and self._own not in self.holders.values() and self._own not in self.ids.values()
            listed = {claim: owner for owner, doc in self._nodes.items() for claim in claims_of(doc)}
            self.past = {
                claim: replace(former, until=FOREVER) if reset else former
                for claim, former in self.past.items()
                if listed.get(claim) == former.owner
                and self._recorded_owner(claim) is None
                and (reset or former.until > now or self._signs_for(claim, former.owner))
            }
        freed = [
            (claim, contested)
            for claim, contested in self.contested.items()
            if not self._is_held(claim, contested.holder)
        ]
        for claim, _ in freed:
            self.gone(claim, now)
            self.past.pop(claim, None)
        return freed

    def _is_held(self, claim: str, holder: str) -> bool:
        doc = self._nodes.get(holder)
        return doc is not None and (claim == f"#{doc.node_id}" or claim in claims_of(doc))

    def restore(self, docs: Iterable[NodeDocument]) -> None:
        """Load the claims that an earlier daemon used."""
        for doc in docs:
            self.past.update(dict.fromkeys(claims_of(doc), Past(doc.identity, FOREVER)))

    def __len__(self) -> int:
        """The number of recorded claims."""
        return len(self.slots) + len(self.ids) + len(self.holders)


def _number(claim: str) -> int:
    """The node id of a claim `#<id>`; -1 if it is no node id."""
    digits = claim[1:]
    return int(digits) if digits.isascii() and digits.isdigit() and digits[0] != "0" and len(digits) <= 20 else -1
