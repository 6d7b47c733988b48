"""Checks that a record was written by its node: it is signed by the identity's key and is no replay of an older record.

Any holder of the store's credentials can write any record, but only the node itself can sign
(cni/daemon/model/signing.py). A record with a wrong signature, or another key's, is not used, and the record before
it stays in force.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni.daemon.model import signing
from cni.daemon.model.cluster_records import NodeDocument, SignedSlot

MOST_VERIFIED = 500_000  # records that are remembered as verified, so that a full read verifies nothing twice
REPORT_TIME = 300.0  # seconds for which a forged record is reported after it was corrected
MOST_REPORTED = 100  # forged records that are reported at the same time
FOREVER = float("inf")


class NotItsOwn(ValueError):
    """The record was not written by the node that it describes."""


class Outdated(NotItsOwn):
    """The record is an earlier state of one that is known: another node has written it again, or the store went
    back."""


class Trust:
    """The checks of one node in one cluster. For one thread at a time."""

    def __init__(self, unsigned: bool, own: str, own_signer: str) -> None:
        """`unsigned`: unsigned records of earlier versions are accepted; `own`: this node's identity; `own_signer`: its
        public key in hexadecimal digits."""
        self._unsigned, self._own, self._own_signer = unsigned, own, own_signer
        self._verified: set[int] = set()

    def check_node(self, key: str, value: bytes, doc: NodeDocument, earlier: NodeDocument | None) -> str:
        """The key that signed the document at `key`; "" if it is unsigned and accepted. `earlier`: the document last
        accepted of that node. Raises NotItsOwn, ValueError."""
        expected = self._own_signer if doc.identity == self._own else (earlier.signer if earlier is not None else "")
        if doc.identity == self._own and not signing.is_signed(value):
            raise ValueError("it is not signed: an earlier version of this node has published it")
        signer = self._check(key, value, doc.identity, doc.signer, expected)
        if signer and earlier is not None and earlier.signer == signer and doc.sequence < earlier.sequence:
            raise Outdated(f"an older one of the node's again (sequence {doc.sequence} after {earlier.sequence})")
        return signer

    def check_slot(self, key: str, value: bytes, slot: SignedSlot, earlier: NodeDocument | None) -> None:
        """Check the slot's record at `key`. `earlier`: the document last accepted of the slot's owner.

        Raises NotItsOwn, ValueError.
        """
        own = self._own_signer if slot.owner == self._own else ""
        expected = own or (earlier.signer if earlier is not None else "")
        # An unsigned claim from before its holder signed counts until the holder signs it.
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
class _Reported:
    text: str
    until: float | None  # None: corrected since the last `settle`


class Strangers:
    """The records that were not written by the node that they describe: reported while they exist, and for
    `REPORT_TIME` seconds after."""

    def __init__(self) -> None:
        self._reported: dict[str, _Reported] = {}

    def note(self, key: str, text: str) -> None:
        """Report the record at `key`."""
        if key in self._reported or len(self._reported) < MOST_REPORTED:
            self._reported[key] = _Reported(text, FOREVER)

    def is_right(self, key: str) -> None:
        """Note that the record at `key` was corrected or deleted."""
        reported = self._reported.get(key)
        if reported is not None and reported.until == FOREVER:
            self._reported[key] = _Reported(reported.text, None)

    def look_again(self) -> None:
        """Prepare for a full read, which notes every record again that still exists."""
        for key in list(self._reported):
            self.is_right(key)

    def settle(self, now: float) -> None:
        """Start the report time of records corrected since the last call, and drop the reports whose time is over.
        `now`: seconds on a monotonic clock."""
        timed = {
            key: _Reported(t.text, now + REPORT_TIME if t.until is None else t.until)
            for key, t in self._reported.items()
        }
        self._reported = {
            key: report for key, report in timed.items() if report.until is not None and report.until > now
        }

    def texts(self) -> dict[str, str]:
        """A sentence for each, by key."""
        return {key: reported.text for key, reported in self._reported.items()}
