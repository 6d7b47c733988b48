"""One connection to an overlayd: dial, one request at a time, one answer each (contract 3.1 and 3.2).

Streams are blocking and there is no event loop, so that any program can use the client. ZLayer's client waits without a
limit, and a daemon that hangs then hangs its caller; here every wait has a deadline.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cni.overlay import wire
from cni.overlay.errors import (
    CodecError,
    DeadlinePassed,
    FrameTooLarge,
    Refused,
    TransportError,
    TruncatedFrame,
    Unexpected,
)
from cni.overlay.framing import Framer, frame
from cni.overlay.transport import Connect, Stream, connect

log = logging.getLogger(__name__)

_LAST_ID = (1 << 64) - 1
_HUNG = (
    "it may be busy, or hang for good: ZLayer's overlayd stops answering on every connection once a peer is set twice, "
    "and then only SIGKILL ends it (find it with: ss -xlp | grep {path})"
)

OnEvent = Callable[[wire.AnyEvent], None]
"""A listener. It runs in the thread of the call that received the event, before that call returns; it must neither wait
nor make calls. An exception that it raises is logged and dropped."""


class Deadline:
    """A moment, `seconds` from now, by which a whole call must be done, however many steps it takes."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, 0 once it has passed."""
        return max(0.0, self._at - time.monotonic())


@dataclass(frozen=True)
class Dialing:
    """How often a connection is tried and how long the pauses between are, in seconds."""

    attempts: int = 6
    pause: float = 0.1
    longest_pause: float = 1.0
    sleep: Callable[[float], None] = time.sleep


SUPERVISED = Dialing(attempts=20)
"""For a program that has just started the daemon and waits until it listens: about 17 s."""


def dial(
    path: str, deadline: Deadline, how: Dialing, on_event: OnEvent | None = None, connect: Connect = connect
) -> "Client":
    """A new connection to the socket or pipe at `path`.

    Any failure to connect is one attempt; the pauses double. At least one attempt is made. Raises
    TransportError, with the failure of the last attempt, when they are used up or the deadline has passed.
    """
    pause = how.pause
    for attempt in range(1, max(1, how.attempts) + 1):
        try:
            return Client(connect(path, deadline.left()), path, on_event)
        except OSError as e:
            if attempt >= how.attempts or deadline.left() <= pause:
                raise TransportError(f"overlayd: io error: {e}", f"connecting to {path}, attempt {attempt}") from e
            how.sleep(pause)
            pause = min(pause * 2, how.longest_pause)
    raise AssertionError("unreachable")  # the last attempt returns or raises


class Client:
    """A connection. Requests of several threads wait for each other; each gets its own answer."""

    def __init__(self, stream: Stream, path: str, on_event: OnEvent | None = None) -> None:
        self.path = path
        self.server: str | None = None
        """How the daemon identifies itself (`Status.server`): None before the first status, "" if it does not."""
        self._stream = stream
        self._on_event = on_event
        self._framer = Framer()
        self._id = 0
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """End the connection; a request under way in another thread fails."""
        self._closed = True
        self._stream.close()

    def round_trip(self, request: wire.AnyRequest, deadline: Deadline) -> wire.AnyReply:
        """Send one request and return its answer.

        Raises Refused if the daemon answers `err` and Unexpected if it sends a request of its own; after either
        the connection is still good. Raises CodecError, with nothing sent, for a request that cannot be
        encoded. Raises TransportError for anything that breaks the connection, DeadlinePassed among them, and
        at once on a connection that is already broken.
        """
        if not self._lock.acquire(timeout=deadline.left()):
            raise self._deadline_passed(request, deadline)
        try:
            if self._closed:
                raise TransportError("overlayd: connection closed by peer")
            self._id = self._id + 1 if self._id < _LAST_ID else 0
            body = frame(wire.encode(wire.RequestFrame(self._id, request)))
            reply = self._exchange(body, self._id, request, deadline)
        finally:
            self._lock.release()
        if isinstance(reply, wire.Status):
            self.server = reply.server or ""
        if isinstance(reply, wire.Err):
            raise Refused(reply.message)
        return reply

    def _exchange(self, body: bytes, request_id: int, request: wire.AnyRequest, deadline: Deadline) -> wire.AnyReply:
        try:
            self._stream.send(body, deadline.left())
            return self._answer(request_id, deadline)
        except TimeoutError as e:
            self.close()
            raise self._deadline_passed(request, deadline) from e
        except (CodecError, FrameTooLarge, TruncatedFrame, EOFError) as e:
            self.close()
            raise TransportError(f"overlayd: {e}") from e
        except OSError as e:
            self.close()
            raise TransportError(f"overlayd: io error: {e}") from e

    def _answer(self, request_id: int, deadline: Deadline) -> wire.AnyReply:
        while True:
            got = wire.decode_frame(self._next_body(deadline))
            if isinstance(got, wire.ResponseFrame):
                if got.id == request_id:
                    return got.response
                log.warning("overlayd answered request %d while %d was asked; skipped", got.id, request_id)
            elif isinstance(got, wire.RequestFrame):
                raise Unexpected("overlayd sent a request where an answer was expected")
            elif self._on_event is not None:
                self._notify(self._on_event, got)

    def _notify(self, listener: OnEvent, event: wire.AnyEvent) -> None:
        try:
            listener(event)
        except Exception:
            # The daemon may have done what was asked: a fault of the listener must not cost the answer.
            log.exception("the listener failed on %r", event)

    def _next_body(self, deadline: Deadline) -> bytes:
        while (body := self._framer.next_frame()) is None:
            if not (left := deadline.left()):
                raise TimeoutError
            data = self._stream.receive(left)
            if not data:
                self._framer.eof()
                raise EOFError("connection closed by peer")
            self._framer.feed(data)
        return body

    def _deadline_passed(self, request: wire.AnyRequest, deadline: Deadline) -> DeadlinePassed:
        return DeadlinePassed(
            f"overlayd: {self.path} did not answer {op_name(request)} within {deadline.seconds:g} s",
            _HUNG.format(path=self.path),
        )


def op_name(request: wire.AnyRequest) -> str:
    """The operation as ZLayer's messages name it: `AttachContainer`."""
    return type(request).__name__.removesuffix("Request")
