"""A UDP port of a relay: receives with the address of this node at which a datagram came, and answers from it."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator

from cni.host.links import Address
from cni.host.wg_port import BATCH, LONGEST

_PKTINFO = 8  # IP_PKTINFO
_INFO = struct.Struct("=I4s4s")  # struct in_pktinfo: link, local address, address in the header


class RelayPort:
    """One port, over IPv4, in the network namespace of the constructing thread."""

    def __init__(self, port: int) -> None:
        """Raises OSError: EADDRINUSE if another program has the port."""
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._sock.setsockopt(socket.IPPROTO_IP, _PKTINFO, 1)
            self._sock.bind(("", port))
        except OSError:
            self._sock.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def fileno(self) -> int:
        """The socket's descriptor, for select."""
        return self._sock.fileno()

    def received(self) -> Iterator[tuple[tuple[Address, int], str, bytes]]:
        """Sender, own address and payload of each datagram that has arrived, at most `BATCH`; never waits."""
        for _ in range(BATCH):
            try:
                payload, ancillary, _, sender = self._sock.recvmsg(LONGEST, socket.CMSG_SPACE(_INFO.size))
            except OSError:
                return
            local = next((_INFO.unpack(data)[2] for level, kind, data in ancillary if kind == _PKTINFO), bytes(4))
            yield (ipaddress.ip_address(sender[0]), int(sender[1])), str(ipaddress.ip_address(local)), payload

    def send(self, to: tuple[Address, int], local: str, payload: bytes) -> None:
        """Answer from the address at which the datagram came. Never raises OSError."""
        info = _INFO.pack(0, ipaddress.ip_address(local).packed, bytes(4))
        try:
            self._sock.sendmsg([payload], [(socket.IPPROTO_IP, _PKTINFO, info)], 0, (str(to[0]), to[1]))
        except OSError:
            return
