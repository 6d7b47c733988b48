"""The sessions of the server of ZLayer's relay protocol: what each message changes, and what is answered. Pure.

The protocol has no nonce: a machine that has recorded a request for a session can repeat it from an address of its own.
The repetition gives it nothing: without the key there is no permission, and without one nothing passes in either
direction. A session that has not used its id ends after `UNPROVEN`, and such sessions never take the place of others. A
session ends after `IDLE` without a datagram, whatever lifetime was named, because ZLayer's client cannot refresh one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cni.daemon.model import zlayer_relay
from cni.daemon.model.zlayer_relay import Control, Place

IDLE = 900.0  # seconds without a datagram after which a session ends
UNPROVEN = 30.0  # seconds in which a session's id must have been used
REPEATED = 5.0  # seconds in which a second request from the same place is a repetition, and gets the same answer
SPARE = 60.0  # seconds without a datagram after which a session gives way to a new one when all are in use
MOST_PERMITTED = 64  # addresses that one session may exchange datagrams with
RATE, BURST = 20.0, 40.0  # control messages a second that are looked at, and at once: each costs a BLAKE2b


@dataclass(frozen=True, slots=True)
class Allocation:
    """One session. `port`: of the relay; `permitted`: IP addresses as text; times in seconds."""

    client: Place
    id: bytes
    port: int
    began: float
    used: float
    is_proven: bool = False
    permitted: frozenset[str] = frozenset()


class Bucket:
    """Lets through `RATE` a second, and `BURST` at once."""

    def __init__(self, now: float) -> None:
        self._tokens, self._at = BURST, now

    def take(self, now: float) -> bool:
        """Whether one more may pass."""
        self._tokens = min(BURST, self._tokens + (now - self._at) * RATE)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Sessions:
    """The sessions of one server. `now` is of a monotonic clock, in seconds."""

    def __init__(self, most: int, fresh_id: Callable[[], bytes], may_reach: Callable[[Place], bool]) -> None:
        """`most`: sessions at once; `may_reach`: whether datagrams may be sent to a place."""
        self._most, self._fresh_id, self._may_reach = most, fresh_id, may_reach
        self._by_client: dict[Place, Allocation] = {}
        self._by_port: dict[int, Allocation] = {}

    def __iter__(self) -> Iterator[Allocation]:
        return iter(list(self._by_client.values()))

    def __len__(self) -> int:
        return len(self._by_client)

    def allocated(self, client: Place, open_port: Callable[[], int], external: Place, now: float) -> Control:
        """The answer to a request for a session. `open_port`: opens a port and returns it, 0 if none is free;
        `external`: the relay's address, with any port."""
        session = self._by_client.get(client)
        if session is not None and now - session.began > REPEATED:
            return Control("refused", "allocation already exists")
        if session is None:
            if not self._has_room(now):
                return Control("refused", "max sessions reached")
            port = open_port()
            if not port:
                return Control("refused", "relay bind failed")
            session = self._put(Allocation(client, self._fresh_id(), port, now, now))
        place = (external[0], session.port)
        return Control("allocated", session=session.id, place=place, lifetime=zlayer_relay.LIFETIME)

    def answer(self, client: Place, message: Control) -> Control | None:
        """The answer to an authentic message about a session, None if there is none: a message counts only from the
        place that the session belongs to."""
        session = self._by_client.get(client)
        if session is None or session.id != message.session:
            return None
        session = self._put(replace(session, is_proven=True))
        if message.kind == "permission" and message.place is not None and self._may_reach(message.place):
            permitted = session.permitted | {str(message.place[0])}
            if len(permitted) > MOST_PERMITTED:
                return None
            self._put(replace(session, permitted=permitted))
            return Control("permitted")
        if message.kind == "refresh":
            return Control("refreshed", lifetime=message.lifetime)
        if message.kind == "deallocate":
            self._drop(session)
        return None

    def outwards(self, client: Place, to: Place, now: float) -> int:
        """The port from which a client's datagram leaves, 0 if it may not."""
        session = self._by_client.get(client)
        if session is None or str(to[0]) not in session.permitted or not self._may_reach(to):
            return 0
        self._put(replace(session, used=now))
        return session.port

    def inwards(self, port: int, sender: Place, now: float) -> Place | None:
        """The client that a datagram at a relay's port is for; None if it may not pass."""
        session = self._by_port.get(port)
        if session is None or str(sender[0]) not in session.permitted:
            return None
        self._put(replace(session, used=now))
        return session.client

    def expire(self, now: float) -> None:
        """End the sessions whose time is over."""
        for session in self:
            if now - session.used > IDLE or (not session.is_proven and now - session.began > UNPROVEN):
                self._drop(session)

    def ports(self) -> set[int]:
        """The ports of all sessions."""
        return set(self._by_port)

    def _has_room(self, now: float) -> bool:
        """Whether one more session may begin; a session that is not proven, or one long without a datagram, gives way.
        Sessions that are not proven take a quarter of the room at most."""
        unproven = [session for session in self if not session.is_proven]
        if len(unproven) > self._most // 4 or (unproven and len(self) >= self._most):
            self._drop(min(unproven, key=lambda session: session.began))
        if len(self) >= self._most:
            idlest = min(self, key=lambda session: session.used)
            if now - idlest.used < SPARE:
                return False
            self._drop(idlest)
        return True

    def _put(self, session: Allocation) -> Allocation:
        self._by_client[session.client] = self._by_port[session.port] = session
        return session

    def _drop(self, session: Allocation) -> None:
        del self._by_client[session.client], self._by_port[session.port]
