"""Whether a record is its node's own: signed by the key that belongs to the identity, and not an older one again.

Anyone with the store's credentials can write any record. Only the node itself can make its signature
(cni/daemon/cluster/signing.py): a record whose signature is wrong, or is another key's, is not believed, and the record
before it stays in force.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni.daemon.cluster import signing
from cni.daemon.cluster.store_records import NodeDocument, SignedSlot

MOST_VERIFIED = 500_000  # records that are remembered as verified: reading everything anew costs no signature again


TOLD = 300.0  # seconds for which a record of another's making is told after it was put right
MOST_TOLD = 100  # such records that are told at once
FOREVER = float("inf")


class NotItsOwn(ValueError):
    """The record was not written by the node that it is about."""


class Trust:
    """Of one node in one cluster. One thread at a time."""

    def __init__(self, unsigned: bool, own: str, own_signer: str) -> None:
        """`unsigned`: records of versions that do not sign are accepted; `own`, `own_signer`: this node's identity and
        public key in hexadecimal digits."""
        self._unsigned, self._own, self._own_signer = unsigned, own, own_signer
        self._verified: set[int] = set()

    def check_node(self, key: str, value: bytes, doc: NodeDocument, known: NodeDocument | None) -> str:
        """Who signed the document at `key`, "" for nobody. `known`: what was last believed of that node. Raises
        NotItsOwn, ValueError."""
        expected = self._own_signer if doc.identity == self._own else (known.signer if known is not None else "")
        if doc.identity == self._own and not signing.is_signed(value):
            raise ValueError("it is not signed: an earlier version of this node has published it")
        signer = self._check(key, value, doc.identity, doc.signer, expected)
        if signer and known is not None and known.signer == signer and doc.sequence < known.sequence:
            raise NotItsOwn(f"an older one of the node's again (sequence {doc.sequence} after {known.sequence})")
        return signer

    def check_slot(self, key: str, value: bytes, slot: SignedSlot, known: NodeDocument | None) -> None:
        """`known`: what was last believed of the slot's owner. Raises NotItsOwn, ValueError."""
        own = self._own_signer if slot.owner == self._own else ""
        expected = own or (known.signer if known is not None else "")
        # A claim from before its holder signed stays until the holder signs it.
        self._check(key, value, slot.owner, slot.signer, expected if signing.is_signed(value) else "")

    def _check(self, key: str, value: bytes, identity: str, signer: str, expected: str) -> str:
        if not signing.is_signed(value):
            if signing.must_sign(identity):
                raise NotItsOwn("it is not signed, and its identity is one that signs")
            if expected:
                raise NotItsOwn("it is not signed, and the node is known to sign")
            if not self._unsigned:
                raise ValueError("it is not signed (cluster.unsigned_nodes: refuse)")
            return ""
        if not signing.may_sign(identity, signer) or (expected and signer != expected):
            raise NotItsOwn("it is signed by another key than the node's")
        mark = hash((key, value, signer))
        if mark not in self._verified:
            if not signing.verify(key, value, signer):
                raise NotItsOwn("its signature is not right")
            if len(self._verified) >= MOST_VERIFIED:
                self._verified.clear()
            self._verified.add(mark)
        return signer


@dataclass(frozen=True, slots=True)
class _Told:
    text: str
    until: float | None  # None: put right since the last `settle`


class Strangers:
    """The records that were not written by the node that they are about: told while they stand, and some time after."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}

    def note(self, key: str, text: str) -> None:
        """Such a record stands at `key`."""
        if key in self._told or len(self._told) < MOST_TOLD:
            self._told[key] = _Told(text, FOREVER)

    def is_right(self, key: str) -> None:
        """There is none at `key` any more."""
        told = self._told.get(key)
        if told is not None and told.until == FOREVER:
            self._told[key] = _Told(told.text, None)

    def look_again(self) -> None:
        """Everything is read anew: whatever stands still is noted again."""
        for key in list(self._told):
            self.is_right(key)

    def settle(self, now: float) -> None:
        """`now`: seconds on a clock that nobody sets."""
        timed = {key: _Told(t.text, now + TOLD if t.until is None else t.until) for key, t in self._told.items()}
        self._told = {key: told for key, told in timed.items() if told.until is not None and told.until > now}

    def texts(self) -> dict[str, str]:
        """A sentence for each, by key."""
        return {key: told.text for key, told in self._told.items()}
