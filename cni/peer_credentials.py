"""The process at the other end of a Unix socket, as recorded by the kernel (SO_PEERCRED, unix(7)).

The client library uses this module too, and it also runs on systems other than Linux: `IS_KNOWN` is False there.
"""

import _socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

IS_KNOWN = hasattr(_socket, "SO_PEERCRED")


class Peer:
    """The credentials of the process that connected, or that listened when this end connected, at that moment.

    `pid` is 0 if the process is in another PID namespace.
    """

    __slots__ = ("gid", "pid", "uid")

    def __init__(self, sock: "socket") -> None:
        """Raises OSError."""
        raw = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # struct ucred
        self.pid, self.uid, self.gid = (int.from_bytes(raw[at : at + 4], sys.byteorder) for at in (0, 4, 8))
