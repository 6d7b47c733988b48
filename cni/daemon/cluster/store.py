"""The cluster's store as the code above it sees it: records, conditions, transactions, errors, and the interface.

Two stores have this interface: etcd, and the API server of Kubernetes. A condition or a step names one record.
Revisions are numbers that grow with every change of the store. A lease is a number, and the records that are written
under it are deleted when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

NOT_FOUND, REFUSED, OUT_OF_RANGE, UNAUTHENTICATED = 5, 7, 11, 16  # gRPC's codes, which etcd uses
PATIENCE = 5.0  # seconds: the time-out of one exchange
HASTE = 2.0  # seconds: the same while another endpoint is left to try
QUIET = 20.0  # seconds of silence after which a stream is ended: that is cheap, and bounds what a proxy can hide
LARGEST = 256 << 10  # bytes: a larger value is left out; etcd accepts 1.5 MB


class StoreError(Exception):
    """The store refused a request; `code` is gRPC's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Unreachable(StoreError):
    """No endpoint answers, or none has a leader: whether the request was carried out is unknown."""

    def __init__(self, text: str) -> None:
        super().__init__(14, text)


class WrongServer(Unreachable):
    """What answers at the endpoint is not the store."""


class Unreadable(WrongServer, ValueError):
    """The answer does not have the form of an answer of the store."""


class TooLarge(StoreError):
    """The answer is larger than the limit."""


class Compacted(StoreError):
    """The changes since the requested revision are no longer available: all keys must be read again."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key, its value, the revisions that created and last changed it, and its lease (0: none).

    In a key that is not UTF-8, each invalid byte is a lone surrogate, so that `raw` is what the store has. `cut`: the
    value is larger than `LARGEST` and is left out.
    """

    key: str
    value: bytes
    created: int = 0
    changed: int = 0
    lease: int = 0
    cut: bool = False

    @property
    def raw(self) -> bytes:
        """The key's bytes."""
        return self.key.encode(errors="surrogateescape")


@dataclass(frozen=True, slots=True)
class Event:
    """A key was written, or deleted (`gone`)."""

    item: KeyValue
    gone: bool


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction: the key's `what` equals `value`. A missing key has 0."""

    key: str
    what: Literal["CREATE", "MOD", "LEASE", "VALUE"]
    value: int | bytes


@dataclass(frozen=True, slots=True)
class Put:
    """Write the key, for the life of the lease (0: without a lease)."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the key."""

    key: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read the key."""

    key: str


Step = Put | Delete | Get


class ClusterStore(Protocol):
    """The cluster's store. Any thread may use it."""

    @property
    def name(self) -> str:
        """What the store is, in a sentence."""

    @property
    def local_address(self) -> str:
        """This node's address towards the store; "" before the first connection."""

    @property
    def endpoint(self) -> str:
        """The endpoint that is asked first."""

    @property
    def newest(self) -> int:
        """The highest revision that an answer has named; 0 before the first, and where answers name none."""

    def read(self, prefix: str, revision: int = 0) -> tuple[list[KeyValue], int]:
        """Every record below the prefix as of one revision (0: the present one), and that revision. Raises
        StoreError."""

    def at(self, key: str, revision: int) -> KeyValue | None:
        """The record at the key as of the revision; None if there was none. Raises StoreError, with code OUT_OF_RANGE
        if the store does not have that revision."""

    def transact(
        self, when: Sequence[Compare], then: Sequence[Step], other: Sequence[Step] = ()
    ) -> tuple[bool, list[KeyValue]]:
        """Do `then` if every condition holds, else `other`. Returns whether the conditions held, and what the `Get`s
        found. Raises StoreError."""

    def grant(self, seconds: int) -> int:
        """A new lease with a life of `seconds`. Raises StoreError."""

    def keep_alive(self, lease: int) -> bool:
        """Renew the lease for its full life; False if it has ended. Raises StoreError."""

    def revoke(self, lease: int) -> None:
        """End the lease and delete its records. Errors are ignored: a lease that is not revoked expires."""

    def watch(self, prefix: str, revision: int) -> Iterator[tuple[int, list[Event]]]:
        """The changes below the prefix from `revision` on, as (revision, events); an item without events reports
        progress. Ends after a time of silence. Raises Compacted, StoreError."""

    def check(self, key: str) -> None:
        """Check that the server of the running watch answers, and end the watch if it does not. Called every two
        seconds."""
