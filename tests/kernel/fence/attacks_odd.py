"""Odd packets: other transports, queries for groups, headers cut short, addresses within addresses, and frames that ask
the kernel to finish them."""

from __future__ import annotations

import socket
import struct

from . import packets as p
from .attacks import (
    EVIL,
    GATEWAY4,
    GATEWAY_MAC,
    HONEST,
    Case,
    a,
    attack,
    b,
    to_host,
    to_other,
    x,
)
from .lab import Lab, Place
from .spaces import Space

IGMP, DCCP, ESP, SCTP, UDPLITE = 2, 33, 50, 132, 136
SOL_PACKET, PACKET_VNET_HDR = 263, 15
NEEDS_CSUM, GSO_TCP4, GSO_UDP_L4 = 1, 1, 5  # struct virtio_net_hdr


def _by_both_ways(src: Place, dst: Place, packet: bytes) -> list[bytes]:
    """To its own MAC, and to the gateway's."""
    kind = p.IPV4 if packet[0] >> 4 == 4 else p.IPV6
    return [p.frame(mac, src.mac, kind, packet) for mac in (dst.mac, GATEWAY_MAC)]


@attack
def other_transports_to_another_network(lab: Lab) -> Case:
    me, it = a(lab), x(lab)
    frames = []
    for protocol in (IGMP, DCCP, ESP, SCTP, UDPLITE, 255):
        for src, dst in ((me.four, it.four), (me.six, it.six)):
            frames += _by_both_ways(me, it, p.ip(src, dst, protocol, struct.pack("!HHII", 9, 9, 0, 0) + EVIL))
    case = to_other(lab, *frames)
    chunk = struct.pack("!HHII", 9, 9, 0, 0) + HONEST
    case.control = [p.frame(b(lab).mac, me.mac, p.IPV4, p.ip4(me.four, b(lab).four, SCTP, chunk))]
    return case


def _queries(place: Place, marker: bytes) -> list[bytes]:
    """A querier on a bridge can have the groups pruned for which no port answers."""
    own = p.link_local(place.mac)
    igmp = struct.pack("!BBH4s", 0x11, 100, 0, bytes(4)) + marker
    igmp = igmp[:2] + struct.pack("!H", p.checksum(igmp)) + igmp[4:]
    alert = bytes([58, 0, 5, 2, 0, 0, 1, 0])
    mld = p.icmp6(own, "ff02::1", 130, 0, struct.pack("!HH", 1000, 0) + bytes(16) + marker)
    four = p.ip4(place.four, "224.0.0.1", IGMP, igmp, options=bytes([148, 4, 0, 0]))
    return [
        p.frame("01:00:5e:00:00:01", place.mac, p.IPV4, four),
        p.frame("33:33:00:00:00:01", place.mac, p.IPV6, p.ip6(own, "ff02::1", 0, alert + mld, 1)),
    ]


@attack
def queries_for_groups_stay_in_the_network(lab: Lab) -> Case:
    """The daemon's bridges do not snoop (tests/kernel/test_links.py), so no querier starves the others either."""
    case = to_other(lab, *_queries(a(lab), EVIL))
    case.control = _queries(a(lab), HONEST)
    return case


@attack
def headers_cut_short_to_another_network(lab: Lab) -> Case:
    """What is too short to have a source matches no rule about sources."""
    me, it = a(lab), x(lab)
    frames = [p.frame(it.mac, me.mac, kind, EVIL[:size]) for kind in (p.IPV4, p.IPV6, p.ARP) for size in (0, 1, 8)]
    four = p.ip4(me.four, it.four, p.UDP, p.udp(me.four, it.four, 9, 9, EVIL))
    six = p.ip6(me.six, it.six, p.UDP, p.udp(me.six, it.six, 9, 9, EVIL))
    for length in range(6):  # header lengths, some of them none
        frames += _by_both_ways(me, it, bytes([0x40 | length]) + four[1:])
    frames += [p.frame(it.mac, me.mac, p.IPV4, six), p.frame(it.mac, me.mac, p.IPV6, four)]
    frames += [p.frame(it.mac, me.mac, p.IPV4, packet[:-4]) for packet in (four, EVIL + four[8:])]
    return to_other(lab, *frames)


@attack
def addresses_within_addresses(lab: Lab) -> Case:
    """IPv4-mapped and -compatible, 6to4, Teredo, ISATAP, NAT64: none leads back into the overlay."""
    me, it = a(lab), x(lab)
    four = p.packed(it.four)
    spelled = [
        bytes(10) + b"\xff\xff" + four,
        bytes(12) + four,
        b"\x20\x02" + four + bytes(9) + b"\x01",
        b"\x20\x01\x00\x00" + four + bytes(8),
        b"\xfe\x80" + bytes(6) + b"\x00\x00\x5e\xfe" + four,
        b"\x00\x64\xff\x9b" + bytes(8) + four,
    ]
    frames = []
    for target in spelled:
        dst = socket.inet_ntop(socket.AF_INET6, target)
        frames += _by_both_ways(me, it, p.ip6(me.six, dst, p.UDP, p.udp(me.six, dst, 9, 9, EVIL)))
    return to_other(lab, *frames)


@attack
def no_address_and_every_address_to_the_host(lab: Lab) -> Case:
    me = a(lab)
    frames = [
        p.frame(mac, me.mac, p.IPV4, p.ip4(src, dst, p.UDP, p.udp(src, dst, 68, 67, EVIL)))
        for mac in (GATEWAY_MAC, p.BROADCAST)
        for src in ("0.0.0.0", me.four, "240.0.0.1")
        for dst in ("0.0.0.0", "255.255.255.255", "10.200.5.63", "240.0.0.1", GATEWAY4)
    ]
    return to_host(lab, *frames)


def _offloaded(space: Space, frames: list[tuple[bytes, bytes]]) -> None:
    """Frames with what the kernel is to do about them: checksums and segments (packet(7), virtio)."""
    with space.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
        mouth.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        mouth.bind(("eth0", 0))
        for head, frame in frames:
            mouth.send(head + frame)


def _head(gso: int, size: int, start: int, offset: int, length: int = 0) -> bytes:
    return struct.pack("<BBHHHH", NEEDS_CSUM, gso, length, size, start, offset)


@attack
def offloaded_frames_to_another_network(lab: Lab) -> Case:
    """Big ones that are to be cut up, straight and by the gateway."""
    me, it = a(lab), x(lab)
    tcp = p.ip4(me.four, it.four, p.TCP, p.tcp(me.four, it.four, 9, 9, flags=16) + EVIL * 300)
    udp = p.ip4(me.four, it.four, p.UDP, p.udp(me.four, it.four, 9, 9, EVIL * 300))
    sent = [(_head(GSO_TCP4, 1000, 34, 16, 54), frame) for frame in _by_both_ways(me, it, tcp)]
    sent += [(_head(GSO_UDP_L4, 1000, 34, 6, 42), frame) for frame in _by_both_ways(me, it, udp)]
    return to_other(lab, before=lambda: _offloaded(me.space, sent))
