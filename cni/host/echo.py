"""Echo requests (ICMP, ICMPv6) of a given size, sent by one device and never fragmented by this node.

`IP_PMTUDISC_PROBE` sets the bit "don't fragment", and ignores the MTU of routes and of the kernel's path cache: only
the device limits the size. Answers are compared with the data that was sent, so a packet that another node makes up
counts for nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

from cni.host.links import Address

_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1
_DONTFRAG = 62  # IPV6_DONTFRAG
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}  # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER
_PROBE = 3  # IP_PMTUDISC_PROBE, IPV6_PMTUDISC_PROBE
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_HEAD = struct.Struct("!BBHHH")
_HEADERS = {4: 20 + _HEAD.size, 6: 40 + _HEAD.size}  # bytes of the IP header and of ICMP's
TOKEN = 16  # bytes that tell one request from all others
LONGEST = 1 << 16
BATCH = 256  # answers that are read at once
_ROOM = 1 << 20  # bytes of answers that the kernel may queue


class Echo:
    """The sockets for the echo requests of one device. For one thread."""

    def __init__(self, device: str) -> None:
        """Raises OSError: EPERM without CAP_NET_RAW, ENODEV if there is no such device."""
        self._id = int.from_bytes(os.urandom(2), "big")
        self._sockets: dict[int, socket.socket] = {}
        try:
            for version in (4, 6):
                with contextlib.suppress(_NoFamily):
                    self._sockets[version] = _opened(version, device)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()

    def sockets(self) -> list[socket.socket]:
        """The sockets that become readable with an answer."""
        return list(self._sockets.values())

    def send(self, address: Address, size: int, token: bytes) -> bool:
        """Send a request in a packet of `size` bytes. Returns whether it left: a packet that is larger than the
        device's MTU, or for which there is no route, does not."""
        sock, version = self._sockets.get(address.version), address.version
        if sock is None:
            return False
        data = token + bytes(max(0, size - _HEADERS[version] - len(token)))
        packet = _HEAD.pack(_REQUEST[version], 0, 0, self._id, 0) + data
        if version == 4:
            packet = packet[:2] + struct.pack("!H", _checksum(packet)) + packet[4:]
        try:
            sock.sendto(packet, (str(address), 0))
        except OSError:
            return False
        return True

    def answers(self) -> Iterator[tuple[bytes, int]]:
        """The token and the size of each answer that has arrived; never waits."""
        for version, sock in self._sockets.items():
            for _ in range(BATCH):
                try:
                    packet = sock.recv(LONGEST)
                except OSError:
                    break
                body = packet[(packet[0] & 15) * 4 :] if version == 4 and packet else packet
                if len(body) < _HEAD.size + TOKEN or body[0] != _REPLY[version]:
                    continue
                if _HEAD.unpack_from(body)[3] == self._id:
                    yield body[_HEAD.size : _HEAD.size + TOKEN], len(body) - _HEAD.size + _HEADERS[version]


class _NoFamily(OSError):
    """The kernel does not have this version of IP."""


def _opened(version: int, device: str) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    try:
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    except PermissionError:
        raise
    except OSError as error:
        raise _NoFamily(str(error)) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        sock.setsockopt(*_MTU_DISCOVER[version], _PROBE)
        if version == 4:  # the bits of the types that are not delivered (linux/icmp.h)
            sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF ^ 1 << _REPLY[4]))
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _DONTFRAG, 1)
            blocked = [0xFFFFFFFF] * 8
            blocked[_REPLY[6] >> 5] ^= 1 << (_REPLY[6] & 31)
            sock.setsockopt(protocol, _ICMP6_FILTER, struct.pack("=8I", *blocked))
    except OSError:
        sock.close()
        raise
    return sock


def _checksum(data: bytes) -> int:
    padded = data + b"\0" if len(data) % 2 else data
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
