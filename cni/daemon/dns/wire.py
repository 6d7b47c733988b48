"""DNS messages as bytes (RFC 1035, 6891): a question is read without a library, and an answer is put together from
records that are ready.

Pure. A question with one name and at most one OPT record, which is what resolvers send, is read here; `read` says why
another message is none.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

A, NS, SOA, PTR, AAAA, OPT, ANY = 1, 2, 6, 12, 28, 41, 255
IN = 1
NOERROR, FORMERR, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 3, 4, 5, 16

HEADER = 12
PLAIN = 512  # bytes of an answer over UDP to a question without EDNS (RFC 1035, 4.2.1)
LARGEST_UDP = 1232  # bytes that pass every path of IPv6 unfragmented
LARGEST = 65535
MOST_RECORDS = 100  # of one question: more is no question of a resolver

QR, OPCODE, AA, TC, RD, RA, CD = 0x8000, 0x7800, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
_HEAD = struct.Struct("!HHHHHH")
_FIXED = struct.Struct("!HHIH")
_TO_QUESTION = b"\xc0\x0c"
_OPT_SIZE = 11  # bytes of our OPT record


@dataclass(slots=True)
class Edns:
    """The OPT record of a question (RFC 6891). `size`: the largest answer over UDP, in bytes; `dnssec`: the DO bit."""

    size: int
    version: int
    dnssec: bool


@dataclass(slots=True)
class Question:
    """One question. `raw`: name, type and class as they came; `name`: the name in wire format, in lower case."""

    id: int
    flags: int
    raw: bytes
    name: bytes
    type: int
    klass: int
    edns: Edns | None

    def limit(self, stream: bool) -> int:
        """The largest answer, in bytes. `stream`: the question came by TCP."""
        if stream:
            return LARGEST
        return self.edns.size if self.edns is not None else PLAIN

    def labels(self) -> list[str] | None:
        """The labels in lower case; None if one has other characters than ASCII, or a dot."""
        found, at = [], 0
        while length := self.name[at]:
            part = self.name[at + 1 : at + 1 + length]
            if b"." in part or not part.isascii():
                return None
            found.append(part.decode("ascii"))
            at += 1 + length
        return found


class Malformed(Exception):
    """A message that is no question; `code`: of the answer, None if it gets none."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


def read(message: bytes) -> Question:
    """The question of a message. Raises Malformed."""
    if len(message) < HEADER:
        raise Malformed(None)
    ident, flags, questions, answers, authorities, additional = _HEAD.unpack_from(message)
    if flags & QR:
        raise Malformed(None)
    if flags & OPCODE:
        raise Malformed(NOTIMP)
    if questions != 1 or answers or authorities:
        raise Malformed(FORMERR)
    end = _end_of_name(message)
    if end + 4 > len(message):
        raise Malformed(FORMERR)
    raw = message[HEADER : end + 4]
    kind, klass = int.from_bytes(raw[-4:-2], "big"), int.from_bytes(raw[-2:], "big")
    edns = _read_additional(message, end + 4, additional) if additional else None
    return Question(ident, flags, raw, raw[:-4].lower(), kind, klass, edns)


def _end_of_name(message: bytes) -> int:
    """The offset behind the question's name, which is not compressed. Raises Malformed."""
    at, size = HEADER, len(message)
    while at < size:
        length = message[at]
        if not length:
            if at + 1 - HEADER > 255:
                break
            return at + 1
        if length > 63:
            break
        at += length + 1
    raise Malformed(FORMERR)


def _read_additional(message: bytes, at: int, count: int) -> Edns | None:
    """The OPT record among the additional ones. Raises Malformed."""
    found = None
    if count > MOST_RECORDS:
        raise Malformed(FORMERR)
    for _ in range(count):
        is_root = at < len(message) and message[at] == 0
        at = _skip_name(message, at)
        if at + 10 > len(message):
            raise Malformed(FORMERR)
        kind, size, extended, length = _FIXED.unpack_from(message, at)
        at += 10 + length
        if at > len(message):
            raise Malformed(FORMERR)
        if kind == OPT:
            if found is not None or not is_root:
                raise Malformed(FORMERR)
            found = Edns(min(max(size, PLAIN), LARGEST_UDP), extended >> 16 & 0xFF, bool(extended & 0x8000))
    return found


def _skip_name(message: bytes, at: int) -> int:
    """The offset behind a name, compressed or not. Raises Malformed."""
    while at < len(message):
        length = message[at]
        if not length:
            return at + 1
        if length >= 0xC0:
            return at + 2
        if length > 63:
            break
        at += length + 1
    raise Malformed(FORMERR)


# --- records ------------------------------------------------------------------------------------------------------


def wire_name(labels: Sequence[str]) -> bytes:
    """A name in wire format, not compressed. A label is ASCII of at most 63 octets."""
    return b"".join(bytes((len(part),)) + part.encode("ascii") for part in labels) + b"\0"


def record(kind: int, ttl: int, data: bytes, owner: bytes = _TO_QUESTION) -> bytes:
    """A record of class IN; `owner`: its name in wire format, by default the question's."""
    return owner + struct.pack("!HHIH", kind, IN, ttl, len(data)) + data


def address_record(address: str, ttl: int) -> bytes:
    """The A or AAAA record of the question's name."""
    value = ip_address(address)
    return record(A if value.version == 4 else AAAA, ttl, value.packed)


def start_of_authority(owner: bytes, server: bytes, serial: int, ttl: int) -> bytes:
    """The SOA record of a zone; `server`: the name of its server in wire format. The negative answers of the zone may
    be kept for `ttl` seconds (RFC 2308, 5)."""
    mailbox = b"\x0ahostmaster" + server[1 + server[0] :]
    data = server + mailbox + struct.pack("!IIIII", serial & 0xFFFFFFFF, 3600, 600, 86400, ttl)
    return record(SOA, ttl, data, owner)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to a question of one name and type, ready to be sent. `records`: each as bytes; the order
    changes from answer to answer."""

    code: int = NOERROR
    records: tuple[bytes, ...] = ()
    authority: bytes = b""
    twice: bytes = b""
    """The records twice in a row if all have one size, so that each order is a slice of it."""

    @classmethod
    def of(cls, records: Sequence[bytes]) -> Answer:
        """A positive answer."""
        whole = b"".join(records)
        same = len({len(each) for each in records}) == 1
        return cls(records=tuple(records), twice=whole + whole if same else b"")


def encode(question: Question, answer: Answer, turn: int, limit: int) -> bytes:
    """The whole message, at most `limit` bytes; records that do not fit are left out, and TC is set. `turn`: the record
    that comes first."""
    count, records = len(answer.records), answer.records
    opt = _opt(question.edns, answer.code) if question.edns is not None else b""
    room = limit - HEADER - len(question.raw) - len(opt)
    authoritative = 0 if answer.code in (REFUSED, BADVERS) else AA
    flags = QR | authoritative | RA | (question.flags & (RD | CD)) | answer.code & 0xF
    authority, authorities = answer.authority, 1 if answer.authority else 0
    if answer.twice:
        size = len(records[0])
        start = turn % count * size
        if count * size > room:
            count, flags = max(0, room // size), flags | TC
        body = answer.twice[start : start + count * size]
    elif records:
        first = turn % count
        kept, used = [], 0
        for each in (*records[first:], *records[:first]):
            if used + len(each) > room:
                flags |= TC
                break
            kept.append(each)
            used += len(each)
        count, body = len(kept), b"".join(kept)
    else:
        body = b""
        if len(authority) > room:
            authority, authorities = b"", 0
    head = _HEAD.pack(question.id, flags, 1, count, authorities, 1 if opt else 0)
    return b"".join((head, question.raw, body, authority, opt))


@dataclass(frozen=True, slots=True)
class Ready:
    """An answer as bytes, but for the question's id and the order of its records. `head` and `tail`: what is before and
    behind the records; `twice`, `size`: as in `Answer`; `span`: of all records, in bytes."""

    head: bytes
    twice: bytes
    size: int
    span: int
    tail: bytes

    def whole(self, ident: bytes, turn: int) -> bytes:
        """The message. `turn`: the record that comes first."""
        start = turn * self.size % self.span if self.span else 0
        return ident + self.head + self.twice[start : start + self.span] + self.tail


def ready(whole: bytes, answer: Answer) -> Ready:
    """The form of an answer that was encoded whole, for further questions with the same bytes."""
    if not answer.twice:
        return Ready(whole[2:], b"", 0, 0, b"")
    span, size = len(answer.twice) // 2, len(answer.records[0])
    at = len(whole) - _OPT_SIZE * whole[11] - span  # the only additional record is OPT
    return Ready(whole[2:at], answer.twice, size, span, whole[at + span :])


def _opt(edns: Edns, code: int) -> bytes:
    extended = (code >> 4) << 24 | (0x8000 if edns.dnssec else 0)
    return b"\0" + struct.pack("!HHIH", OPT, LARGEST_UDP, extended, 0)


def error(message: bytes, code: int) -> bytes:
    """The answer to a message that is no question: its id, and the code."""
    ident, flags = struct.unpack_from("!HH", message)
    return _HEAD.pack(ident, QR | RA | (flags & (OPCODE | RD)) | code, 0, 0, 0, 0)
