"""The claims in the cluster's store as one node keeps them: ids, slots and keys, and which of two records counts.

A claim is made by creating a record, and ends when its holder, or an operator for a departed holder, deletes it. So a
record that changes its owner without having been deleted was overwritten by another than its holder, and one that is
deleted while its holder signs that it has the claim was not given back: in both cases the claim goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cni.daemon.cluster.store_records import NodeDocument, Slot, claims_of
from cni.daemon.cluster.trust import NotItsOwn

LINGERS = 2.0  # seconds for which a deleted claim counts: the deletions of a whole store come in several answers
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Past:
    """A claim that is no more in the store, and until when it counts: seconds on the view's clock."""

    owner: str
    until: float


@dataclass(frozen=True, slots=True)
class Contested:
    """A record that is not believed, for another node has the claim: who, and what stands in the store."""

    holder: str
    value: bytes
    created: int


class ClaimBook:
    """Of one store. Claims are named by their CIDR, their key in hexadecimal digits, or `#` and their node id."""

    def __init__(
        self,
        own: str,
        grace: float,
        nodes: Mapping[str, NodeDocument],
        lost: Mapping[str, float],
        published: Mapping[str, int],
    ) -> None:
        """`own`: this node's identity; `grace`: seconds for which a claim counts that was not there at a load; `nodes`,
        `lost`, `published`: the documents of the nodes, who is not heard of, and the store's revision since which each
        document stands there without a break, kept by the view."""
        self._own, self._grace, self._nodes, self._lost, self._published = own, grace, nodes, lost, published
        self.slots: dict[str, Slot] = {}
        self.ids: dict[int, str] = {}
        self.holders: dict[str, str] = {}  # of keys
        self.past: dict[str, Past] = {}
        self.contested: dict[str, Contested] = {}
        self._created: dict[str, int] = {}  # the store's revision at which each claim was made
        self._before: tuple[dict[str, str], dict[str, Slot], dict[str, int]] = ({}, {}, {})

    def owner(self, claim: str) -> str | None:
        """Who has claimed it; None for nobody."""
        now = self._stands(claim)
        if now is not None:
            return now
        past = self.past.get(claim)
        return past.owner if past is not None else None

    def _stands(self, claim: str) -> str | None:
        if claim.startswith("#"):
            return self.ids.get(_number(claim))
        slot = self.slots.get(claim)
        return slot.owner if slot is not None else self.holders.get(claim)

    def owners(self) -> dict[str, str]:
        """Every claim that stands, with its owner."""
        slots = {cidr: slot.owner for cidr, slot in self.slots.items()}
        return slots | self.holders | {f"#{number}": owner for number, owner in self.ids.items()}

    def everyone(self) -> set[str]:
        """Who has any claim that counts."""
        return {*self.owners().values(), *(each.owner for each in self.past.values())}

    # --- reading -----------------------------------------------------------------------------------------------------

    def begin(self, now: float, put_back: bool) -> None:
        """Everything is read anew. `put_back`: the store is at an earlier time than it was, or another one."""
        owners = self.owners()
        past = {claim: Past(owner, now + self._grace) for claim, owner in owners.items() if claim[0] != "#"}
        self.past = {claim: Past(each.owner, now + self._grace) for claim, each in self.past.items()} | past
        self._before = ({}, {}, {}) if put_back else (owners, self.slots, self._created)
        self.slots, self.ids, self.holders, self.contested, self._created = {}, {}, {}, {}, {}

    def end(self) -> None:
        """Everything has been read."""
        self._before = ({}, {}, {})

    def put(self, claim: str, owner: str, use: str, value: bytes, created: int) -> None:
        """The record says that `owner` has the claim. Raises NotItsOwn where another has it."""
        holder = self._holder(claim, created)
        if holder is not None and holder != owner:
            self.contested[claim] = Contested(holder, value, created)
            if self._stands(claim) is None and claim in self._before[0]:
                before = self._before[1].get(claim)
                self._set(claim, holder, before.use if before is not None else "", self._before[2].get(claim, 0))
            raise NotItsOwn(f"it says that {owner} has what {holder} has claimed")
        self._set(claim, owner, use, created)
        self.contested.pop(claim, None)

    def _holder(self, claim: str, created: int) -> str | None:
        """Who has the claim, so that no other can by a record that was made at that revision."""
        stands, made = self._stands(claim), self._created.get(claim)
        if stands is None:
            stands, made = self._before[0].get(claim), self._before[2].get(claim)
        if stands is not None and made == created:
            return stands  # overwritten: nobody who claims does that
        owner = stands or (self.past[claim].owner if claim in self.past else None)
        if owner is None or not self._says_so(claim, owner):
            return None
        # An operator releases a node whose document is not there: one that came back later says what it had before.
        return owner if self._published.get(owner, 0) <= created else None

    def _says_so(self, claim: str, owner: str) -> bool:
        """Whether a node that is heard of signs that it has the claim."""
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
        """There is no such record any more."""
        self.contested.pop(claim, None)
        owner = self._stands(claim)
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
        """Decide which lost claims count on; returns the contested ones whose holder has given them up.

        Where this node's own claims are missing too, the store was emptied or put back, and lost claims count until
        they are made again. Else they were given back, or an operator released them, unless their holder signs that it
        has them.
        """
        if self.past:
            reset = bool(self._own) and self._own not in self.holders.values() and self._own not in self.ids.values()
            wanted = {claim: owner for owner, doc in self._nodes.items() for claim in claims_of(doc)}
            self.past = {
                claim: Past(each.owner, FOREVER) if reset else each
                for claim, each in self.past.items()
                if wanted.get(claim) == each.owner
                and self._stands(claim) is None
                and (reset or each.until > now or self._says_so(claim, each.owner))
            }
        freed = [(claim, each) for claim, each in self.contested.items() if not self._is_held(claim, each.holder)]
        for claim, _ in freed:
            self.gone(claim, now)
            self.past.pop(claim, None)
        return freed

    def _is_held(self, claim: str, holder: str) -> bool:
        doc = self._nodes.get(holder)
        return doc is not None and (claim == f"#{doc.node_id}" or claim in claims_of(doc))

    def restore(self, docs: Iterable[NodeDocument]) -> None:
        """The claims that an earlier daemon believed."""
        for doc in docs:
            self.past.update(dict.fromkeys(claims_of(doc), Past(doc.identity, FOREVER)))

    def __len__(self) -> int:
        """How many claims stand."""
        return len(self.slots) + len(self.ids) + len(self.holders)


def _number(claim: str) -> int:
    """The node id of a claim; -1 for what is none."""
    digits = claim[1:]
    return int(digits) if digits.isascii() and digits.isdigit() and digits[0] != "0" and len(digits) <= 20 else -1
