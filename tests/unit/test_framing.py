"""Frames on a stream, whole, byte by byte, and with a tail."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.overlay.errors import FrameTooLarge, TruncatedFrame
from cni.overlay.framing import LARGEST, Framer, frame

BODIES = st.lists(st.binary(max_size=40), max_size=6)


def drain(framer):
    return list(iter(framer.next_frame, None))


def test_the_header_is_little_endian():
    assert frame(b"ab") == b"\x02\0\0\0ab"
    assert frame(b"x" * 258)[:4] == b"\x02\x01\0\0"


@settings(deadline=None)
@given(BODIES, st.binary(max_size=3))
def test_whole(bodies, tail):
    framer = Framer()
    framer.feed(b"".join(map(frame, bodies)) + tail)
    assert drain(framer) == bodies
    framer.eof()


@settings(deadline=None)
@given(BODIES)
def test_byte_by_byte(bodies):
    framer, got = Framer(), []
    for byte in b"".join(map(frame, bodies)):
        framer.feed(bytes([byte]))
        got += drain(framer)
    assert got == bodies
    framer.eof()


@settings(deadline=None)
@given(BODIES, st.lists(st.integers(1, 50), max_size=30))
def test_any_cut(bodies, cuts):
    framer, got, stream = Framer(), [], b"".join(map(frame, bodies))
    for cut in [*cuts, len(stream)]:
        framer.feed(stream[:cut])
        stream = stream[cut:]
        got += drain(framer)
    assert got == bodies


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=50), st.data())
def test_an_end_inside_a_body_is_an_error(body, data):
    framer = Framer()
    framer.feed(frame(b"whole") + frame(body)[: data.draw(st.integers(4, len(body) + 3))])
    assert drain(framer) == [b"whole"]
    with pytest.raises(TruncatedFrame, match="unexpected end of file"):
        framer.eof()


def test_an_empty_body_is_a_frame():
    framer = Framer()
    framer.feed(frame(b""))
    assert framer.next_frame() == b""
    assert framer.next_frame() is None


def test_the_limit_is_inclusive_both_ways():
    largest = bytes(LARGEST)
    framer = Framer()
    framer.feed(frame(largest))
    assert framer.next_frame() == largest
    with pytest.raises(FrameTooLarge, match=r"^frame too large: 8388609 bytes \(max 8388608\)$"):
        frame(bytes(LARGEST + 1))


def test_a_frame_over_the_limit_is_refused_from_its_header_and_for_good():
    framer = Framer()
    framer.feed(frame(b"before") + (LARGEST + 1).to_bytes(4, "little"))
    assert framer.next_frame() == b"before"
    for _ in range(2):
        with pytest.raises(FrameTooLarge):
            framer.next_frame()
    framer.feed(b"x" * 100)
    with pytest.raises(FrameTooLarge):
        framer.next_frame()
