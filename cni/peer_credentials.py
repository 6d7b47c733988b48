"""Who is at the other end of a Unix socket, as the kernel knows it (SO_PEERCRED, unix(7)).

For the client as well, which runs elsewhere than on Linux too: there nothing is known.
"""

import _socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

IS_KNOWN = hasattr(_socket, "SO_PEERCRED")


class Peer:
    """The process that connected, or that listened when this end connected; as it was then.

    `pid` is 0 where it is in another PID namespace.
    """

    __slots__ = ("gid", "pid", "uid")

    def __init__(self, sock: "socket") -> None:
        """Raises OSError."""
        raw = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # struct ucred
        self.pid, self.uid, self.gid = (int.from_bytes(raw[at : at + 4], sys.byteorder) for at in (0, 4, 8))
