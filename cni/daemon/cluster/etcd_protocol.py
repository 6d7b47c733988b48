"""What is said to etcd v3 and what it says, as values and as the JSON of its gateway: values in, values out."""

from __future__ import annotations

import base64
import functools
import http
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

NOT_FOUND, UNAUTHENTICATED = 5, 16  # gRPC codes
LARGEST = 256 << 10  # bytes of a value that is kept; etcd takes 1.5 MB for one

P = ParamSpec("P")
T = TypeVar("T")


class EtcdError(Exception):
    """etcd refused; `code` is gRPC's."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class Unreachable(EtcdError):
    """No endpoint answers, or none has a leader: nothing is known to have been done, or not to have been."""

    def __init__(self, words: str) -> None:
        super().__init__(14, words)


class Unreadable(Unreachable, ValueError):
    """What answers is no etcd, or not in its right mind."""


class TooLarge(EtcdError):
    """The answer is larger than what is read of one."""


class Compacted(EtcdError):
    """What happened since the asked revision is no longer known: everything must be read again."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key, its value, the revision that made it (`created`) and last changed it, its lease (0: none).

    A key that is not UTF-8 has each odd byte as a lone surrogate, so that `raw` is what etcd has. `cut`: the value was
    larger than `LARGEST` and is left out.
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
    """A key was put, or is gone."""

    item: KeyValue
    gone: bool


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition: what the key's `what` must be for the transaction to go one way. A key that is not there has 0."""

    key: str
    what: Literal["CREATE", "MOD", "LEASE", "VALUE"]
    value: int | bytes


@dataclass(frozen=True, slots=True)
class Put:
    """Give the key this value, for as long as the lease lives (0: for good)."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """No such key."""

    key: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read the key."""

    key: str


Step = Put | Delete | Get


def _answer(read: Callable[P, T]) -> Callable[P, T]:
    """Decorates what reads an answer: one that has not the shape of etcd's is Unreadable, whatever is wrong with it."""

    @functools.wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise Unreadable(f"not an answer of etcd: {type(error).__name__}: {error}"[:200]) from error

    return reading


@_answer
def read_answer(status: int, body: bytes) -> dict[str, Any]:
    """What an exchange brought. Raises EtcdError."""
    said = json.loads(body)
    if not isinstance(said, dict):
        raise TypeError("it is no object")
    if status == http.HTTPStatus.OK and "error" not in said:
        return said
    error = said.get("error", said)
    if isinstance(error, dict):
        error = error.get("message", str(error))
    code = int(said.get("code", 0) or 0)
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE or code in (4, 14):
        raise Unreachable(str(error))  # no leader, or too slow for its own time-out
    if "invalid auth token" in str(error) or "auth: revision" in str(error) or status == http.HTTPStatus.UNAUTHORIZED:
        code = UNAUTHENTICATED
    raise EtcdError(code, str(error))


@_answer
def read_watch(line: bytes) -> tuple[int, list[Event]]:
    """A line of a watch: the revision, and what happened. Raises Compacted, EtcdError."""
    said = json.loads(line)
    if "error" in said:
        error = said["error"]
        raise EtcdError(int(error.get("grpc_code", error.get("code", 0)) or 0), str(error.get("message", error)))
    result = said["result"]
    if int(result.get("compact_revision", 0) or 0):
        raise Compacted(11, f"compacted at revision {result['compact_revision']}")
    if result.get("canceled"):
        raise EtcdError(0, f"etcd ended the watch: {result.get('cancel_reason', 'no reason given')}")
    events = [Event(read_item(each["kv"]), each.get("type") == "DELETE") for each in result.get("events", ())]
    return int(result["header"]["revision"]), events


@_answer
def read_page(said: dict[str, Any]) -> tuple[list[KeyValue], int, bool]:
    """One page of a range: its keys, the revision, whether there are more. Raises Unreadable."""
    return [read_item(each) for each in said.get("kvs", ())], int(said["header"]["revision"]), bool(said.get("more"))


@_answer
def read_transaction(said: dict[str, Any]) -> tuple[bool, list[KeyValue]]:
    """Whether the conditions held, and what the `Get`s found. Raises Unreadable."""
    done = said.get("responses", ())
    found = [read_item(kv) for each in done for kv in each.get("response_range", {}).get("kvs", ())]
    return bool(said.get("succeeded")), found


@_answer
def read_lease(said: dict[str, Any]) -> tuple[int, int]:
    """A lease's number, and for how many seconds it lives yet; etcd leaves a zero out. Raises Unreadable."""
    said = said.get("result", said)
    return int(said["ID"]), int(said.get("TTL", 0))


@_answer
def read_token(said: dict[str, Any]) -> str:
    """The token of a log-in, to be said as it is in a header. Raises Unreadable."""
    token = said["token"]
    if not isinstance(token, str) or not token.isprintable() or not token.isascii():
        raise ValueError("the token is no plain text")
    return token


def read_item(raw: dict[str, Any]) -> KeyValue:
    """A key as an answer has it."""
    cut = len(raw.get("value", "")) > (LARGEST + 2) // 3 * 4
    return KeyValue(
        base64.b64decode(raw["key"]).decode(errors="surrogateescape"),
        b"" if cut else base64.b64decode(raw.get("value", "")),
        int(raw.get("create_revision", 0)),
        int(raw.get("mod_revision", 0)),
        int(raw.get("lease", 0)),
        cut,
    )


def compare(each: Compare) -> dict[str, Any]:
    """A condition as a transaction has it."""
    field = {"CREATE": "create_revision", "MOD": "mod_revision", "LEASE": "lease", "VALUE": "value"}[each.what]
    value = b64(each.value) if isinstance(each.value, bytes) else str(each.value)
    return {"key": b64(each.key.encode()), "target": each.what, "result": "EQUAL", field: value}


def step(each: Step) -> dict[str, Any]:
    """A step as a transaction has it."""
    key = b64(each.key.encode())
    if isinstance(each, Put):
        return {"request_put": {"key": key, "value": b64(each.value), "lease": str(each.lease)}}
    if isinstance(each, Delete):
        return {"request_delete_range": {"key": key}}
    return {"request_range": {"key": key}}


def b64(data: bytes) -> str:
    """Bytes as the gateway has them."""
    return base64.b64encode(data).decode()


def after(prefix: bytes) -> bytes:
    """The first key that is not below the prefix."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
