"""The netlink message format (linux/netlink.h): encodes and decodes headers, attributes and errors of every protocol.

Numbers are in the machine's byte order unless a protocol defines another: nf_tables uses network byte order for its
values, but the header, the lengths of attributes and the error number are in native order there too.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Literal, NamedTuple

ROUTE, NETFILTER, GENERIC = 0, 12, 16  # netlink protocols
ERROR, DONE = 2, 3  # message types
REQUEST, ACK, ECHO = 0x1, 0x4, 0x8  # flags
DUMP, REPLACE, EXCL, CREATE = 0x300, 0x100, 0x200, 0x400
INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
NESTED = 0x8000
KIND = 0x3FFF  # an attribute's type without the flags for "nested" and "network byte order"
SOL_NETLINK, ADD_MEMBERSHIP, CAP_ACK, EXT_ACK, STRICT = 270, 1, 10, 11, 12
_FORCED = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
RECEIVE = 1 << 16  # bytes; a read returns at most 32 KiB of a dump; from 128 KiB on every read maps and unmaps memory
BYTE_ORDER: Literal["little", "big"] = sys.byteorder

HEADER = struct.Struct("=IHHII")
ATTR = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
_NFGEN = struct.Struct(">BBH")
NFGEN = _NFGEN.size  # bytes of struct nfgenmsg, before the attributes of every nfnetlink message


class Received(NamedTuple):
    """One message of a datagram: its type, flags, sequence number and sender's port, and the offsets of its body."""

    type: int
    flags: int
    seq: int
    port: int
    start: int
    end: int


def message(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    """One request. `body` is padded to 4 bytes, as attributes are."""
    return HEADER.pack(HEADER.size + len(body), kind, flags | REQUEST, seq, 0) + body


def messages(data: bytes) -> Iterator[Received]:
    """The messages of a datagram in order, up to the first with an impossible length."""
    at, whole = 0, len(data)
    while at + 16 <= whole:
        size, kind, flags, seq, port = HEADER.unpack_from(data, at)
        if size < 16:
            return
        yield Received(kind, flags, seq, port, at + 16, at + size)
        at += (size + 3) & ~3


def error(body: bytes, start: int = 0) -> int:
    """The error number in the body of an ERROR or DONE message; 0 for an acknowledgement."""
    return -int(_ERRNO.unpack_from(body, start)[0]) if len(body) >= start + 4 else 0


def explanation(body: bytes) -> str:
    """The kernel's error text in an extended acknowledgement (attribute 1); empty if there is none."""
    return string(attributes(body[20:]).get(1, b"")) if len(body) > 20 else ""


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    size = 4 + len(value)
    return ATTR.pack(size, kind) + value + bytes(-size & 3)


def nested(kind: int, *inside: bytes) -> bytes:
    """An attribute that holds attributes, with the flag NLA_F_NESTED."""
    return attribute(kind | NESTED, b"".join(inside))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """A 32-bit attribute in host order."""
    return attribute(kind, value.to_bytes(4, BYTE_ORDER))


def u8(kind: int, value: int) -> bytes:
    """An 8-bit attribute."""
    return attribute(kind, bytes([value]))


def items(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(type without flags, value) of each attribute in `data[start:end]` in order, repeated types too."""
    at, end = start, len(data) if end is None else end
    while at + 4 <= end:
        size, kind = ATTR.unpack_from(data, at)
        if size < 4:
            return
        yield kind & KIND, data[at + 4 : at + size]
        at += (size + 3) & ~3


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes in `data` by type; the last one of a repeated type."""
    return dict(items(data, start))


def chosen(data: bytes, kinds: frozenset[int], start: int = 0) -> dict[int, bytes]:
    """Those of the attributes in `data` that have one of `kinds`, by type. A link has some fifty attributes: the others
    are not copied."""
    found, at, end, unpack = {}, start, len(data), ATTR.unpack_from
    while at + 4 <= end:
        size, kind = unpack(data, at)
        if size < 4:
            break
        if kind & KIND in kinds:
            found[kind & KIND] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def string(value: bytes) -> str:
    """The text of a NUL-terminated string from the kernel."""
    return value.rstrip(b"\0").decode(errors="replace")


def nfgen(family: int, resource: int = 0) -> bytes:
    """struct nfgenmsg, with which every nfnetlink message begins."""
    return _NFGEN.pack(family, 0, resource)


def opened(protocol: int, groups: int = 0) -> socket.socket:
    """A bound netlink socket of the calling thread's network namespace. Raises OSError."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        made.bind((0, groups))
    except OSError:
        made.close()
        raise
    return made


def widen(sock: socket.socket, buffer: int, size: int) -> int:
    """Give a socket a buffer (SO_SNDBUF, SO_RCVBUF) of `size` bytes; returns the bytes that the buffer has (socket(7)).

    In a user namespace the kernel refuses a size above net.core.wmem_max or rmem_max: the buffer is that large then.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _FORCED[buffer], size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, buffer, size)
    return sock.getsockopt(socket.SOL_SOCKET, buffer)


def at_hand(source: socket.socket, size: int = RECEIVE) -> Iterator[bytes]:
    """The queued datagrams, without waiting for more. Raises OSError; ENOBUFS if some were lost."""
    while True:
        try:
            yield source.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return


def failed(code: int) -> OSError:
    """The exception for an errno that the kernel answered."""
    return OSError(code, os.strerror(code))
