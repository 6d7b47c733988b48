"""ZLayer's relay protocol (model/zlayer_relay.py, model/relay_sessions.py) against bytes of ZLayer's own code."""

from __future__ import annotations

import hashlib
import ipaddress
import itertools

import pytest

from cni.daemon.model import relay_sessions, zlayer_relay
from cni.daemon.model.relay_leg import RENEW, RETRY, ZlayerLeg
from cni.daemon.model.relay_sessions import Bucket, Sessions
from cni.daemon.model.zlayer_relay import Control, Place

KEY = zlayer_relay.key_of("secret")
ALLOCATE = "0100020175844a923a0ecce7df949db4a6d4e92cce43f7d01663496fedcd2d940a1c0d60f3"
"""What zlayer-overlay 0.14.3 sends for the user `u` and the credential `secret`."""
ID = bytes(range(16))


def at(text: str) -> Place:
    host, _, port = text.rpartition(":")
    return ipaddress.ip_address(host), int(port)


CLIENT, OTHER, PEER, RELAY = at("203.0.113.6:9073"), at("203.0.113.7:1"), at("203.0.113.10:5"), at("198.51.100.1:0")


def tagged(head: str) -> bytes:
    return bytes.fromhex(head) + hashlib.blake2b(bytes.fromhex(head), digest_size=32, key=KEY).digest()


def test_upstreams_own_request_is_made_and_read() -> None:
    assert zlayer_relay.encode(Control("allocate", "u"), KEY).hex() == ALLOCATE
    assert zlayer_relay.decode(bytes.fromhex(ALLOCATE), KEY) == Control("allocate", "u")


@pytest.mark.parametrize(
    ("message", "head"),
    [
        (
            Control("allocated", session=ID, place=at("198.51.100.1:41000"), lifetime=600),
            f"02001b01c6336401a028{ID.hex()}00000258",
        ),
        (Control("refused", "max sessions reached"), f"030014{b'max sessions reached'.hex()}"),
        (Control("permission", session=ID, place=at("203.0.113.10:5")), f"040017{ID.hex()}01cb00710a0005"),
        (Control("permitted"), "050000"),
        (Control("refresh", session=ID, lifetime=600), f"060014{ID.hex()}00000258"),
        (Control("refreshed", lifetime=600), "07000400000258"),
        (Control("deallocate", session=ID), f"080010{ID.hex()}"),
    ],
    ids=lambda value: value.kind if isinstance(value, Control) else "",
)
def test_every_message_byte_for_byte(message: Control, head: str) -> None:
    assert zlayer_relay.encode(message, KEY) == tagged(head)
    assert zlayer_relay.decode(tagged(head), KEY) == message


def test_data_carries_ten_or_twenty_two_bytes_more() -> None:
    four = zlayer_relay.encode_data(PEER, b"abc")
    assert four == bytes.fromhex("80000a01cb00710a0005") + b"abc"
    assert zlayer_relay.decode_data(four) == (PEER, b"abc")
    six = zlayer_relay.encode_data((ipaddress.ip_address("2001:db8::1"), 7), b"")
    assert len(six) == 22
    assert zlayer_relay.decode_data(six) == ((ipaddress.ip_address("2001:db8::1"), 7), b"")


@pytest.mark.parametrize("at_byte", range(37))
def test_a_changed_byte_is_refused(at_byte: int) -> None:
    changed = bytearray.fromhex(ALLOCATE)
    changed[at_byte] ^= 1
    with pytest.raises(ValueError):
        zlayer_relay.decode(bytes(changed), KEY)


@pytest.mark.parametrize("head", ["0100020275", "010000", "040010" + ID.hex(), "060010" + ID.hex(), "0700050000025800"])
def test_an_authentic_message_of_another_length_is_refused(head: str) -> None:
    with pytest.raises(ValueError):
        zlayer_relay.decode(tagged(head), KEY)


class Server:
    """Sessions with a clock that the test holds."""

    def __init__(self, most: int = 4) -> None:
        self.now, self.ids, self.ports = 0.0, itertools.count(1), itertools.count(41000)
        fresh = lambda: next(self.ids).to_bytes(16, "big")  # noqa: E731
        self.sessions = Sessions(most, fresh, lambda place: not place[0].is_loopback)

    def allocate(self, client: Place) -> Control:
        return self.sessions.allocated(client, lambda: next(self.ports), RELAY, self.now)

    def permitted(self, client: Place, peer: Place) -> Control:
        made = self.allocate(client)
        self.sessions.answer(client, Control("permission", session=made.session, place=peer))
        return made


def test_datagrams_pass_to_and_from_permitted_addresses_alone() -> None:
    server = Server()
    made = server.permitted(CLIENT, PEER)
    assert made.place is not None
    port = made.place[1]
    assert server.sessions.outwards(CLIENT, PEER, 0) == port
    assert server.sessions.outwards(CLIENT, OTHER, 0) == 0
    assert server.sessions.outwards(OTHER, PEER, 0) == 0
    assert server.sessions.inwards(port, (PEER[0], 9), 0) == CLIENT, "by address, whatever the port"
    assert server.sessions.inwards(port, OTHER, 0) is None


def test_a_recorded_request_gives_nothing_to_another_machine() -> None:
    server = Server()
    made = server.permitted(CLIENT, PEER)
    replayed = server.allocate(OTHER)
    assert server.sessions.answer(OTHER, Control("permission", session=made.session, place=PEER)) is None
    assert server.sessions.outwards(OTHER, PEER, 0) == 0
    assert server.sessions.answer(OTHER, Control("deallocate", session=made.session)) is None
    assert replayed.place is not None
    assert server.sessions.inwards(replayed.place[1], PEER, 0) is None
    server.now = relay_sessions.UNPROVEN + 1
    server.sessions.expire(server.now)
    assert [each.client for each in server.sessions] == [CLIENT]


def test_replays_take_no_room_from_others() -> None:
    server = Server(8)
    for number in range(6):
        server.permitted((CLIENT[0], 100 + number), PEER)
    for number in range(200):
        server.allocate((OTHER[0], 1000 + number))
    assert {client[1] for each in server.sessions if (client := each.client)[0] == CLIENT[0]} == set(range(100, 106))
    assert server.allocate(at("203.0.113.8:1")).kind == "allocated"


def test_two_hundred_sessions_over_time_fit_into_a_hundred() -> None:
    server = Server(100)
    for number in range(200):
        assert server.permitted((CLIENT[0], 1000 + number), PEER).kind == "allocated"
        server.now += 1


def test_a_full_server_of_busy_sessions_says_so_and_they_end_by_idleness() -> None:
    server = Server(2)
    for number in range(2):
        server.permitted((CLIENT[0], number), PEER)
    assert server.allocate(OTHER) == Control("refused", "max sessions reached")
    server.now = relay_sessions.IDLE + 1
    server.sessions.expire(server.now)
    assert len(server.sessions) == 0
    assert server.allocate(OTHER).kind == "allocated"


def test_a_repetition_gets_the_same_answer_and_a_second_request_upstreams_error() -> None:
    server = Server()
    assert server.allocate(CLIENT) == server.allocate(CLIENT)
    server.now = relay_sessions.REPEATED + 1
    assert server.allocate(CLIENT) == Control("refused", "allocation already exists")


def test_control_messages_are_bounded() -> None:
    bucket = Bucket(0.0)
    assert sum(bucket.take(0.0) for _ in range(1000)) == relay_sessions.BURST
    assert sum(bucket.take(1.0) for _ in range(1000)) == relay_sessions.RATE


def test_the_client_begins_permits_and_keeps_its_session() -> None:
    leg = ZlayerLeg("u", "secret")
    leg.want([PEER])
    assert [message.hex() for message in leg.advance(1.0)] == [ALLOCATE]
    assert leg.advance(1.1) == []
    assert [message.hex() for message in leg.advance(1.0 + RETRY[0])] == [ALLOCATE]
    made = Control("allocated", session=ID, place=at("198.51.100.1:41000"), lifetime=600)
    leg.take(zlayer_relay.encode(made, KEY), 1.6)
    assert leg.relayed == made.place
    assert leg.advance(1.6) == [zlayer_relay.encode(Control("permission", session=ID, place=PEER), KEY)]
    leg.take(zlayer_relay.encode(Control("permitted"), KEY), 1.7)
    assert leg.advance(1.7) == []
    assert leg.wrapped(PEER, b"x") == zlayer_relay.encode_data(PEER, b"x")
    assert leg.advance(1.7 + RENEW) != []


def test_a_relay_that_answers_nothing_is_lost() -> None:
    leg, now = ZlayerLeg("u", "secret"), 0.0
    while not leg.is_lost:
        leg.advance(now)
        now = max(leg.due(), now + 0.01)
    assert now == pytest.approx(sum(RETRY), abs=0.1)
