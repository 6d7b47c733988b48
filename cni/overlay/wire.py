"""Frames: the protocol's three kinds of message, as bytes and as values.

A frame's body is one JSON object tagged `frame`: a request or response with its `id`, or an event, whose fields lie
flat beside the tag. `encode` prints the same bytes as ZLayer's programs; `decode_*` accepts what they accept, except
for two quirks of theirs that are refused here: a tag given as the number of its variant, and arrays in place of
objects. Contract 2.

Every wire type can be imported from this module.
"""

from typing import Any

import msgspec

from cni.overlay import strict
from cni.overlay.errors import CodecError
from cni.overlay.nested import *  # noqa: F403  (this module re-exports the types)
from cni.overlay.nested import U64, Wire
from cni.overlay.replies import *  # noqa: F403
from cni.overlay.replies import AnyEvent, AnyReply, Event
from cni.overlay.requests import *  # noqa: F403
from cni.overlay.requests import AnyRequest


class RequestFrame(Wire, frozen=True, tag_field="frame", tag="request"):
    """A request; the response carries the same `id`."""

    id: U64
    request: AnyRequest


class ResponseFrame(Wire, frozen=True, tag_field="frame", tag="response"):
    """The answer to the request of that `id`."""

    id: U64
    response: AnyReply


Frame = RequestFrame | ResponseFrame | AnyEvent

_SHAPES: dict[str, Any] = {"request": RequestFrame, "response": ResponseFrame, "event": AnyEvent}
_EVENT = b'{"frame":"event",'


def encode(frame: Frame) -> bytes:
    """The body of a frame, compact, keys in the protocol's order.

    Raises CodecError for what no decoder would accept: in a request any value out of its range, in the other kinds
    text that is not Unicode.
    """
    try:
        body = msgspec.json.encode(frame)
    except (UnicodeEncodeError, TypeError, OverflowError) as e:
        raise CodecError(f"frame codec error: {e}") from e
    if isinstance(frame, Event):
        # A struct has one tag, an event two.
        return _EVENT + body[1:]
    if isinstance(frame, RequestFrame):
        # The caller's values are unchecked. A daemon would close the connection for a bad one, without an answer.
        decode_frame(body)
    return body


def decode_frame(body: bytes) -> Frame:
    """The frame in `body`. Raises CodecError."""
    document = strict.parse(body)
    kind = document.get("frame") if isinstance(document, dict) else None
    shape = _SHAPES.get(kind) if isinstance(kind, str) else None
    if shape is None:
        raise CodecError("frame codec error: not a request, response or event")
    try:
        out: Frame = msgspec.convert(document, shape)
    except msgspec.ValidationError as e:
        raise CodecError(f"frame codec error: {e}") from e
    return out


def decode_request_frame(body: bytes) -> RequestFrame | None:
    """The request in `body`, or None for a well-formed frame of another kind, which a server ignores.

    Raises CodecError, upon which a server closes the connection without an answer (contract 1.2).
    """
    frame = decode_frame(body)
    return frame if isinstance(frame, RequestFrame) else None
