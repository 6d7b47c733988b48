"""Requests to etcd v3 and its answers, as values and as the JSON of its gateway. Pure."""

from __future__ import annotations

import base64
import functools
import http
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

NOT_FOUND, OUT_OF_RANGE, UNAUTHENTICATED = 5, 11, 16  # gRPC codes
LARGEST = 256 << 10  # bytes: a larger value is left out; etcd accepts 1.5 MB

P = ParamSpec("P")
T = TypeVar("T")


class EtcdError(Exception):
    """etcd refused a request; `code` is gRPC's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Unreachable(EtcdError):
    """No endpoint answers, or none has a leader: whether the request was carried out is unknown."""

    def __init__(self, text: str) -> None:
        super().__init__(14, text)


class NotEtcd(Unreachable):
    """What answers at the endpoint is not etcd's JSON gateway."""


class Unreadable(NotEtcd, ValueError):
    """The answer does not have the form of an answer of etcd."""


class TooLarge(EtcdError):
    """The answer is larger than the limit."""


class Compacted(EtcdError):
    """The changes since the requested revision are no longer available: all keys must be read again."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key, its value, the revisions that created and last changed it, and its lease (0: none).

    In a key that is not UTF-8, each invalid byte is a lone surrogate, so that `raw` is what etcd has. `cut`: the value
    is larger than `LARGEST` and is left out.
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


def _answer(read: Callable[P, T]) -> Callable[P, T]:
    """Decorates a reader of answers: any error about the form of the answer becomes Unreadable."""

    @functools.wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except EtcdError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise Unreadable(f"it answers, but not as etcd: {type(error).__name__}: {error}"[:200]) from error

    return reading


@_answer
def read_answer(status: int, body: bytes) -> dict[str, Any]:
    """The answer of an exchange as a JSON object. Raises EtcdError."""
    answer = json.loads(body)
    if not isinstance(answer, dict):
        raise TypeError("it is no object")
    if status == http.HTTPStatus.OK and "error" not in answer:
        return answer
    error = answer.get("error") or answer.get("message")
    if isinstance(error, dict):
        error = error.get("message", str(error))
    # gRPC's gateway answers with code and message; 404 and "Not Found" alone mean that it does not know the path.
    if not error or not isinstance(answer.get("code", 0), int) or (status == 404 and error == "Not Found"):
        raise NotEtcd(f"it answers HTTP {status} with {body[:100]!a}, not with an answer of etcd's gateway")
    code = int(answer.get("code", 0) or 0)
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE or code in (4, 14):
        raise Unreachable(str(error))  # etcd has no leader, or its own time-out has passed
    if "invalid auth token" in str(error) or "auth: revision" in str(error) or status == http.HTTPStatus.UNAUTHORIZED:
        code = UNAUTHENTICATED
    raise EtcdError(code, str(error))


@_answer
def read_watch(line: bytes) -> tuple[int, list[Event]]:
    """A line of a watch: the revision and the events. Raises Compacted, EtcdError."""
    answer = json.loads(line)
    if "error" in answer:
        error = answer["error"]
        raise EtcdError(int(error.get("grpc_code", error.get("code", 0)) or 0), str(error.get("message", error)))
    result = answer["result"]
    if int(result.get("compact_revision", 0) or 0):
        raise Compacted(11, f"compacted at revision {result['compact_revision']}")
    if result.get("canceled"):
        raise EtcdError(0, f"etcd ended the watch: {result.get('cancel_reason', 'no reason given')}")
    events = [Event(read_item(event["kv"]), event.get("type") == "DELETE") for event in result.get("events", ())]
    return int(result["header"]["revision"]), events


@_answer
def read_page(answer: dict[str, Any]) -> tuple[list[KeyValue], int, bool]:
    """One page of a range: its keys, the revision, and whether there are more keys. Raises Unreadable."""
    items = [read_item(kv) for kv in answer.get("kvs", ())]
    return items, int(answer["header"]["revision"]), bool(answer.get("more"))


@_answer
def read_done(answer: dict[str, Any]) -> None:
    """An answer without a content of interest. Raises Unreadable."""
    int(answer["header"]["revision"])


@_answer
def read_transaction(answer: dict[str, Any]) -> tuple[bool, list[KeyValue]]:
    """Whether the conditions held, and what the `Get`s found. Raises Unreadable."""
    read_done(answer)
    responses = answer.get("responses", ())
    items = [read_item(kv) for response in responses for kv in response.get("response_range", {}).get("kvs", ())]
    return bool(answer.get("succeeded")), items


@_answer
def read_lease(answer: dict[str, Any]) -> tuple[int, int]:
    """A lease's number and its remaining seconds; etcd omits a zero. Raises Unreadable."""
    lease = answer.get("result", answer)
    return int(lease["ID"]), int(lease.get("TTL", 0))


@_answer
def read_token(answer: dict[str, Any]) -> str:
    """The token of a log-in, which is sent in a header unchanged. Raises Unreadable."""
    token = answer["token"]
    if not isinstance(token, str) or not token.isprintable() or not token.isascii():
        raise ValueError("the token is no plain text")
    return token


def read_item(raw: dict[str, Any]) -> KeyValue:
    """A key in an answer."""
    cut = len(raw.get("value", "")) > (LARGEST + 2) // 3 * 4
    return KeyValue(
        base64.b64decode(raw["key"]).decode(errors="surrogateescape"),
        b"" if cut else base64.b64decode(raw.get("value", "")),
        int(raw.get("create_revision", 0)),
        int(raw.get("mod_revision", 0)),
        int(raw.get("lease", 0)),
        cut,
    )


def compare(condition: Compare) -> dict[str, Any]:
    """A condition in the form of the gateway."""
    field = {"CREATE": "create_revision", "MOD": "mod_revision", "LEASE": "lease", "VALUE": "value"}[condition.what]
    value = b64(condition.value) if isinstance(condition.value, bytes) else str(condition.value)
    return {"key": b64(condition.key.encode()), "target": condition.what, "result": "EQUAL", field: value}


def step(operation: Step) -> dict[str, Any]:
    """An operation of a transaction in the form of the gateway."""
    key = b64(operation.key.encode())
    if isinstance(operation, Put):
        return {"request_put": {"key": key, "value": b64(operation.value), "lease": str(operation.lease)}}
    if isinstance(operation, Delete):
        return {"request_delete_range": {"key": key}}
    return {"request_range": {"key": key}}


def b64(data: bytes) -> str:
    """Bytes in the form of the gateway."""
    return base64.b64encode(data).decode()


def after(prefix: bytes) -> bytes:
    """The first key that is not below the prefix."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
