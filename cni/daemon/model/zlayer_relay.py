"""The messages of ZLayer's relay protocol (`turn.rs` of zlayer-overlay 0.14.3), byte for byte. Pure.

UDP, big endian, one port of the server for control and data:

```
control = type 1 | length 2 | payload | tag 32      tag: BLAKE2b-256 keyed with BLAKE2b-256(credential), over all before
data    = 0x80   | length 2 | address | datagram    no tag; address = 01 ip4 port | 02 ip6 port
```

| type | payload | answer |
| --- | --- | --- |
| 01 allocate | length 1, user | 02: address of the relay's port, id 16, lifetime 4; or 03: a text |
| 04 permission | id 16, address | 05, empty. A permission is for an IP address, whatever the port |
| 06 refresh | id 16, lifetime 4 | 07: lifetime 4 |
| 08 deallocate | id 16 | none |
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import struct
from dataclasses import dataclass
from typing import Literal

from cni.addresses import Address

Place = tuple[Address, int]
Kind = Literal["allocate", "allocated", "refused", "permission", "permitted", "refresh", "refreshed", "deallocate"]

_NUMBERS: dict[Kind, int] = {
    "allocate": 1,
    "allocated": 2,
    "refused": 3,
    "permission": 4,
    "permitted": 5,
    "refresh": 6,
    "refreshed": 7,
    "deallocate": 8,
}
_KINDS: dict[int, Kind] = {number: kind for kind, number in _NUMBERS.items()}
DATA = 0x80
LIFETIME = 600  # seconds that a server of ZLayer's names
SESSION = 16  # bytes of an allocation's id
LONGEST_USER = 255  # bytes
_HEAD = struct.Struct("!BH")
_TAG = 32
_LENGTH = struct.Struct("!I")
_SIZES = {1: 4, 2: 16}  # bytes of an address, by the number of its family


@dataclass(frozen=True, slots=True)
class Control:
    """A control message. `text`: the user of `allocate`, the reason of `refused`; `place`: the relay's port of
    `allocated`, whom `permission` is for; `lifetime` in seconds."""

    kind: Kind
    text: str = ""
    session: bytes = bytes(SESSION)
    place: Place | None = None
    lifetime: int = 0


def key_of(credential: str) -> bytes:
    """The key of the tags."""
    return hashlib.blake2b(credential.encode(), digest_size=32).digest()


def encode(message: Control, key: bytes) -> bytes:
    """The control message with its tag. Raises ValueError for a user that is too long."""
    body = _payload(message)
    head = _HEAD.pack(_NUMBERS[message.kind], len(body)) + body
    return head + _tag(head, key)


def decode(data: bytes, key: bytes) -> Control:
    """The control message, if its tag was made with the key. Raises ValueError otherwise."""
    if len(data) < _HEAD.size + _TAG:
        raise ValueError("shorter than a control message")
    number, length = _HEAD.unpack_from(data)
    kind = _KINDS.get(number)
    if kind is None or len(data) != _HEAD.size + length + _TAG:
        raise ValueError("no control message")
    if not hmac.compare_digest(data[-_TAG:], _tag(data[:-_TAG], key)):
        raise ValueError("the tag is wrong")
    return _message(kind, data[_HEAD.size : -_TAG])


def encode_data(place: Place, payload: bytes) -> bytes:
    """A datagram for, or from, a place beyond the relay."""
    body = pack_place(place) + payload
    return _HEAD.pack(DATA, len(body)) + body


def decode_data(data: bytes) -> tuple[Place, bytes]:
    """The place and the payload of a data message. Raises ValueError for any other one."""
    if len(data) < _HEAD.size or data[0] != DATA or _HEAD.unpack_from(data)[1] != len(data) - _HEAD.size:
        raise ValueError("no data message")
    place, size = unpack_place(data, _HEAD.size)
    return place, data[_HEAD.size + size :]


def pack_place(place: Place) -> bytes:
    """An address with its port."""
    address, port = place
    return bytes([1 if address.version == 4 else 2]) + address.packed + port.to_bytes(2, "big")


def unpack_place(data: bytes, at: int = 0) -> tuple[Place, int]:
    """An address with its port, and its length in bytes. Raises ValueError."""
    size = _SIZES.get(data[at]) if at < len(data) else None
    if size is None or len(data) < at + 1 + size + 2:
        raise ValueError("an address of an unknown family, or cut off")
    end = at + 1 + size
    return (ipaddress.ip_address(data[at + 1 : end]), int.from_bytes(data[end : end + 2], "big")), 1 + size + 2


def _payload(message: Control) -> bytes:
    place = pack_place(message.place) if message.place is not None else b""
    lifetime = _LENGTH.pack(message.lifetime)
    text = message.text.encode()
    if message.kind == "allocate" and len(text) > LONGEST_USER:
        raise ValueError(f"a user of more than {LONGEST_USER} bytes")
    bodies: dict[Kind, bytes] = {
        "allocate": bytes([len(text) & 0xFF]) + text,
        "allocated": place + message.session + lifetime,
        "refused": text,
        "permission": message.session + place,
        "permitted": b"",
        "refresh": message.session + lifetime,
        "refreshed": lifetime,
        "deallocate": message.session,
    }
    return bodies[message.kind]


def _message(kind: Kind, body: bytes) -> Control:
    """The message of an authentic payload. Raises ValueError if it has another length."""
    if kind == "allocate":
        if not body or body[0] != len(body) - 1:
            raise ValueError("a user of another length")
        return Control(kind, body[1:].decode())
    if kind == "refused":
        return Control(kind, body.decode(errors="replace"))
    place, session, lifetime, at = None, bytes(SESSION), 0, 0
    if kind == "allocated":
        place, at = unpack_place(body)
    if kind in ("allocated", "permission", "refresh", "deallocate"):
        session, at = body[at : at + SESSION], at + SESSION
    if kind == "permission":
        place, size = unpack_place(body, at)
        at += size
    if kind in ("allocated", "refresh", "refreshed") and len(body) >= at + _LENGTH.size:
        lifetime, at = _LENGTH.unpack_from(body, at)[0], at + _LENGTH.size
    message = Control(kind, session=session, place=place, lifetime=lifetime)
    if len(session) != SESSION or _payload(message) != body:
        raise ValueError("a payload of another length")
    return message


def _tag(head: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(head, digest_size=_TAG, key=key).digest()
