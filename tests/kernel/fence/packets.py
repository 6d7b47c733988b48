"""Packets by hand: what an attacker sends, byte by byte."""

from __future__ import annotations

import itertools
import socket
import struct
from ipaddress import IPv6Address, ip_address

ARP, IPV4, IPV6, VLAN, QINQ = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88A8
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
_idents = itertools.count(1000)
BROADCAST = "ff:ff:ff:ff:ff:ff"


def mac(text: str) -> bytes:
    """Six bytes."""
    return bytes.fromhex(text.replace(":", ""))


def packed(address: str) -> bytes:
    """Four bytes or sixteen."""
    return ip_address(address).packed


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(src: str, dst: str, protocol: int, length: int) -> bytes:
    if ":" in src:
        return packed(src) + packed(dst) + struct.pack("!IxxxB", length, protocol)
    return packed(src) + packed(dst) + struct.pack("!xBH", protocol, length)


def frame(dst: str, src: str, kind: int, payload: bytes, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    """An Ethernet frame; `tags` are (EtherType of the tag, VLAN id)."""
    head = mac(dst) + mac(src)
    for tag, vlan in tags:
        head += struct.pack("!HH", tag, vlan)
    return head + struct.pack("!H", kind) + payload


def arp(operation: int, sender: tuple[str, str], target: tuple[str, str]) -> bytes:
    """An ARP packet; sender and target are (MAC, address)."""
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return body + b"".join(mac(m) + packed(a) for m, a in (sender, target))


def ip4(  # one parameter a header field
    src: str, dst: str, protocol: int, payload: bytes, *, options: bytes = b"", frag: int = 0, ident: int = 7
) -> bytes:
    """An IPv4 packet; `frag` is the flags-and-offset field."""
    options += bytes(-len(options) % 4)
    words = 5 + len(options) // 4
    head = (
        struct.pack("!BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), ident, frag, 64, protocol, 0)
        + packed(src)
        + packed(dst)
        + options
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ip6(src: str, dst: str, protocol: int, payload: bytes, hops: int = 64) -> bytes:
    """An IPv6 packet."""
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + packed(src) + packed(dst) + payload


def ip(src: str, dst: str, protocol: int, payload: bytes) -> bytes:
    """Of whatever family the addresses are."""
    return (ip6 if ":" in src else ip4)(src, dst, protocol, payload)


def ethertype(address: str) -> int:
    """The EtherType an address's packets have."""
    return IPV6 if ":" in address else IPV4


def udp(src: str, dst: str, sport: int, dport: int, data: bytes) -> bytes:
    """A datagram with its checksum."""
    body = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    total = checksum(_pseudo(src, dst, UDP, len(body)) + body) or 0xFFFF
    return body[:6] + struct.pack("!H", total) + body[8:]


def tcp(src: str, dst: str, sport: int, dport: int, flags: int = 2) -> bytes:
    """A segment without data; flags 2 is SYN, 16 ACK."""
    body = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 0x50, flags, 64240, 0, 0)
    return body[:16] + struct.pack("!H", checksum(_pseudo(src, dst, TCP, 20) + body)) + body[18:]


def segment(src: str, dst: str, sport: int, dport: int, data: bytes) -> bytes:
    """A SYN with data, and the checksum of both."""
    body = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 0x50, 2, 64240, 0, 0) + data
    return body[:16] + struct.pack("!H", checksum(_pseudo(src, dst, TCP, len(body)) + body)) + body[18:]


def sctp(sport: int, dport: int, chunk: int, tag: int, data: bytes) -> bytes:
    """An SCTP packet with INIT (chunk 1) or INIT ACK (2) and its checksum (RFC 9260, 3.3.2 and appendix A). `tag`: the
    verification tag, for INIT 0; the initiator's is 7."""
    value = struct.pack("!IIHHI", 7, 65536, 1, 1, 1) + data + bytes(-len(data) % 4)
    head = struct.pack("!HHI", sport, dport, tag)
    rest = struct.pack("!BBH", chunk, 0, 4 + len(value)) + value
    crc = 0xFFFFFFFF
    for octet in head + bytes(4) + rest:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return head + struct.pack("<I", crc ^ 0xFFFFFFFF) + rest


def icmp(kind: int, code: int, rest: bytes) -> bytes:
    """ICMP; `rest` begins at the fifth byte."""
    body = struct.pack("!BBH", kind, code, 0) + rest
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def icmp6(src: str, dst: str, kind: int, code: int, rest: bytes) -> bytes:
    """ICMPv6."""
    body = struct.pack("!BBH", kind, code, 0) + rest
    return body[:2] + struct.pack("!H", checksum(_pseudo(src, dst, ICMP6, len(body)) + body)) + body[4:]


def advert(src: str, dst: str, target: str, lladdr: str | None, flags: int = 0x60000000) -> bytes:
    """A neighbour advertisement (solicited, override) as an ICMPv6 body."""
    option = b"\x02\x01" + mac(lladdr) if lladdr else b""
    return icmp6(src, dst, 136, 0, struct.pack("!I", flags) + packed(target) + option)


def solicit(src: str, dst: str, target: str, lladdr: str | None) -> bytes:
    """A neighbour solicitation as an ICMPv6 body."""
    option = b"\x01\x01" + mac(lladdr) if lladdr else b""
    return icmp6(src, dst, 135, 0, bytes(4) + packed(target) + option)


def fragments6(src: str, dst: str, nexthdr: int, body: bytes, cut: int, *, claim: int | None = None) -> list[bytes]:
    """A packet as two fragments, cut after `cut` bytes (a multiple of eight).

    `claim` is what the second says to be a piece of: receivers go by the first.
    """
    ident = next(_idents)  # its own: pieces of different packets would spoil each other's whole

    def piece(of: int, offset: int, more: int, data: bytes) -> bytes:
        return ip6(src, dst, 44, struct.pack("!BBHI", of, 0, offset << 3 | more, ident) + data, 255)

    return [piece(nexthdr, 0, 1, body[:cut]), piece(nexthdr if claim is None else claim, cut // 8, 0, body[cut:])]


def link_local(text: str) -> str:
    """The EUI-64 link-local address of a MAC."""
    m = mac(text)
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + bytes([m[0] ^ 2]) + m[1:3] + b"\xff\xfe" + m[3:]))


def solicited_node(address: str) -> tuple[str, str]:
    """The solicited-node group of an address: (address, MAC)."""
    tail = packed(address)[-3:]
    group = IPv6Address(packed("ff02::1:ff00:0")[:13] + tail)
    return str(group), "33:33:ff:" + tail.hex(":")


def raw_family(address: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET
