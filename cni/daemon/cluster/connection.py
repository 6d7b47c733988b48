"""Connections to a server of the cluster's store: one HTTP connection with TLS if its URL says so, and its failures."""

from __future__ import annotations

import contextlib
import http.client
import socket
from urllib.parse import SplitResult

from cni.daemon.cluster.certificates import Certificates
from cni.daemon.cluster.store import Unreachable, WrongServer
from cni.host.own_networks import has_own_address

_ALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


def connected(
    url: SplitResult, address: str, port: int, patience: float, certificates: Certificates
) -> tuple[http.client.HTTPConnection, str]:
    """A connection to an address, or a name, of the URL's server, and this node's address on it. `patience`: seconds
    for the connection and for each answer. Raises OSError, StoreError."""
    host = url.hostname or ""
    raw = socket.create_connection((address, port), timeout=patience)
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _ALIVE:
            raw.setsockopt(socket.IPPROTO_TCP, option, value)
        local = raw.getsockname()[0]
        if url.scheme == "https":
            raw = certificates.context().wrap_socket(raw, server_hostname=host)
    except BaseException:
        raw.close()
        raise
    connection = http.client.HTTPConnection(host, port, timeout=patience)
    connection.auto_open = 0  # it would connect again without TLS
    connection.sock = raw
    return connection, local


def is_usable(connection: http.client.HTTPConnection) -> bool:
    """Whether another request may be made on a connection: it is open, and has an address of this host."""
    return connection.sock is not None and has_own_address(connection.sock)


def end_stream(stream: socket.socket) -> None:
    """End a stream that another thread reads: that thread gets an error, or the stream's end. The caller holds the lock
    under which the reader withdraws the stream, so that the stream is open."""
    with contextlib.suppress(OSError):
        # Of the base class: that of TLS changes the object while the other thread reads.
        socket.socket.shutdown(stream, socket.SHUT_RDWR)


def unreachable(error: Exception) -> Unreachable:
    """The error of an exchange that failed with `error`."""
    if isinstance(error, Unreachable):
        return error
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
        return WrongServer(f"it does not answer with HTTP: {str(error)[:100]}")
    if isinstance(error, TimeoutError):
        return Unreachable("no answer in time")
    return Unreachable(str(error) or type(error).__name__)
