"""TURN messages (RFC 8656) with long-term credentials (RFC 8489, section 9.2). Pure.

Requests are authenticated by HMAC-SHA1 with MD5(user:realm:password), which every server of these RFCs accepts.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Literal

from cni.daemon.model import stun
from cni.daemon.model.nat_behaviour import Place

Method = Literal["allocate", "refresh", "permission", "channel"]
_METHODS: dict[Method, int] = {"allocate": 0x003, "refresh": 0x004, "permission": 0x008, "channel": 0x009}
_NAMES: dict[int, Method] = {number: name for name, number in _METHODS.items()}
_SUCCESS, _ERROR = 0x0100, 0x0110
_SEND, _DATA_INDICATION, _BINDING_INDICATION = 0x0016, 0x0017, 0x0011
_USERNAME, _INTEGRITY, _CHANNEL, _LIFETIME, _PEER, _DATA = 0x0006, 0x0008, 0x000C, 0x000D, 0x0012, 0x0013
_REALM, _NONCE, _RELAYED, _FAMILY, _TRANSPORT = 0x0014, 0x0015, 0x0016, 0x0017, 0x0019
_UDP = 17
_INTEGRITY_SIZE = 20
CHANNELS = range(0x4000, 0x5000)  # RFC 8656, section 12
UNAUTHORIZED, MISMATCH, STALE_NONCE = 401, 437, 438
_CHANNEL_HEAD = struct.Struct("!HH")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a server has asked for, and the key that follows from it."""

    username: str
    realm: bytes
    nonce: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request. `error`: 0 for none; `lifetime` in seconds, 0 if the answer names none."""

    method: Method
    transaction: bytes
    error: int = 0
    relayed: Place | None = None
    mapped: Place | None = None
    lifetime: int = 0
    realm: bytes = b""
    nonce: bytes = b""


def credentials(username: str, password: str, realm: bytes, nonce: bytes) -> Credentials:
    """The credentials for a realm."""
    text = username.encode() + b":" + realm + b":" + password.encode()
    return Credentials(username, realm, nonce, hashlib.md5(text, usedforsecurity=False).digest())


def request(
    method: Method,
    transaction: bytes,
    by: Credentials | None,
    *,
    peer: Place | None = None,
    channel: int = 0,
    lifetime: int | None = None,
    version: int = 4,
) -> bytes:
    """A request. `by`: None for the first one, which asks the server for realm and nonce; `peer`: whom a permission or
    a channel is for; `lifetime`: seconds; `version`: of IP, which the relay's address should have."""
    body = b""
    if method == "allocate":
        body += stun.attribute(_TRANSPORT, bytes([_UDP, 0, 0, 0]))
        if version == 6:
            body += stun.attribute(_FAMILY, bytes([2, 0, 0, 0]))
    if channel:
        body += stun.attribute(_CHANNEL, struct.pack("!HH", channel, 0))
    if peer is not None:
        body += stun.attribute(_PEER, _xored(peer, transaction))
    if lifetime is not None:
        body += stun.attribute(_LIFETIME, struct.pack("!I", lifetime))
    if by is not None:
        body += stun.attribute(_USERNAME, by.username.encode())
        body += stun.attribute(_REALM, by.realm) + stun.attribute(_NONCE, by.nonce)
    if by is None:
        return _head(_METHODS[method], len(body), transaction) + body
    signed = _head(_METHODS[method], len(body) + 4 + _INTEGRITY_SIZE, transaction) + body
    return signed + stun.attribute(_INTEGRITY, hmac.digest(by.key, signed, hashlib.sha1))


def parse_answer(data: bytes, key: bytes | None) -> Answer:
    """The answer to a request. `key`: with which a success must be authenticated. Raises ValueError for what is none,
    is damaged, or is not authentic. Errors are not authenticated: the first ones, 401 and 438, cannot be."""
    if len(data) < stun.HEAD.size:
        raise ValueError("shorter than a header")
    kind, length, cookie, transaction = stun.HEAD.unpack_from(data)
    method = _NAMES.get(kind & ~_ERROR)
    outcome = kind & _ERROR
    if cookie != stun.MAGIC_COOKIE or len(data) != stun.HEAD.size + length or method is None:
        raise ValueError("no answer of a TURN server")
    found = stun.attributes(data)
    if outcome == _ERROR:
        realm, nonce = found.get(_REALM, b""), found.get(_NONCE, b"")
        return Answer(method, transaction, stun.error_of(found), realm=realm, nonce=nonce)
    if outcome != _SUCCESS:
        raise ValueError("no answer")
    if key is None or not _is_authentic(data, key):
        raise ValueError("the answer is not authentic")
    return Answer(
        method,
        transaction,
        relayed=stun.address_of(found[_RELAYED], transaction) if _RELAYED in found else None,
        mapped=stun.address_of(found[stun.XOR_MAPPED], transaction) if stun.XOR_MAPPED in found else None,
        lifetime=int.from_bytes(found[_LIFETIME][:4], "big") if _LIFETIME in found else 0,
    )


def keepalive(transaction: bytes) -> bytes:
    """A Binding indication, which keeps the NAT's mapping towards the server."""
    return _head(_BINDING_INDICATION, 0, transaction)


def channel_data(channel: int, payload: bytes, *, is_stream: bool) -> bytes:
    """A datagram for a channel; in a stream it is padded (RFC 8656, section 12.5)."""
    padding = bytes(-len(payload) % 4) if is_stream else b""
    return _CHANNEL_HEAD.pack(channel, len(payload)) + payload + padding


def parse_channel_data(data: bytes) -> tuple[int, bytes]:
    """The channel and the payload. Raises ValueError for what is no such message."""
    if len(data) < _CHANNEL_HEAD.size:
        raise ValueError("shorter than a header")
    channel, length = _CHANNEL_HEAD.unpack_from(data)
    if channel not in CHANNELS or len(data) < _CHANNEL_HEAD.size + length:
        raise ValueError("no data of a channel")
    return channel, data[_CHANNEL_HEAD.size : _CHANNEL_HEAD.size + length]


def parse_data_indication(data: bytes) -> tuple[Place, bytes]:
    """The sender and the payload of a datagram without a channel. Raises ValueError for any other message."""
    if len(data) < stun.HEAD.size or stun.HEAD.unpack_from(data)[0] != _DATA_INDICATION:
        raise ValueError("no Data indication")
    transaction, found = data[8:20], stun.attributes(data)
    if _PEER not in found or _DATA not in found:
        raise ValueError("an indication without a sender or data")
    return stun.address_of(found[_PEER], transaction), found[_DATA]


def _head(kind: int, length: int, transaction: bytes) -> bytes:
    return stun.HEAD.pack(kind, length, stun.MAGIC_COOKIE, transaction)


def _xored(place: Place, transaction: bytes) -> bytes:
    address, port = place
    mask = struct.pack("!I", stun.MAGIC_COOKIE) + transaction
    packed = bytes(a ^ b for a, b in zip(address.packed, mask, strict=False))
    return struct.pack("!BBH", 0, 1 if address.version == 4 else 2, port ^ (stun.MAGIC_COOKIE >> 16)) + packed


def _is_authentic(data: bytes, key: bytes) -> bool:
    """Whether MESSAGE-INTEGRITY is right: over what is before it, with the length up to its end (RFC 8489, 14.5)."""
    at = stun.HEAD.size
    while at + 4 <= len(data):
        kind, length = struct.unpack_from("!HH", data, at)
        if kind == _INTEGRITY and length == _INTEGRITY_SIZE:
            head = data[:2] + struct.pack("!H", at + 4 + length - stun.HEAD.size) + data[4:at]
            return hmac.compare_digest(hmac.digest(key, head, hashlib.sha1), data[at + 4 : at + 4 + length])
        at += 4 + (length + 3 & ~3)
    return False
