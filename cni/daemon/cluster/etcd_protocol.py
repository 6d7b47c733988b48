"""Requests to etcd v3 and its answers, as values and as the JSON of its gateway. Pure."""

from __future__ import annotations

import base64
import functools
import http
import json
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from cni.daemon.cluster.store import (
    LARGEST,
    UNAUTHENTICATED,
    Compacted,
    Compare,
    Delete,
    Event,
    KeyValue,
    Put,
    Step,
    StoreError,
    Unreachable,
    Unreadable,
    WrongServer,
)

P = ParamSpec("P")
T = TypeVar("T")


def _answer(read: Callable[P, T]) -> Callable[P, T]:
    """Decorates a reader of answers: any error about the form of the answer becomes Unreadable."""

    @functools.wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except StoreError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise Unreadable(f"it answers, but not as etcd: {type(error).__name__}: {error}"[:200]) from error

    return reading


@_answer
def read_answer(status: int, body: bytes) -> dict[str, Any]:
    """The answer of an exchange as a JSON object. Raises StoreError."""
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
        raise WrongServer(f"it answers HTTP {status} with {body[:100]!a}, not with an answer of etcd's gateway")
    code = int(answer.get("code", 0) or 0)
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE or code in (4, 14):
        raise Unreachable(str(error))  # etcd has no leader, or its own time-out has passed
    if "invalid auth token" in str(error) or "auth: revision" in str(error) or status == http.HTTPStatus.UNAUTHORIZED:
        code = UNAUTHENTICATED
    raise StoreError(code, str(error))


@_answer
def read_watch(line: bytes) -> tuple[int, list[Event]]:
    """A line of a watch: the revision and the events. Raises Compacted, StoreError."""
    answer = json.loads(line)
    if "error" in answer:
        error = answer["error"]
        raise StoreError(int(error.get("grpc_code", error.get("code", 0)) or 0), str(error.get("message", error)))
    result = answer["result"]
    if int(result.get("compact_revision", 0) or 0):
        raise Compacted(11, f"compacted at revision {result['compact_revision']}")
    if result.get("canceled"):
        raise StoreError(0, f"etcd ended the watch: {result.get('cancel_reason', 'no reason given')}")
    events = [Event(read_item(event["kv"]), event.get("type") == "DELETE") for event in result.get("events", ())]
    return int(result["header"]["revision"]), events


@_answer
def revision_of(answer: dict[str, Any]) -> int:
    """The revision in an answer's header; 0 in an answer without one. Raises Unreadable."""
    return int(answer.get("result", answer).get("header", {}).get("revision", 0))


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
