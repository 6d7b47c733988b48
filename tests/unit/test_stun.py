"""STUN's messages (model/stun.py): RFC 5769's test vectors, and what is no answer."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.daemon.model import stun
from cni.daemon.nat.stun_exchange import Query, StunExchange

TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
HEAD4 = "0101003c2112a442b7e7a701bc34d686fa87dfae"
SOFTWARE = "8022000b7465737420766563746f7220"
IPV4 = bytes.fromhex(
    HEAD4 + SOFTWARE + "002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96"
)
IPV6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae" + SOFTWARE + "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c"
)
SERVER = (ipaddress.ip_address("198.51.100.7"), 3478)


@pytest.mark.parametrize(
    ("message", "mapped"),
    [(IPV4, ("192.0.2.1", 32853)), (IPV6, ("2001:db8:1234:5678:11:2233:4455:6677", 32853))],
    ids=["RFC 5769, 2.2", "RFC 5769, 2.3"],
)
def test_the_vectors_of_rfc_5769(message: bytes, mapped: tuple[str, int]) -> None:
    answer = stun.parse_answer(message)
    assert answer.transaction == TRANSACTION
    assert answer.mapped == (ipaddress.ip_address(mapped[0]), mapped[1])


def test_a_request_has_cookie_and_fingerprint() -> None:
    request = stun.request(TRANSACTION)
    assert request[:8].hex() == "000100082112a442"
    assert request[20:24].hex() == "80280004"
    assert len(request) == 28
    changed = stun.request(TRANSACTION, stun.CHANGE_ADDRESS | stun.CHANGE_PORT)
    assert changed[20:28].hex() == "0003000400000006"


def test_a_wrong_fingerprint_a_cut_and_a_long_attribute_are_refused() -> None:
    for wrong in (IPV4[:-1] + b"\0", IPV4[:-4], IPV4[:23], b"", stun.request(TRANSACTION)):
        with pytest.raises(ValueError, match=r"\w"):
            stun.parse_answer(wrong)
    long = bytes.fromhex("010100082112a442" + TRANSACTION.hex() + "002000ff0001a147")
    with pytest.raises(ValueError, match="longer than the message"):
        stun.parse_answer(long)


def test_an_error_has_its_number() -> None:
    error = bytes.fromhex("011100082112a442" + TRANSACTION.hex() + "0009000400000414")
    assert stun.parse_answer(error).error == 420


@given(st.binary(max_size=200), st.integers(0, 120), st.integers(0, 255))
def test_no_datagram_raises_anything_else(data: bytes, at: int, value: int) -> None:
    damaged = bytearray(IPV4)
    damaged[at % len(damaged)] = value
    for message in (data, bytes(damaged)):
        try:
            stun.parse_answer(message)
        except ValueError:
            continue


def test_requests_are_repeated_until_the_answer_and_a_second_answer_counts_for_nothing() -> None:
    exchange = StunExchange([Query(SERVER)], now=100.0)
    ((server, first),) = exchange.due(100.0)
    assert server == SERVER
    assert exchange.due(100.4) == []
    assert exchange.next_due() == 100.5
    ((_, second),) = exchange.due(100.5)
    assert second == first  # RFC 8489, 6.2.1: the same transaction
    answer = bytes.fromhex("0101000c2112a442") + first[8:20] + bytes.fromhex("002000080001a147e112a643")
    reply = exchange.take(answer, 100.6)
    assert reply is not None
    assert reply.seconds == pytest.approx(0.1)
    assert exchange.is_over(100.6)
    assert exchange.take(answer, 100.7) is None


def test_a_dead_server_is_given_up() -> None:
    exchange = StunExchange([Query(SERVER)], now=0.0)
    assert sum(len(exchange.due(at / 10)) for at in range(30)) == len(stun.RETRANSMISSIONS)
    assert not exchange.is_over(2.4)
    assert exchange.is_over(2.5)
