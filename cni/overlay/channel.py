"""How the parts of an `OverlayManager` ask the daemon: one request and its answer, within a deadline."""

import logging
from collections.abc import Callable
from typing import TypeVar

from cni.overlay import wire
from cni.overlay.client import Client, Deadline, op_name
from cni.overlay.errors import OverlaydError, Unexpected
from cni.overlay.session import Session
from cni.overlay.state import NodeState

log = logging.getLogger("cni.overlay")

R = TypeVar("R")


class Channel:
    """The daemon, as one manager reaches it. Safe to use from several threads."""

    def __init__(self, session: Session, state: NodeState) -> None:
        self._session = session
        self._state = state

    def deadline(self, request: wire.AnyRequest | None = None) -> Deadline:
        """The deadline of a call that begins now: `Timeouts.nat_tick` for a NatTick, else `Timeouts.call`."""
        timeouts = self._state.settings.timeouts
        return Deadline(timeouts.nat_tick if isinstance(request, wire.NatTick) else timeouts.call)

    def connect(self, deadline: Deadline) -> None:
        """Dial, unless there is a connection. Raises TransportError."""
        self._session.connection(deadline)

    def run(self, work: Callable[[Client], R], deadline: Deadline) -> R:
        """`work` on the connection, repeated once on a new one if the connection breaks: see `Session.run`."""
        return self._session.run(work, deadline)

    def call(self, request: wire.AnyRequest, deadline: Deadline | None = None) -> wire.AnyReply:
        """One request, any answer that is not `err`. Raises OverlaydError, CodecError, FrameTooLarge."""
        until = deadline or self.deadline(request)
        return self._session.run(lambda conn: conn.round_trip(request, until), until)

    def ask(self, request: wire.AnyRequest, kind: type[R]) -> R:
        """One request whose answer must be of that kind. Raises Unexpected for any other, and what `call` raises."""
        return expect(request, self.call(request), kind)

    def attempt(self, request: wire.AnyRequest, deadline: Deadline | None = None) -> wire.AnyReply | None:
        """One request whose failure is logged: then None."""
        try:
            return self.call(request, deadline)
        except OverlaydError as e:
            log.warning("%s: %s", op_name(request), e)
            return None

    def close(self) -> None:
        """Hang up. The next call dials."""
        self._session.close()


def expect(request: wire.AnyRequest, reply: wire.AnyReply, kind: type[R]) -> R:
    """`reply`, if it is of that kind. Raises Unexpected."""
    if not isinstance(reply, kind):
        raise Unexpected(f"overlayd {op_name(request)} returned unexpected response: {reply!r}")
    return reply
