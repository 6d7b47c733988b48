"""The probes that nodes exchange beside WireGuard, at WireGuard's port: their form, and their authentication. Pure.

```
magic 4 | kind 1 | 0 3 | receiver 8 | sender 8 | transaction 8 | body 20 | tag 16        68 bytes
```

The first byte is none of WireGuard's types (1 to 4), of STUN's (below 64) or of TURN's (64 to 79). Receiver and sender
are the beginnings of digests of their WireGuard keys: a filter in the kernel drops what is for another receiver. The
tag is keyed BLAKE2s; its key is what X25519 gives two nodes for their WireGuard keys, so no third node can make a probe
of theirs. All kinds have one size: an answer is never larger than the request.

| kind | from, to | body |
| --- | --- | --- |
| ping, pong | node, peer | pong: the address and port from which the ping came |
| ask, grant | node, relay | the peer to be joined with; grant: the relay's port for the node, 0 if it is refused |
| call | node, peer, on a relayed path | the sender tries for a direct path now: the receiver should, too |
| bind, check | node, that port of the relay | check: a token for the node's address; bind: that token, or none |
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import struct
from dataclasses import dataclass
from typing import Literal

from cni.addresses import Address

MAGIC = 0xF55A4C50
RECEIVER_AT = 8  # the receiver's offset in a message, in bytes
NAME = 8  # bytes of a digest of a key
TRANSACTION = 8
SIZE = 68
_PERSON = b"zlayer-p"

Kind = Literal["ping", "pong", "ask", "grant", "bind", "check", "call"]
_NUMBERS: dict[Kind, int] = {"ping": 1, "pong": 2, "ask": 3, "grant": 4, "bind": 5, "check": 6, "call": 7}
_OF_RELAYS = ("ask", "grant", "bind", "check")
_KINDS: dict[int, Kind] = {number: kind for kind, number in _NUMBERS.items()}
_BODY = struct.Struct("!IB3x8s8s8s20s")
_RELAY = struct.Struct("!H8s10x")
_TAG = 16


@dataclass(frozen=True, slots=True)
class Probe:
    """One message. `seen`: in a pong, the address and port from which the ping came; `port`: in a grant, the relay's;
    `word`: the name of a peer, or a token, `NAME` bytes."""

    kind: Kind
    receiver: bytes
    sender: bytes
    transaction: bytes
    seen: tuple[Address, int] | None = None
    port: int = 0
    word: bytes = bytes(NAME)


def name_of(public_key: bytes) -> bytes:
    """The name of a node in probes, from its WireGuard key."""
    return hashlib.blake2s(public_key, digest_size=NAME, person=_PERSON).digest()


def key_of(shared: bytes) -> bytes:
    """The key of the tags between two nodes, from what X25519 gives them."""
    return hashlib.blake2s(shared, person=_PERSON).digest()


def encode(probe: Probe, key: bytes) -> bytes:
    """The message with its tag."""
    rest = _RELAY.pack(probe.port, probe.word) if probe.kind in _OF_RELAYS else _pack_place(probe.seen)
    body = _BODY.pack(MAGIC, _NUMBERS[probe.kind], probe.receiver, probe.sender, probe.transaction, rest)
    return body + _tag(body, key)


def sender_of(message: bytes) -> bytes:
    """The name of the node that claims to have sent the message; not authenticated. Raises ValueError for what is no
    probe."""
    if len(message) != SIZE or int.from_bytes(message[:4], "big") != MAGIC:
        raise ValueError("no probe")
    return message[RECEIVER_AT + NAME : RECEIVER_AT + 2 * NAME]


def decode(message: bytes, key: bytes) -> Probe:
    """The message, if its tag was made with the key. Raises ValueError otherwise."""
    sender_of(message)
    if not hmac.compare_digest(message[-_TAG:], _tag(message[:-_TAG], key)):
        raise ValueError("the tag is wrong")
    _, number, receiver, sender, transaction, rest = _BODY.unpack(message[:-_TAG])
    kind = _KINDS.get(number)
    if kind is None:
        raise ValueError(f"unknown kind {number}")
    if kind in _OF_RELAYS:
        port, word = _RELAY.unpack(rest)
        return Probe(kind, receiver, sender, transaction, port=port, word=word)
    return Probe(kind, receiver, sender, transaction, _unpack_place(rest))


def _tag(body: bytes, key: bytes) -> bytes:
    return hashlib.blake2s(body, key=key, digest_size=_TAG).digest()


def _pack_place(place: tuple[Address, int] | None) -> bytes:
    if place is None:
        return bytes(20)
    address, port = place
    return struct.pack("!BxH16s", address.version, port, address.packed)


def _unpack_place(data: bytes) -> tuple[Address, int] | None:
    version, port, packed = struct.unpack("!BxH16s", data)
    if version not in (4, 6):
        return None
    return ipaddress.ip_address(packed[:4] if version == 4 else packed), port
