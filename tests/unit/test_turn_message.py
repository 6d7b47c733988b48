"""TURN messages (model/turn_message.py) and the addresses of relays (model/relay_address.py); tests/nat has coturn."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import struct

import pytest

from cni.daemon.model import stun, turn_message
from cni.daemon.model.relay_address import relay_address
from cni.daemon.model.relay_leg import TurnLeg

TRANSACTION = bytes(range(12))
PEER = (ipaddress.ip_address("203.0.113.10"), 5)
BY = turn_message.credentials("node", "secret", b"example.org", b"nonce")


def success(kind: int, body: bytes, key: bytes) -> bytes:
    head = stun.HEAD.pack(kind, len(body) + 24, stun.MAGIC_COOKIE, TRANSACTION) + body
    return head + struct.pack("!HH", 8, 20) + hmac.digest(key, head, hashlib.sha1)


def relayed(port: int) -> bytes:
    number = int(ipaddress.IPv4Address("198.51.100.1")) ^ stun.MAGIC_COOKIE
    return struct.pack("!HHBBHI", 0x16, 8, 0, 1, port ^ (stun.MAGIC_COOKIE >> 16), number)


def test_the_key_is_of_user_realm_and_password() -> None:
    assert BY.key == hashlib.md5(b"node:example.org:secret").digest()


def test_an_answer_counts_only_with_the_right_key() -> None:
    answer = success(0x103, relayed(42000), BY.key)
    assert turn_message.parse_answer(answer, BY.key).relayed == (ipaddress.ip_address("198.51.100.1"), 42000)
    for key in (None, bytes(16)):
        with pytest.raises(ValueError):
            turn_message.parse_answer(answer, key)
    with pytest.raises(ValueError):
        turn_message.parse_answer(
            answer[:-24] + answer[-24:].replace(answer[-1:], b"\0" if answer[-1] else b"\1"), BY.key
        )


def test_data_of_a_channel_is_padded_in_a_stream_alone() -> None:
    assert turn_message.channel_data(0x4000, b"abcde", is_stream=False) == b"\x40\0\0\x05abcde"
    assert turn_message.channel_data(0x4000, b"abcde", is_stream=True) == b"\x40\0\0\x05abcde\0\0\0"
    assert turn_message.parse_channel_data(b"\x40\0\0\x05abcde\0\0\0") == (0x4000, b"abcde")


def test_a_session_begins_with_the_servers_realm_and_a_stale_nonce_is_renewed() -> None:
    leg = TurnLeg("node", "secret", is_stream=False)
    (first,) = leg.advance(0.0)
    assert len(first) == 28, "without credentials"
    transaction = first[8:20]
    for error, nonce in ((401, b"one."), (438, b"two.")):
        body = struct.pack("!HHHBB", 9, 4, 0, error // 100, error % 100)
        body += struct.pack("!HH", 0x14, 4) + b"real" + struct.pack("!HH", 0x15, 4) + nonce
        leg.take(stun.HEAD.pack(0x113, len(body), stun.MAGIC_COOKIE, transaction) + body, 0.1)
        (again,) = leg.advance(0.1)
        assert nonce in again
        transaction = again[8:20]
    assert leg.fault == ""


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("relay.example:3478", ("zlayer", "udp", "relay.example", 3478)),
        ("turn:198.51.100.7", ("turn", "udp", "198.51.100.7", 3478)),
        ("turn:turn.example:3479?transport=tcp", ("turn", "tcp", "turn.example", 3479)),
        ("turns:[2001:db8::1]", ("turn", "tls", "2001:db8::1", 5349)),
    ],
)
def test_the_address_of_a_relay(text: str, address: tuple[str, str, str, int]) -> None:
    assert relay_address(text) == address


@pytest.mark.parametrize(
    "text", ["turn:", "relay.example", "turns:a:1?transport=udp", "turn:a?transport=sctp", "turn:a:0x1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        relay_address(text)
