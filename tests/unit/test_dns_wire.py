"""DNS messages as bytes: what is a question, and how an answer is put together."""

from __future__ import annotations

import struct

import pytest

from cni.daemon.dns import wire
from cni.daemon.dns.wire import Answer, Malformed

WEB = wire.wire_name(["Web", "local"])
PLAIN = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + WEB + struct.pack("!HH", wire.A, wire.IN)


def opt(size: int = 4096, extended: int = 0, data: bytes = b"") -> bytes:
    return b"\0" + struct.pack("!HHIH", wire.OPT, size, extended, len(data)) + data


def with_additional(*records: bytes) -> bytes:
    return PLAIN[:10] + len(records).to_bytes(2, "big") + PLAIN[12:] + b"".join(records)


def test_a_question() -> None:
    question = wire.read(PLAIN)
    assert (question.id, question.type, question.klass) == (7, wire.A, wire.IN)
    assert question.raw == PLAIN[12:]
    assert question.name == wire.wire_name(["web", "local"])
    assert question.labels() == ["web", "local"]
    assert question.edns is None


@pytest.mark.parametrize(("size", "used"), [(0, 512), (512, 512), (1000, 1000), (4096, 1232)])
def test_the_size_of_edns_is_bounded(size: int, used: int) -> None:
    edns = wire.read(with_additional(opt(size, 0x8000, b"\0\x0a\0\0"))).edns
    assert edns is not None
    assert (edns.size, edns.version, edns.dnssec) == (used, 0, True)


def test_other_additional_records_are_passed_over() -> None:
    tsig = WEB + struct.pack("!HHIH", 250, 255, 0, 3) + b"abc"
    assert wire.read(with_additional(opt(), tsig)).edns is not None
    assert wire.read(with_additional(b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + b"abcd")).edns is None


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", None),
        (PLAIN[:11], None),
        (PLAIN[:2] + b"\x81\0" + PLAIN[4:], None),
        (PLAIN[:2] + b"\x28\0" + PLAIN[4:], wire.NOTIMP),
        (PLAIN[:5] + b"\0" + PLAIN[6:], wire.FORMERR),
        (PLAIN[:5] + b"\2" + PLAIN[6:], wire.FORMERR),
        (PLAIN[:7] + b"\1" + PLAIN[8:], wire.FORMERR),
        (PLAIN[:-1], wire.FORMERR),
        (PLAIN[:14], wire.FORMERR),
        (PLAIN[:12] + b"\x40" + PLAIN[13:], wire.FORMERR),
        (PLAIN[:12] + b"\xc0\x0c" + PLAIN[-4:], wire.FORMERR),
        (
            PLAIN[:12]
            + b"\x3f"
            + b"a" * 63
            + b"\x3f"
            + b"a" * 63
            + b"\x3f"
            + b"a" * 63
            + b"\x3f"
            + b"a" * 63
            + PLAIN[-5:],
            1,
        ),
        (with_additional(opt(), opt()), wire.FORMERR),
        (with_additional(opt()[:-1]), wire.FORMERR),
        (with_additional(b"\x01a" + opt()), wire.FORMERR),
        (with_additional(opt(data=b"abc")[:-1]), wire.FORMERR),
    ],
)
def test_what_is_no_question(message: bytes, code: int | None) -> None:
    with pytest.raises(Malformed) as error:
        wire.read(message)
    assert error.value.code == code


def test_a_label_with_a_dot_or_beyond_ascii_names_nothing_here() -> None:
    for part in (b"a.b", b"\xe4"):
        raw = bytes((len(part),)) + part + b"\0\0\1\0\1"
        assert wire.read(PLAIN[:12] + raw).labels() is None


def test_each_order_is_a_slice() -> None:
    records = [wire.address_record(f"10.0.0.{n}", 5) for n in (1, 2, 3)]
    question = wire.read(PLAIN)
    answers = [wire.encode(question, Answer.of(records), turn, 512) for turn in range(4)]
    bodies = [answer[12 + len(question.raw) :] for answer in answers]
    assert bodies[0] == b"".join(records)
    assert bodies[1] == records[1] + records[2] + records[0]
    assert bodies[3] == bodies[0]
    assert all(answer[12 : 12 + len(question.raw)] == question.raw for answer in answers)


@pytest.mark.parametrize("mixed", [False, True])
def test_what_does_not_fit_is_left_out_and_told(mixed: bool) -> None:
    records = [wire.address_record(f"10.0.0.{n}", 5) for n in range(1, 101)]
    records += [wire.address_record("fd00::1", 5)] * mixed
    question = wire.read(with_additional(opt(600)))
    whole = wire.encode(question, Answer.of(records), 0, 600)
    assert whole[2] & 2
    assert 600 - 16 < len(whole) <= 600
    count = int.from_bytes(whole[6:8], "big")
    assert len(whole) == 12 + len(question.raw) + 16 * count + 11


def test_a_negative_answer_has_its_soa_and_is_authoritative() -> None:
    soa = wire.start_of_authority(wire.wire_name(["local"]), wire.wire_name(["ns", "local"]), 9, 5)
    answer = wire.encode(wire.read(PLAIN), Answer(wire.NXDOMAIN, authority=soa), 0, 512)
    assert answer[2:4] == b"\x85\x83"
    assert answer[8:10] == b"\0\1"
    assert answer.endswith(soa)
    assert wire.encode(wire.read(PLAIN), Answer(wire.REFUSED), 0, 512)[2:4] == b"\x81\x85"
