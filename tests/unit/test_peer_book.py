"""The book of peers: what a device would make of the same changes."""

from __future__ import annotations

import pytest

from cni.daemon.model import peer_table
from cni.daemon.model.peer_table import Changes, Peer
from cni.errors import InvalidConfig
from cni.overlay import wire

A = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
B = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
ENDPOINT = "203.0.113.7:51420"


def asked(key: str = A, endpoint: str = ENDPOINT, allowed: str = "10.200.0.17/32", keepalive: int = 25) -> wire.AddPeer:
    return wire.AddPeer(key, endpoint, allowed, keepalive)


def after(book: dict[str, Peer], changes: Changes) -> dict[str, Peer]:
    rest = {key: peer for key, peer in book.items() if changes.get(key, peer) is not None}
    return {**rest, **{key: peer for key, peer in changes.items() if peer is not None}}


def book_of(*asks: wire.AddPeer, service: str | None = None) -> dict[str, Peer]:
    book: dict[str, Peer] = {}
    for ask in asks:
        book = after(book, peer_table.put(book, peer_table.of_request(ask, service)))
    return book


def allowed(book: dict[str, Peer], key: str = A, service: str | None = None) -> tuple[str, ...]:
    return book[peer_table.key_of(service, key)].allowed_ips


def test_a_comma_list_is_taken_apart_and_made_canonical() -> None:
    book = book_of(asked(allowed="10.200.0.17/32, 10.200.9.9/26,,10.200.9.0/26,FD00::1/64"))
    assert allowed(book) == ("10.200.0.17/32", "10.200.9.0/26", "fd00::/64")


def test_adding_again_replaces() -> None:
    book = book_of(asked(allowed="10.200.1.0/26,10.200.2.0/26"), asked(allowed="10.200.3.0/26", keepalive=0))
    assert len(book) == 1
    assert allowed(book) == ("10.200.3.0/26",)
    assert book[A].keepalive == 0


def test_a_network_belongs_to_one_peer_and_does_not_come_back() -> None:
    book = book_of(asked(A, allowed="10.200.1.0/26,10.200.2.0/26"), asked(B, allowed="10.200.2.0/26"))
    assert allowed(book, A) == ("10.200.1.0/26",)
    book = after(book, {peer_table.key_of(None, B): None})
    assert allowed(book, A) == ("10.200.1.0/26",)


def test_devices_do_not_meet() -> None:
    book = {**book_of(asked(A)), **book_of(asked(A, allowed="10.200.0.17/32"), service="db")}
    assert len(book) == 2
    changes = peer_table.allow(book, "db", A, "10.200.9.0/26")
    book = after(book, changes)
    assert allowed(book, A) == ("10.200.0.17/32",)
    assert allowed(book, A, "db") == ("10.200.0.17/32", "10.200.9.0/26")
    assert [peer.service for peer in peer_table.of_device(book, "db")] == ["db"]


def test_allowing_twice_is_allowing_once() -> None:
    book = book_of(asked())
    book = after(book, peer_table.allow(book, None, A, "10.200.9.7/26"))
    assert peer_table.allow(book, None, A, "10.200.9.0/26") == {}
    assert allowed(book) == ("10.200.0.17/32", "10.200.9.0/26")


def test_allowing_takes_from_others() -> None:
    book = book_of(asked(A, allowed="10.200.1.0/26"), asked(B, allowed="10.200.2.0/26"))
    book = after(book, peer_table.allow(book, None, B, "10.200.1.0/26"))
    assert (allowed(book, A), allowed(book, B)) == ((), ("10.200.2.0/26", "10.200.1.0/26"))


def test_disallowing_twice_is_disallowing_once() -> None:
    book = book_of(asked())
    book = after(book, peer_table.disallow(book, None, A, "10.200.0.17/32"))
    assert allowed(book) == ()
    assert peer_table.disallow(book, None, A, "10.200.0.17/32") == {}
    assert peer_table.disallow(book, None, B, "10.200.0.17/32") == {}


def test_an_unknown_peer_is_allowed_nothing() -> None:
    with pytest.raises(InvalidConfig) as caught:
        peer_table.allow({}, None, A, "10.200.9.0/26")
    assert caught.value.msg == (f"overlay engine error: cannot add allowed_ip 10.200.9.0/26 to unknown peer {A}")


@pytest.mark.parametrize("endpoint", ["edge.example.net:51420", "EDGE-1.example.:1", "localhost:65535"])
def test_an_endpoint_may_be_a_name(endpoint: str) -> None:
    assert peer_table.of_request(asked(endpoint=endpoint), None).endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["", "203.0.113.7", "a.example:0", "a..net:5", "1.2.3:51420", "-a:5", "2001:db8::1:51420", "1.2.3.4:65536"],
)
def test_an_endpoint_is_an_address_and_a_port(endpoint: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        peer_table.of_request(asked(endpoint=endpoint), None)
    assert caught.value.msg == f"invalid peer endpoint {endpoint}: invalid socket address syntax"


@pytest.mark.parametrize(
    "cidr",
    ["10.200.0.17", "10.200.0.0/33", "web", "/24", "10.0.0.0/255.0.0.0", "10.0.0.0/0.255.255.255", "fe80::%eth0/64"],
)
def test_what_is_no_network_is_refused(cidr: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        peer_table.of_request(asked(allowed=f"10.200.1.0/26,{cidr}"), None)
    assert caught.value.msg.startswith(f"invalid CIDR {cidr}: ")


@pytest.mark.parametrize("key", ["", "short", A[:-4], A + A, "!" * 44])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidConfig, match="invalid public key"):
        peer_table.of_request(asked(key), None)


def test_one_key_has_one_spelling() -> None:
    loose = A[:-2] + chr(ord(A[-2]) + 1) + "="  # the same 32 bytes: the last digit's low bits are not among them
    assert peer_table.of_request(asked(loose), None).public_key == A


def test_the_longest_keepalive() -> None:
    assert peer_table.of_request(asked(keepalive=65535), None).keepalive == 65535
    with pytest.raises(InvalidConfig, match="keepalive"):
        peer_table.of_request(asked(keepalive=65536), None)


def test_candidates_that_cannot_be_read_are_dropped() -> None:
    good = wire.Candidate("host", "203.0.113.7:51420", 100)
    ask = wire.AddPeer(
        A,
        ENDPOINT,
        "10.200.0.17/32",
        25,
        (good, wire.Candidate("host", "nowhere", 1), wire.Candidate("carrier-pigeon", "203.0.113.7:51420", 1)),
    )
    assert peer_table.of_request(ask, None).candidates == (good,)
