"""This node's session at one relay that forwards in user space, as the process that holds it sees it. Pure.

`ZlayerLeg` speaks ZLayer's relay protocol, `TurnLeg` TURN (RFC 8656). Neither opens a socket: `advance` says what is to
be sent, `take` takes what arrived, and times are arguments, in seconds of a monotonic clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from cni.daemon.model import stun, turn_message, zlayer_relay
from cni.daemon.model.nat_behaviour import Place
from cni.daemon.model.turn_message import Credentials, Method
from cni.daemon.model.zlayer_relay import Control

RETRY = (0.5, 1.0, 2.0, 4.0)  # seconds until a request is repeated; after the last of them the relay counts as gone
FEW = 2  # repetitions of a request about one place, which a relay of ZLayer's may refuse by silence
PAUSE = 10.0  # seconds until a relay that refuses is asked again
KEEPALIVE = 25.0  # seconds between two messages that keep the NAT's mapping towards the relay
RENEW = 240.0  # seconds until a permission is renewed, which lasts 300 s (RFC 8656, section 9)
MOST_REMOTES = 64  # places beyond one relay


class Leg(Protocol):
    """One session. `relayed`: the relay's address for this node, None while there is none; `mapped`: from where the
    relay sees this node; `fault`: why there is no session; `is_lost`: the session must begin anew, from another port;
    `seconds`: the last round trip."""

    relayed: Place | None
    mapped: Place | None
    fault: str
    is_lost: bool
    seconds: float

    def want(self, remotes: Iterable[Place]) -> None:
        """Set the places that datagrams are to be exchanged with."""

    def advance(self, now: float) -> list[bytes]:
        """The messages to send now."""

    def due(self) -> float:
        """When `advance` has something to do next."""

    def take(self, data: bytes, now: float) -> tuple[Place, bytes] | None:
        """Take in what arrived; the sender and the payload of a datagram from beyond the relay."""

    def wrapped(self, to: Place, payload: bytes) -> bytes | None:
        """A datagram for a place beyond the relay as it is sent to the relay; None while that is not possible."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A request under way. `about`: whom it is for, None for the session itself."""

    message: bytes
    method: str
    about: Place | None
    transaction: bytes
    sent: int = 0
    sent_at: float = 0.0
    again_at: float = 0.0


class _OneAtATime:
    """The request under way of one session; the next follows its answer."""

    def __init__(self) -> None:
        self.relayed: Place | None = None
        self.mapped: Place | None = None
        self.fault = ""
        self.is_lost = False
        self.seconds = 0.0
        self._remotes: list[Place] = []
        self._renew_at: dict[Place, float] = {}
        self._request: _Request | None = None
        self._begin_at = self._refresh_at = self._kept_at = 0.0

    def want(self, remotes: Iterable[Place]) -> None:
        self._remotes = list(dict.fromkeys(remotes))[:MOST_REMOTES]
        self._renew_at = {place: at for place, at in self._renew_at.items() if place in self._remotes}

    def due(self) -> float:
        if self._request is not None:
            return self._request.again_at
        if self.relayed is None:
            return self._begin_at
        renewals = [self._renew_at.get(place, 0.0) for place in self._remotes]
        return min([self._refresh_at, self._kept_at + KEEPALIVE, *renewals])

    def advance(self, now: float) -> list[bytes]:
        request = self._request
        if request is None and (request := self._next(now)) is not None:
            self._request, self._kept_at = request, now
        if request is None:
            if self.relayed is not None and now >= self._kept_at + KEEPALIVE:
                self._kept_at = now
                return self._keepalive()
            return []
        if now < request.again_at:
            return []
        if request.about is not None and request.sent == FEW:
            self._renew_at[request.about], self._request = now + RENEW, None
            self._refresh_at = 0.0  # the relay may not allow that place, or it is gone
            return []
        if request.sent == len(RETRY):
            self._request, self.fault, self.is_lost = None, "the relay does not answer", True
            return []
        self._request = replace(request, sent=request.sent + 1, sent_at=now, again_at=now + RETRY[request.sent])
        return [request.message]

    def _refused(self, text: str, now: float) -> None:
        self._request, self.relayed, self.fault, self._begin_at = None, None, text, now + PAUSE

    def _next(self, now: float) -> _Request | None:
        raise NotImplementedError

    def _keepalive(self) -> list[bytes]:
        raise NotImplementedError


class ZlayerLeg(_OneAtATime):
    """A session by ZLayer's relay protocol. Its answers name no request, so one is under way at a time."""

    def __init__(self, username: str, credential: str) -> None:
        super().__init__()
        self._username, self._key = username, zlayer_relay.key_of(credential)
        self._id = bytes(zlayer_relay.SESSION)

    def _next(self, now: float) -> _Request | None:
        if self.relayed is None:
            return self._made("allocate") if now >= self._begin_at else None
        for place in self._remotes:
            if now >= self._renew_at.get(place, 0.0):
                return self._made("permission", place)
        return self._made("refresh") if now >= self._refresh_at else None

    def _made(self, kind: zlayer_relay.Kind, place: Place | None = None) -> _Request:
        message = Control(kind, self._username, self._id, place, zlayer_relay.LIFETIME)
        return _Request(zlayer_relay.encode(message, self._key), kind, place, b"")

    def _keepalive(self) -> list[bytes]:
        self._refresh_at = 0.0  # the answer also shows that the relay still has the session
        return []

    def take(self, data: bytes, now: float) -> tuple[Place, bytes] | None:
        if data[:1] == bytes([zlayer_relay.DATA]):
            return zlayer_relay.decode_data(data)
        self._take_control(zlayer_relay.decode(data, self._key), now)
        return None

    def _take_control(self, answer: Control, now: float) -> None:
        request = self._request
        if request is None:
            return
        match (request.method, answer.kind):
            case ("allocate", "allocated") if answer.place is not None:
                self.relayed, self._id, self.fault = answer.place, answer.session, ""
                self._refresh_at = now + RENEW
            case ("allocate", "refused"):
                self._refused(f"the relay refuses: {answer.text}", now)
                self.is_lost = answer.text == "allocation already exists"
                return
            case ("permission", "permitted") if request.about is not None:
                self._renew_at[request.about] = now + RENEW
            case ("refresh", "refreshed"):
                self._refresh_at = now + RENEW
            case _:
                return
        self.seconds, self._request = now - request.sent_at, None

    def wrapped(self, to: Place, payload: bytes) -> bytes | None:
        return zlayer_relay.encode_data(to, payload) if self.relayed is not None else None


class TurnLeg(_OneAtATime):
    """A session by TURN. Every place beyond the relay has a channel, which costs four bytes a datagram."""

    def __init__(self, username: str, password: str, *, is_stream: bool, version: int = 4) -> None:
        super().__init__()
        self._username, self._password, self._is_stream, self._version = username, password, is_stream, version
        self._credentials: Credentials | None = None
        self._channels: dict[Place, int] = {}
        self._bound: dict[int, Place] = {}

    def _next(self, now: float) -> _Request | None:
        if self.relayed is None:
            return self._made("allocate") if now >= self._begin_at else None
        for place in self._remotes:
            if now >= self._renew_at.get(place, 0.0):
                return self._made("channel", place)
        return self._made("refresh") if now >= self._refresh_at else None

    def _made(self, method: Method, place: Place | None = None) -> _Request:
        transaction = os.urandom(stun.TRANSACTION)
        channel = self._channel(place) if place is not None else 0
        lifetime = zlayer_relay.LIFETIME if method == "refresh" else None
        message = turn_message.request(
            method,
            transaction,
            self._credentials,
            peer=place,
            channel=channel,
            lifetime=lifetime,
            version=self._version,
        )
        return _Request(message, method, place, transaction)

    def _channel(self, place: Place) -> int:
        """The channel of a place. One of a place that is no longer wanted stays: it cannot be bound to another one
        while it lasts."""
        if place not in self._channels:
            self._channels[place] = turn_message.CHANNELS[len(self._channels) % len(turn_message.CHANNELS)]
        return self._channels[place]

    def _keepalive(self) -> list[bytes]:
        return [turn_message.keepalive(os.urandom(stun.TRANSACTION))]

    def take(self, data: bytes, now: float) -> tuple[Place, bytes] | None:
        if data[:1] and data[0] >> 6 == 1:
            channel, payload = turn_message.parse_channel_data(data)
            return (self._bound[channel], payload) if channel in self._bound else None
        request = self._request
        if request is None or data[8:20] != request.transaction:
            return turn_message.parse_data_indication(data) if data[:2] == b"\x00\x17" else None
        key = self._credentials.key if self._credentials is not None else None
        answer = turn_message.parse_answer(data, key)
        if answer.method == request.method:
            self._take_answer(request, answer, now)
        return None

    def _take_answer(self, request: _Request, answer: turn_message.Answer, now: float) -> None:
        is_first = self._credentials is None
        if answer.error == turn_message.STALE_NONCE or (answer.error == turn_message.UNAUTHORIZED and is_first):
            self._credentials = turn_message.credentials(self._username, self._password, answer.realm, answer.nonce)
            self._request = None  # the same is due again, with the credentials
            return
        if answer.error:
            self._take_error(request, answer.error, now)
            return
        if request.method == "allocate":
            self.relayed, self.mapped, self.fault = answer.relayed, answer.mapped, ""
        if request.method in ("allocate", "refresh"):
            self._refresh_at = now + (answer.lifetime or zlayer_relay.LIFETIME) / 2
        elif request.about is not None:
            self._renew_at[request.about] = now + RENEW
            self._bound[self._channels[request.about]] = request.about
        self.seconds, self._request = now - request.sent_at, None

    def _take_error(self, request: _Request, error: int, now: float) -> None:
        if request.method == "channel" and request.about is not None and error != turn_message.MISMATCH:
            self._renew_at[request.about], self._request = now + RENEW, None  # the server forbids this place
            return
        self._refused(f"the relay refuses with the error {error}", now)
        self.is_lost = error == turn_message.MISMATCH

    def wrapped(self, to: Place, payload: bytes) -> bytes | None:
        channel = self._channels.get(to, 0)
        if channel not in self._bound:
            return None
        return turn_message.channel_data(channel, payload, is_stream=self._is_stream)
