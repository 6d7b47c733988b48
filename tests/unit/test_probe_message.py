"""Probes (model/probe_message.py): their form, which node can make one, and X25519 by both libraries."""

from __future__ import annotations

import base64
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.daemon import public_keys
from cni.daemon.model import keys, probe_message
from cni.daemon.model.probe_message import Probe
from cni.daemon.nat.pair_keys import PairKeys

SCALAR = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
POINT = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
SHARED = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
KEY = bytes(range(32))
SEEN = (ipaddress.ip_address("203.0.113.9"), 9073)
PONG = Probe("pong", b"receiver", b"sender__", b"transact", SEEN)


@pytest.mark.parametrize("agree", [keys.x25519_shared, public_keys.agreement()], ids=["python", "libcrypto"])
def test_the_agreement_of_rfc_7748(agree) -> None:
    assert agree(SCALAR, POINT).hex() == SHARED  # section 5.2, the first vector
    with pytest.raises((OSError, ValueError)):
        agree(SCALAR, bytes(32))


def test_both_ends_have_one_key_and_a_third_node_has_another() -> None:
    private = [keys.generate() for _ in range(3)]
    public = [public_keys.public_of(key) for key in private]
    books = []
    for own in private:
        book = PairKeys()
        book.update(own, [key for key in public if key != public_keys.public_of(own)])
        books.append(book)
    assert books[0].by_peer[public[1]] == books[1].by_peer[public[0]]
    assert books[0].by_peer[public[1]] != books[0].by_peer[public[2]]
    assert books[0].peer_of(books[1].own) == public[1]
    books[0].update(private[0], [public[2]])
    assert books[0].peer_of(books[1].own) == ""


@pytest.mark.parametrize("seen", [None, SEEN, (ipaddress.ip_address("2001:db8::9"), 1)])
def test_a_probe_comes_back_whole(seen) -> None:
    probe = Probe("ping" if seen is None else "pong", b"receiver", b"sender__", b"transact", seen)
    message = probe_message.encode(probe, KEY)
    assert len(message) == probe_message.SIZE
    assert probe_message.decode(message, KEY) == probe
    assert probe_message.sender_of(message) == b"sender__"
    assert message[probe_message.RECEIVER_AT :][: probe_message.NAME] == b"receiver"


def test_the_first_byte_is_none_of_the_protocols_at_that_port() -> None:
    first = probe_message.encode(PONG, KEY)[0]
    assert first not in (1, 2, 3, 4)  # WireGuard
    assert first & 0xC0 == 0xC0  # RFC 7983: neither STUN, TURN nor RTP


@given(st.integers(0, probe_message.SIZE - 1), st.integers(1, 255))
def test_no_changed_byte_passes(at: int, by: int) -> None:
    message = bytearray(probe_message.encode(PONG, KEY))
    message[at] ^= by
    with pytest.raises(ValueError, match=r"\w"):
        probe_message.decode(bytes(message), KEY)


@given(st.binary(max_size=100))
def test_no_other_datagram_is_a_probe(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        probe_message.decode(data, KEY)


def test_another_key_makes_no_probe() -> None:
    with pytest.raises(ValueError, match="tag"):
        probe_message.decode(probe_message.encode(PONG, bytes(32)), KEY)
    assert base64.b64encode(probe_message.key_of(bytes(32))) != base64.b64encode(bytes(32))
