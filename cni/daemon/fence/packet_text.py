"""What a logged packet is: its ends, protocol and ports, from the first bytes that the kernel copied. Pure.

Every byte is the sender's; nothing here raises for any of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

_NAMES = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 58: "icmpv6", 132: "sctp"}
_WITH_PORTS = frozenset({6, 17, 33, 132, 136})
_EXTENSIONS = frozenset({0, 43, 60, 135})  # hop-by-hop, routing, destination options, mobility: 8-octet units
_FRAGMENT = 44
_MOST_HEADERS = 8
_IP4, _ARP, _IP6 = 0x0800, 0x0806, 0x86DD


@dataclass(frozen=True, slots=True)
class PacketEnds:
    """The ends as text: an address, or a MAC where there is none. Ports are 0 without any."""

    source: str = ""
    destination: str = ""
    protocol: str = ""
    source_port: int = 0
    destination_port: int = 0


def read(ethertype: int, link: bytes, payload: bytes) -> PacketEnds:
    """The ends of a packet with this EtherType; of an unreadable one, what the link-layer header says."""
    version = payload[0] >> 4 if payload else 0
    if version == 4 and ethertype in (0, _IP4) and len(payload) >= 20:
        return _four(payload)
    if version == 6 and ethertype in (0, _IP6) and len(payload) >= 40:
        return _six(payload)
    if ethertype == _ARP and len(payload) >= 28:
        return PacketEnds(str(IPv4Address(payload[14:18])), str(IPv4Address(payload[24:28])), "arp")
    name = f"ethertype 0x{ethertype:04x}" if ethertype else "unknown"
    return PacketEnds(_mac(link[6:12]), _mac(link[0:6]), name)


def _four(payload: bytes) -> PacketEnds:
    first = struct.unpack_from(">H", payload, 6)[0] & 0x1FFF == 0
    rest = payload[(payload[0] & 15) * 4 :] if first else b""
    return _ends(str(IPv4Address(payload[12:16])), str(IPv4Address(payload[16:20])), payload[9], rest)


def _six(payload: bytes) -> PacketEnds:
    kind, at = payload[6], 40
    for _ in range(_MOST_HEADERS):
        if kind in _EXTENSIONS and len(payload) >= at + 2:
            kind, at = payload[at], at + 8 * (payload[at + 1] + 1)
        elif kind == _FRAGMENT and len(payload) >= at + 8:
            later = struct.unpack_from(">H", payload, at + 2)[0] & 0xFFF8
            kind, at = payload[at], len(payload) if later else at + 8
        else:
            break
    return _ends(str(IPv6Address(payload[8:24])), str(IPv6Address(payload[24:40])), kind, payload[at:])


def _ends(source: str, destination: str, protocol: int, rest: bytes) -> PacketEnds:
    has_ports = protocol in _WITH_PORTS and len(rest) >= 4
    sport, dport = struct.unpack_from(">HH", rest) if has_ports else (0, 0)
    return PacketEnds(source, destination, _NAMES.get(protocol, f"protocol {protocol}"), sport, dport)


def _mac(octets: bytes) -> str:
    return octets.hex(":") if len(octets) == 6 else ""
