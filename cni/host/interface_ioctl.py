"""Looks an interface up by ioctl (netdevice(7)), without a wait for the rtnl lock.

A netlink request for a link waits while any other process or thread changes links: 12 ms for each look in a burst of
twenty ADDs, of which each holds the lock for a millisecond. These calls wait for nothing.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct

_INDEX, _NAME, _FLAGS, _MAC = 0x8933, 0x8910, 0x8913, 0x8927  # SIOCGIFINDEX, SIOCGIFNAME, SIOCGIFFLAGS, SIOCGIFHWADDR
_REQUEST = struct.Struct("=16si20x")  # struct ifreq: a name, an index
_SHORT = struct.Struct("=16sh22x")  # a name, flags
_ADDRESS = struct.Struct("=16sH6s16x")  # a name, the type and the octets of a hardware address
_RUNNING = 0x40  # IFF_RUNNING
_GONE = (errno.ENODEV, errno.ENXIO)


class InterfaceLookup:
    """Looks up interfaces of the constructing thread's network namespace, from any thread."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def index(self, name: str) -> int:
        """The index of the interface of that name; 0 if there is none. Raises OSError."""
        answer = self._ask(_INDEX, _REQUEST.pack(name.encode(), 0))
        return int(_REQUEST.unpack(answer)[1]) if answer is not None else 0

    def mac(self, name: str) -> str:
        """The MAC of the interface of that name; empty if there is none. Raises OSError."""
        answer = self._ask(_MAC, _ADDRESS.pack(name.encode(), 0, b""))
        return _ADDRESS.unpack(answer)[2].hex(":") if answer is not None else ""

    def is_running(self, index: int) -> bool | None:
        """Whether the interface is up with its carrier, so that a bridge forwards its frames; None if there is no
        interface of that index. Raises OSError."""
        named = self._ask(_NAME, _REQUEST.pack(b"", index))
        answer = self._ask(_FLAGS, _SHORT.pack(named[:16], 0)) if named is not None else None
        return bool(_SHORT.unpack(answer)[1] & _RUNNING) if answer is not None else None

    def _ask(self, request: int, body: bytes) -> bytes | None:
        try:
            answer: bytes = fcntl.ioctl(self._socket, request, body)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        return answer
