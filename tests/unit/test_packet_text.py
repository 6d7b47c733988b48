"""What a logged packet is called: from bytes that a sender chose."""

from __future__ import annotations

import random
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from cni.daemon.fence import drop_log
from cni.daemon.fence.drop_log import Place
from cni.daemon.fence.packet_text import PacketEnds, read
from cni.daemon.fence.rules import Rule, plain_chain

FOUR = (IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"))
SIX = (IPv6Address("fd00::1"), IPv6Address("fd00::2"))
LINK = bytes.fromhex("02000000000202000000000188cc")


def four(protocol: int, rest: bytes, fragment: int = 0, options: bytes = b"") -> bytes:
    length = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | length, 0, 0, 0, fragment, 64, protocol, 0)
    return head + FOUR[0].packed + FOUR[1].packed + options + rest


def six(protocol: int, rest: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(rest), protocol, 64) + SIX[0].packed + SIX[1].packed + rest


PORTS = struct.pack(">HH", 1234, 80)


@pytest.mark.parametrize(
    ("ethertype", "packet", "ends"),
    [
        (0x0800, four(6, PORTS), PacketEnds("10.0.0.1", "10.0.0.2", "tcp", 1234, 80)),
        (0x0800, four(17, PORTS, options=b"\x07\x04\x04\0"), PacketEnds("10.0.0.1", "10.0.0.2", "udp", 1234, 80)),
        (0x0800, four(17, PORTS, fragment=3), PacketEnds("10.0.0.1", "10.0.0.2", "udp")),
        (0x0800, four(6, b"\0"), PacketEnds("10.0.0.1", "10.0.0.2", "tcp")),
        (0x0800, four(89, PORTS), PacketEnds("10.0.0.1", "10.0.0.2", "protocol 89")),
        (0x86DD, six(58, PORTS), PacketEnds("fd00::1", "fd00::2", "icmpv6")),
        (0x86DD, six(0, b"\x06\0" + bytes(6) + PORTS), PacketEnds("fd00::1", "fd00::2", "tcp", 1234, 80)),
        (0x86DD, six(44, b"\x11\0\0\x08" + bytes(4) + PORTS), PacketEnds("fd00::1", "fd00::2", "udp")),
        (0x86DD, six(44, b"\x11\0\0\x01" + bytes(4) + PORTS), PacketEnds("fd00::1", "fd00::2", "udp", 1234, 80)),
        (
            0x0806,
            bytes(14) + FOUR[0].packed + bytes(6) + FOUR[1].packed,
            PacketEnds("10.0.0.1", "10.0.0.2", "arp"),
        ),
        (0x88CC, b"\x02", PacketEnds("02:00:00:00:00:01", "02:00:00:00:00:02", "ethertype 0x88cc")),
    ],
)
def test_the_ends_of_a_packet(ethertype: int, packet: bytes, ends: PacketEnds) -> None:
    assert read(ethertype, LINK, packet) == ends


def test_no_bytes_raise() -> None:
    dice = random.Random(7)
    for _ in range(20_000):
        packet = bytes([dice.choice((0x45, 0x4F, 0x60, 0x6F, 0))]) + dice.randbytes(dice.randrange(130))
        read(dice.choice((0, 0x0800, 0x0806, 0x86DD, 0x88CC)), dice.randbytes(dice.randrange(20)), packet)


def test_a_log_rule_stands_before_its_rule_once() -> None:
    chain = plain_chain("inet", "to_host", Rule("ip daddr 127.0.0.0/8", "drop", "loopback"), Rule("", "accept", "rest"))
    rules = [
        {"rule": {"chain": "to_host", "handle": 4, "comment": "loopback"}},
        {"rule": {"chain": "to_host", "handle": 5, "comment": "rest"}},
    ]
    assert drop_log.missing({"inet": {"nftables": rules}, "bridge": None}, [chain]) == (
        "insert rule inet zlayer_cni to_host handle 4 ip daddr 127.0.0.0/8 limit rate 20/second burst 20 packets "
        'log prefix "inet/to_host/loopback" snaplen 128 group 9472 comment "sample for drops"\n'
    )
    own = {"rule": {"chain": "to_host", "handle": 9, "comment": drop_log.NAME, "expr": [{"match": {}}, {"log": {}}]}}
    listing = {"inet": {"nftables": [own, *rules]}}
    assert drop_log.missing(listing, [chain]) == ""
    assert drop_log.removal(listing) == "delete rule inet zlayer_cni to_host handle 9\n"
    assert drop_log.is_log_rule(own["rule"])
    assert not drop_log.is_log_rule({"comment": drop_log.NAME, "expr": [{"log": {}}, {"accept": None}]})


def test_a_prefix_names_the_rule() -> None:
    place = Place("inet", "net_flat", "a/b")
    assert drop_log.place_of(drop_log.prefix(place)) == place
    assert drop_log.place_of("another program: ") is None
