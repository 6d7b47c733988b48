"""UDP sockets at a port of this process's own, with the same methods as `wg_port.PortSocket`."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator

from cni.host.links import Address
from cni.host.wg_port import BATCH, LONGEST


class UdpPort:
    """A socket of each family, each at a port that the kernel chose. In the namespace of the constructing thread."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._sockets: dict[int, socket.socket] = {}
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            with contextlib.suppress(OSError):  # the kernel may not have this version of IP
                sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                if version == 6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(("", 0))
                self._sockets[version] = sock

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()

    def sockets(self) -> list[socket.socket]:
        """The sockets that become readable with a datagram."""
        return list(self._sockets.values())

    def send(self, to: tuple[Address, int], payload: bytes) -> bool:
        """Send one datagram; returns whether it left."""
        sock = self._sockets.get(to[0].version)
        if sock is None:
            return False
        try:
            sock.sendto(payload, (str(to[0]), to[1]))
        except OSError:
            return False
        return True

    def received(self) -> Iterator[tuple[tuple[Address, int], bytes]]:
        """The sender and the payload of each datagram that has arrived, at most `BATCH` of each family; never waits."""
        for sock in self._sockets.values():
            for _ in range(BATCH):
                try:
                    payload, sender = sock.recvfrom(LONGEST)
                except OSError:
                    break
                yield (ipaddress.ip_address(str(sender[0]).partition("%")[0]), int(sender[1])), payload
