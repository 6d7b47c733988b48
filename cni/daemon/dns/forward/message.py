"""DNS messages as bytes (RFC 1035, 4): the question of a client, the question to a server, and the answer that comes
back. No I/O.

Names are not decoded: a name is its octets, in lower case where two are compared. An answer keeps its records as they
came, because their compressed names point into the question, which keeps its place and length.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

HEADER = 12
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
LEAST_SIZE = 512  # octets of an answer over UDP that every client takes (RFC 1035, 4.2.1)
MOST_SIZE = 1232  # octets over UDP that no path of the Internet's least IPv6 MTU, 1280, fragments
MOST_OVER_TCP = 65535
LONGEST_NAME = 255  # octets with the lengths of labels and the root's (RFC 1035, 2.3.4)
MOST_TTL = 300  # seconds that an answer is kept, whatever its records say
MOST_NEGATIVE = 30  # seconds for "no such name" and "no such record"

_QUERY_BUT_RD = 0xF8  # of the third octet: the bits QR and OPCODE of a plain question are 0; AA and TC do not matter
_RD, _TC, _RA, _AD, _CD = 0x01, 0x02, 0x80, 0x20, 0x10
_ONE_QUESTION = b"\0\1\0\0\0\0"
_NO_MORE, _ONE_MORE = b"\0\0", b"\0\1"
_SOA, _NS, _OPT = 6, 2, 41
_META = (249, 250, 251, 252)  # TKEY, TSIG, IXFR, AXFR: between two servers that know each other
_RECORD = struct.Struct("!HHIH")
_COUNTS = struct.Struct("!4H")
_TTL = struct.Struct("!I")
_OPT_RECORD = struct.Struct("!BHHBBHH")
_OPTS = {do: _OPT_RECORD.pack(0, _OPT, MOST_SIZE, 0, 0, do, 0) for do in (0, 0x8000)}


class Question(NamedTuple):
    """A client's question. `key`: equal for questions with the same answer: the name in lower case, type, class, and
    the bits DO and CD. `wire`: the question as the client wrote it. `size`: the largest answer over UDP; `edns`:
    whether the client sent an OPT record."""

    ident: bytes
    key: bytes
    wire: bytes
    flags: bytes
    size: int
    edns: bool

    @property
    def name(self) -> bytes:
        """The name in lower case."""
        return self.key[:-5]

    @property
    def wants_do(self) -> bool:
        """The bit DO (RFC 3225)."""
        return bool(self.key[-1] & 1)

    @property
    def wants_cd(self) -> bool:
        """The bit CD (RFC 4035, 3.2.2)."""
        return bool(self.flags[1] & _CD)


@dataclass(slots=True)
class Answer:
    """An answer without header and question. `flags`: the fourth octet of the header, AD and the code; `counts`: of
    the three sections of records; `ttls`: offset in `body` and seconds, of each record; `lifetime`: seconds that it
    may be kept, 0 where it must not be; `usable`: false for the failure of a server, and a referral."""

    flags: int
    counts: tuple[int, int, int]
    body: bytes
    ttls: tuple[tuple[int, int], ...] = ()
    lifetime: int = 0
    usable: bool = True
    _age: int = field(default=-1, init=False)
    _aged: bytes = field(default=b"", init=False)

    @property
    def code(self) -> int:
        """The code of the header, without the part in an OPT record."""
        return self.flags & 0x0F

    def aged(self, age: int) -> bytes:
        """The records as they are `age` seconds later; kept until the age is another one."""
        if age == self._age:
            return self._aged
        body = bytearray(self.body)
        for at, ttl in self.ttls:
            _TTL.pack_into(body, at, max(0, ttl - age))
        made = bytes(body)
        self._aged, self._age = made, age
        return made

    def stale(self, ttl: int) -> bytes:
        """The records with the same TTL (RFC 8767, 4)."""
        body = bytearray(self.body)
        for at, _ in self.ttls:
            _TTL.pack_into(body, at, ttl)
        return bytes(body)


FAILURE = Answer(SERVFAIL, (0, 0, 0), b"", usable=False)
NO_SERVER = Answer(REFUSED, (0, 0, 0), b"", usable=False)


def read_question(query: bytes) -> Question | int | None:
    """The question of a client's message; a code, if the message is refused with it; None for what is no question.

    The octets up to the first zero are taken for the name: where they are none, `well_formed` says so, which a
    question does not have to pass whose key is known.
    """
    size = len(query)
    if size < HEADER or query[2] & 0x80:
        return None
    if query[2] & _QUERY_BUT_RD:
        return NOTIMP
    end = query.find(0, HEADER) + 5
    if end <= HEADER or size < end or query[4:10] != _ONE_QUESTION:
        return FORMERR
    more = query[10:12]
    most, bits = LEAST_SIZE, (query[3] & _CD) >> 3
    edns = False
    if more != _NO_MORE and query[end : end + 3] == b"\0\0\x29":
        if more != _ONE_MORE or size < end + 11:
            return FORMERR
        if query[end + 6]:
            return BADVERS
        edns = True
        bits |= query[end + 7] >> 7
        most = min(MOST_SIZE, max(LEAST_SIZE, query[end + 3] << 8 | query[end + 4]))
    name = end - 5
    key = query[HEADER:name].lower() + query[name:end] + bytes((bits,))
    return Question(query[:2], key, query[HEADER:end], query[2:4], most, edns)


def well_formed(question: Question) -> int:
    """0 for a question that can be forwarded, else the code of its refusal."""
    wire = question.wire
    at = 0
    while wire[at]:
        if wire[at] > 63:
            return FORMERR
        at += wire[at] + 1
        if at >= len(wire) - 4:
            return FORMERR
    if at + 5 != len(wire) or at >= LONGEST_NAME:
        return FORMERR
    kind, of_class = wire[-4] << 8 | wire[-3], wire[-2] << 8 | wire[-1]
    if kind in _META:
        return NOTIMP
    return NOERROR if of_class == 1 and kind not in (0, _OPT) else REFUSED


def refusal(query: bytes, code: int) -> bytes:
    """The answer with a code to a message that `read_question` refused: header alone, with an OPT record where the
    code needs one."""
    head = query[:2] + bytes((0x80 | query[2] & 0x79, _RA | code & 0x0F))
    if code > 15:
        return head + b"\0\0\0\0\0\0\0\1" + _OPT_RECORD.pack(0, _OPT, MOST_SIZE, code >> 4, 0, 0, 0)
    return head + b"\0\0\0\0\0\0\0\0"


def write_answer(question: Question, answer: Answer, body: bytes, most: int) -> bytes:
    """The message to a client; with more than `most` octets, the question alone and TC."""
    ident, key, wire, flags, _, edns = question
    first, second = 0x80 | flags[0] & _RD, _RA | answer.flags | flags[1] & _CD
    if not (flags[1] & _AD or key[-1] & 1):
        second &= ~_AD
    answers, authorities, more = answer.counts
    opt = _OPTS[0x8000 if key[-1] & 1 else 0] if edns else b""
    if HEADER + len(wire) + len(body) + len(opt) > most:
        first |= _TC
        answers = authorities = more = 0
        body = b""
    return b"".join(
        (ident, bytes((first, second)), _COUNTS.pack(1, answers, authorities, more + edns), wire, body, opt)
    )


def write_question(ident: bytes, wire: bytes, question: Question, with_edns: bool) -> bytes:
    """The message to a server. `wire`: the question in the letters that the answer must repeat."""
    second = _AD | (_CD if question.wants_cd else 0)
    head = ident + bytes((_RD, second)) + _COUNTS.pack(1, 0, 0, int(with_edns))
    return head + wire + (_OPTS[0x8000 if question.wants_do else 0] if with_edns else b"")


def mixed_case(wire: bytes, random: int) -> bytes:
    """The question with its letters in upper or lower case by the bits of a random number: an answer that repeats them
    came from a server that has seen the question (draft-vixie-dnsext-dns0x20)."""
    mixed = bytearray(wire[:-4].lower())
    for at, octet in enumerate(mixed):
        if 97 <= octet <= 122:  # no length of a label: those are at most 63
            mixed[at] = octet ^ (random & 1) << 5
            random >>= 1
    return bytes(mixed) + wire[-4:]


def is_truncated(message: bytes) -> bool:
    """The bit TC."""
    return bool(message[2] & _TC)


def read_answer(message: bytes, end: int) -> Answer:
    """The answer in a server's message, whose header and question, up to `end`, are the expected ones. Raises
    ValueError for a message that is none."""
    counts = _COUNTS.unpack_from(message, 4)[1:]
    ttls: list[tuple[int, int]] = []
    kept, seen, at = [0, 0, 0], _Seen(), end
    try:
        for section in range(3):
            for _ in range(counts[section]):
                start = at
                at = _after_name(message, at)
                kind, _, ttl, length = _RECORD.unpack_from(message, at)
                after = at + _RECORD.size + length
                if after > len(message):
                    raise ValueError("a record that ends behind the message")
                if kind == _OPT:
                    seen.note_opt(ttl)
                    at = start
                    break  # behind it are further additional records only, which a client can do without
                ttl = 0 if ttl >> 31 else ttl
                seen.note(section, kind, ttl, message[after - 4 : after] if length >= 22 else b"")
                ttls.append((at + 4 - end, min(ttl, MOST_TTL)))
                kept[section] += 1
                at = after
    except (IndexError, struct.error) as error:
        raise ValueError("a record that ends behind the message") from error
    code = message[3] & 0x0F
    answered = not seen.extended and (
        code == NXDOMAIN or (code == NOERROR and not seen.is_referral(kept[0], bool(message[3] & _RA)))
    )
    lifetime = seen.lifetime(code, kept[0]) if answered else 0
    flags = message[3] & _AD | code
    return Answer(flags, (kept[0], kept[1], kept[2]), message[end:at], tuple(ttls), lifetime, answered)


@dataclass(slots=True)
class _Seen:
    """What decides how long an answer may be kept. `negative`: by the SOA record (RFC 2308, 5); -1 without one."""

    least: int = MOST_TTL
    negative: int = -1
    has_ns: bool = False
    extended: int = 0

    def note(self, section: int, kind: int, ttl: int, last: bytes) -> None:
        """One record; `last`: the last four octets of its data, which are an SOA's MINIMUM."""
        if section == 0:
            self.least = min(self.least, ttl)
        elif section == 1 and kind == _SOA and last:
            self.negative = min(ttl, int.from_bytes(last, "big"), MOST_NEGATIVE)
        elif section == 1 and kind == _NS:
            self.has_ns = True

    def note_opt(self, ttl: int) -> None:
        """The OPT record, by its TTL: the upper bits of the code (RFC 6891, 6.1.3)."""
        self.extended = ttl >> 24

    def is_referral(self, answers: int, recursive: bool) -> bool:
        """Whether the server only names other servers: it does not do what it is asked."""
        return not answers and self.has_ns and self.negative < 0 and not recursive

    def lifetime(self, code: int, answers: int) -> int:
        """Seconds; 0 for a negative answer without an SOA (RFC 2308, 5)."""
        if self.negative >= 0:
            return min(self.least, self.negative)
        return self.least if answers and code == NOERROR else 0


def _after_name(message: bytes, at: int) -> int:
    """The offset behind a name. Raises IndexError, ValueError."""
    while True:
        length = message[at]
        if length >= 0xC0:
            return at + 2
        if length > 63:
            raise ValueError("a label of an unknown kind")
        at += length + 1
        if not length:
            return at
