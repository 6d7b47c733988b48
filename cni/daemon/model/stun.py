"""STUN messages (RFC 8489): Binding requests, and what their answers say. Pure.

Requests carry FINGERPRINT (section 14.7), so a server that shares its port with another protocol recognizes them; an
answer whose FINGERPRINT is wrong is not used. The attributes of RFC 5780 ask a server to answer from another of its
addresses, which shows what a NAT lets in.
"""

from __future__ import annotations

import binascii
import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from cni.addresses import Address

MAGIC_COOKIE = 0x2112A442
COOKIE_AT = 4  # the cookie's offset in a message, in bytes
TRANSACTION = 12  # bytes
RETRANSMISSIONS = (0.0, 0.5, 1.5)  # seconds: the first three of section 6.2.1, with an RTO of 0.5 s
CHANGE_ADDRESS, CHANGE_PORT = 4, 2  # flags of CHANGE-REQUEST (RFC 5780, section 7.2)

HEAD = struct.Struct("!HHI12s")
_ATTRIBUTE = struct.Struct("!HH")
_REQUEST, _SUCCESS, _ERROR = 0x0001, 0x0101, 0x0111
_MAPPED, _CHANGE, ERROR_CODE, XOR_MAPPED, _FINGERPRINT, _OTHER = 0x0001, 0x0003, 0x0009, 0x0020, 0x8028, 0x802C
_FINGERPRINT_XOR = 0x5354554E


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer. `mapped`: the address and port from which it saw the request; None in an error. `other`: the
    server's second address and port, if it has one (RFC 5780). `error`: the error's number, 0 for none."""

    transaction: bytes
    mapped: tuple[Address, int] | None = None
    other: tuple[Address, int] | None = None
    error: int = 0


def request(transaction: bytes, change: int = 0) -> bytes:
    """A Binding request. `transaction`: 12 random bytes; `change`: CHANGE_ADDRESS and CHANGE_PORT, or 0."""
    body = attribute(_CHANGE, struct.pack("!I", change)) if change else b""
    return _with_fingerprint(_REQUEST, transaction, body)


def parse_answer(data: bytes) -> Answer:
    """The answer to a Binding request. Raises ValueError for any other message, and for a damaged one."""
    if len(data) < HEAD.size:
        raise ValueError("shorter than a header")
    kind, length, cookie, transaction = HEAD.unpack_from(data)
    if cookie != MAGIC_COOKIE or kind not in (_SUCCESS, _ERROR) or length % 4 or len(data) != HEAD.size + length:
        raise ValueError("no answer to a Binding request")
    found = attributes(data)
    if kind == _ERROR:
        return Answer(transaction, error=error_of(found))
    if XOR_MAPPED in found:
        mapped = address_of(found[XOR_MAPPED], transaction)
    elif _MAPPED in found:
        mapped = address_of(found[_MAPPED])
    else:
        raise ValueError("an answer without a mapped address")
    other = address_of(found[_OTHER]) if _OTHER in found else None
    return Answer(transaction, mapped, other)


def attributes(data: bytes) -> dict[int, bytes]:
    """The first attribute of each kind. Raises ValueError if one is longer than the message, or for a wrong
    FINGERPRINT."""
    found: dict[int, bytes] = {}
    at = HEAD.size
    while at < len(data):
        kind, length = _ATTRIBUTE.unpack_from(data, at)
        value = data[at + _ATTRIBUTE.size : at + _ATTRIBUTE.size + length]
        if len(value) != length:
            raise ValueError("an attribute is longer than the message")
        if kind == _FINGERPRINT and value != _fingerprint(data[:at]):
            raise ValueError("the fingerprint is wrong")
        found.setdefault(kind, value)
        at += _ATTRIBUTE.size + (length + 3 & ~3)
    return found


def error_of(found: Mapping[int, bytes]) -> int:
    """The number of an error. Raises ValueError for an error without one."""
    code = found.get(ERROR_CODE, b"")
    if len(code) < 4:
        raise ValueError("an error without a number")
    return (code[2] & 7) * 100 + code[3]


def address_of(value: bytes, transaction: bytes | None = None) -> tuple[Address, int]:
    """The address and port of an attribute; `transaction`: of a message whose attribute is XORed (section 14.2). Raises
    ValueError for an address of an unknown family."""
    family = value[1] if len(value) >= 4 else 0
    size = {1: 4, 2: 16}.get(family)
    if size is None or len(value) != 4 + size:
        raise ValueError("an address of an unknown family")
    mask = struct.pack("!I", MAGIC_COOKIE) + transaction if transaction is not None else bytes(16)
    packed = bytes(a ^ b for a, b in zip(value[4:], mask, strict=False))
    port = int.from_bytes(value[2:4], "big") ^ int.from_bytes(mask[:2], "big")
    return ipaddress.ip_address(packed), port


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def _with_fingerprint(kind: int, transaction: bytes, body: bytes) -> bytes:
    """The message, whose length already counts the FINGERPRINT when the latter is computed (section 14.7)."""
    message = HEAD.pack(kind, len(body) + 8, MAGIC_COOKIE, transaction) + body
    return message + attribute(_FINGERPRINT, _fingerprint(message))


def _fingerprint(message: bytes) -> bytes:
    return struct.pack("!I", binascii.crc32(message) ^ _FINGERPRINT_XOR)
