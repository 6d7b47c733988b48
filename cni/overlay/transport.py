"""The byte streams an overlayd is reached by: a Unix socket, or a named pipe on Windows (contract 1.1).

A stream carries bytes and knows nothing of frames. Every operation takes the seconds it may wait; `cni.overlay.framing`
and `cni.overlay.client` are the same for both kinds.
"""

import contextlib
import errno
import os
import socket
from typing import Protocol

from cni import peer_credentials
from cni.overlay.pipe import PIPE_PREFIX, open_pipe
from cni.peer_credentials import Peer

_SHORTEST = 0.001
"""Seconds. A timeout of 0 would make a socket non-blocking."""


class Stream(Protocol):
    """One connection. One thread sends and receives at a time; any thread may close it."""

    def send(self, data: bytes, seconds: float) -> None:
        """Write all of `data`. Raises TimeoutError after `seconds`, OSError if the connection fails."""

    def receive(self, seconds: float) -> bytes:
        """What has arrived, at least one byte; b"" at the end of the stream. Raises TimeoutError, OSError."""

    def close(self) -> None:
        """End the connection; a `receive` under way in another thread ends as well. Repeating it is harmless."""


class Connect(Protocol):
    """How a stream is made."""

    def __call__(self, address: str, seconds: float) -> Stream:
        """A connection to `address`, made within `seconds`. Raises OSError, TimeoutError included."""


def connect(address: str, seconds: float) -> Stream:
    r"""A connection to the pipe `address`, if it begins with `\\.\pipe\`, else to the Unix socket of that path.

    Raises OSError.
    """
    if address.startswith(PIPE_PREFIX):
        return open_pipe(address)
    return connect_unix(address, seconds)


def connect_unix(path: str, seconds: float) -> "UnixStream":
    """A connection to the Unix socket at `path`.

    Raises OSError; PermissionError, with nothing sent, where the process that listens is neither root's nor this
    user's: the path may be in a directory (/tmp, contract 1.3) where any user can be the first.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(seconds, _SHORTEST))
        sock.connect(path)
        _refuse_strangers(sock)
    except OSError:
        sock.close()
        raise
    return UnixStream(sock)


def _refuse_strangers(sock: socket.socket) -> None:
    if not peer_credentials.IS_KNOWN:  # not Linux
        return
    user = Peer(sock).uid
    if user not in (0, os.geteuid()):
        raise PermissionError(
            errno.EPERM, f"the process that listens there is user {user}'s, neither root's nor this user's"
        )


class UnixStream:
    """A `Stream` over a connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, data: bytes, seconds: float) -> None:
        self._sock.settimeout(max(seconds, _SHORTEST))
        self._sock.sendall(data)

    def receive(self, seconds: float) -> bytes:
        self._sock.settimeout(max(seconds, _SHORTEST))
        return self._sock.recv(1 << 16)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            # Closing alone does not wake a thread that waits in recv.
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
