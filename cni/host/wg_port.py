"""Sends from a UDP port, and receives at it, while kernel WireGuard or an engine holds that port.

Datagrams leave by a raw socket with the port as their source. A second copy of what arrives at the port comes in by the
same socket, through a classic BPF filter that passes only the patterns of interest: the kernel drops all else, so
WireGuard's own packets cost this process nothing. The firewall mark of the device is set on the socket, because a
policy rule may route marked packets another way, through another NAT.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence

from cni.host.links import Address

Pattern = tuple[tuple[int, int], ...]
"""Words of 32 bits that a datagram must have: (offset in its payload, value)."""

BATCH = 64  # datagrams that are read at once
LONGEST = 2048
_ROOM = 1 << 17  # bytes of datagrams that the kernel may queue; more are dropped before they cost this process anything
_ATTACH_FILTER, _MARK = 26, 36  # SO_ATTACH_FILTER, SO_MARK (asm-generic/socket.h)
_IPV6_CHECKSUM = 7
_UDP = struct.Struct("!HHHH")
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD_HALF, _LOAD_WORD, _IF_EQUAL, _RETURN = 0x48, 0x40, 0x15, 0x06  # loads are relative to X
_X_IS_HEADER, _X_IS = 0xB1, 0x01  # the length of an IPv4 header at offset 0; a constant


class PortSocket:
    """Raw sockets of both families for one port, in the network namespace of the constructing thread."""

    def __init__(self, port: int, patterns: Sequence[Pattern], mark: int = 0) -> None:
        """`patterns`: what is received; `mark`: the firewall mark of what is sent, 0 for none. Raises OSError: EPERM
        without CAP_NET_RAW."""
        self._port = port
        self._sockets: dict[int, socket.socket] = {}
        try:
            for version in (4, 6):
                with contextlib.suppress(_NoFamily):
                    self._sockets[version] = _opened(version, port, patterns, mark)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()

    def sockets(self) -> list[socket.socket]:
        """The sockets that become readable with a datagram."""
        return list(self._sockets.values())

    def send(self, to: tuple[Address, int], payload: bytes, hops: int = 0) -> bool:
        """Send one datagram; returns whether it left. `hops`: after how many routers it is dropped, 0 for the
        system's default."""
        address, port = to
        sock = self._sockets.get(address.version)
        if sock is None:
            return False
        datagram = _UDP.pack(self._port, port, _UDP.size + len(payload), 0) + payload
        level, kind = (
            (socket.IPPROTO_IP, socket.IP_TTL) if address.version == 4 else (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)
        )
        ancillary = [(level, kind, struct.pack("=i", hops))] if hops else []
        try:
            sock.sendmsg([datagram], ancillary, 0, (str(address), 0))
        except OSError:
            return False
        return True

    def received(self) -> Iterator[tuple[tuple[Address, int], bytes]]:
        """The sender and the payload of each datagram that has arrived, at most `BATCH` of each family; never waits."""
        for version, sock in self._sockets.items():
            for _ in range(BATCH):
                try:
                    packet, sender = sock.recvfrom(LONGEST)
                except OSError:
                    break
                datagram = packet[(packet[0] & 15) * 4 :] if version == 4 else packet
                if len(datagram) >= _UDP.size:
                    address = ipaddress.ip_address(str(sender[0]).partition("%")[0])
                    yield (address, _UDP.unpack_from(datagram)[0]), datagram[_UDP.size :]


class _NoFamily(OSError):
    """The kernel does not have this version of IP."""


def _opened(version: int, port: int, patterns: Sequence[Pattern], mark: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_UDP)
    except PermissionError:
        raise
    except OSError as error:
        raise _NoFamily(str(error)) from error
    try:
        code = ctypes.create_string_buffer(program(version, port, patterns))
        count = (len(code) - 1) // _INSTRUCTION.size
        attached = struct.pack("HL", count, ctypes.addressof(code))
        sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, attached)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, _MARK, mark)
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, 6)  # the kernel computes it at that offset
    except OSError:
        sock.close()
        raise
    return sock


def program(version: int, port: int, patterns: Sequence[Pattern]) -> bytes:
    """The filter: passes a datagram to `port` that has all words of one of the patterns. A raw socket's filter sees an
    IPv4 packet with its header, and an IPv6 packet without."""
    code = [(_X_IS_HEADER if version == 4 else _X_IS, 0, 0, 0), (_LOAD_HALF, 0, 0, 2), (_IF_EQUAL, 1, 0, port)]
    code.append((_RETURN, 0, 0, 0))
    for pattern in patterns:
        left = 2 * len(pattern)
        for offset, value in pattern:
            left -= 2
            code.append((_LOAD_WORD, 0, 0, _UDP.size + offset))
            code.append((_IF_EQUAL, 0, left + 1, value))  # else past the rest of this pattern and its verdict
        code.append((_RETURN, 0, 0, 0xFFFFFFFF))
    code.append((_RETURN, 0, 0, 0))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)
