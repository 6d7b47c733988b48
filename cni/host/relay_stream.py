"""The connection to a relay in user space: UDP, TCP, or TLS over TCP. Never blocks."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import ssl

BATCH = 64  # messages that are read at once
LONGEST = 65536
PATIENCE = 5.0  # seconds for a connection and its TLS handshake
_MARK = 36  # SO_MARK (asm-generic/socket.h)
_QUEUED = 1 << 18  # bytes that may wait for a stream; datagrams beyond are dropped


class Link(Protocol):
    """A connection. `received` and `send` raise OSError when it has ended."""

    def sockets(self) -> list[socket.socket]: ...

    def is_ready(self) -> bool: ...

    def send(self, message: bytes) -> None: ...

    def received(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


def open_link(transport: str, to: tuple[str, int], host: str, ca_file: str, mark: int) -> Link:
    """Open a connection. `host`: the name in the server's certificate; `ca_file`: who signed it, "" for the system's
    authorities; `mark`: the firewall mark of what is sent. Raises OSError."""
    if transport == "udp":
        return _Datagrams(to, mark)
    return _Stream(to, host if transport == "tls" else "", ca_file, mark)


def _socket(to: tuple[str, int], kind: socket.SocketKind, mark: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    try:
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, _MARK, mark)
    except OSError:
        sock.close()
        raise
    return sock


class _Datagrams:
    def __init__(self, to: tuple[str, int], mark: int) -> None:
        self._sock = _socket(to, socket.SOCK_DGRAM, mark)
        try:
            self._sock.setblocking(False)
            self._sock.connect(to)
        except OSError:
            self._sock.close()
            raise

    def sockets(self) -> list[socket.socket]:
        return [self._sock]

    def is_ready(self) -> bool:
        return True

    def send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # a datagram may be lost
            self._sock.send(message)

    def received(self) -> Iterator[bytes]:
        for _ in range(BATCH):
            try:
                yield self._sock.recv(LONGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP message about an earlier datagram

    def close(self) -> None:
        self._sock.close()


class _Stream:
    """A stream whose messages have STUN's or a channel's head (RFC 8656, section 12.5)."""

    def __init__(self, to: tuple[str, int], host: str, ca_file: str, mark: int) -> None:
        self._sock: socket.socket | None = None
        self._fault: OSError | None = None
        self._in, self._out = bytearray(), bytearray()
        self._news, self._tell = socket.socketpair()
        self._closed = False
        arguments = (to, host, ca_file, mark)
        threading.Thread(target=self._connect, args=arguments, name="relay-connect", daemon=True).start()

    def _connect(self, to: tuple[str, int], host: str, ca_file: str, mark: int) -> None:
        try:
            sock = _socket(to, socket.SOCK_STREAM, mark)
            sock.settimeout(PATIENCE)
            sock.connect(to)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made: socket.socket = _tls(sock, host, ca_file) if host else sock
            made.setblocking(False)
            self._sock = made
        except OSError as error:
            self._fault = error
        if self._closed and self._sock is not None:
            self._sock.close()
        with contextlib.suppress(OSError):
            self._tell.send(b"x")

    def sockets(self) -> list[socket.socket]:
        return [self._sock] if self._sock is not None else [self._news]

    def is_ready(self) -> bool:
        if self._fault is not None:
            raise self._fault
        return self._sock is not None

    def send(self, message: bytes) -> None:
        if len(self._out) < _QUEUED:
            self._out += message
        self._flush()

    def _flush(self) -> None:
        assert self._sock is not None
        while self._out:
            try:
                sent = self._sock.send(self._out)
            except OSError as error:
                if _waits(error):
                    return
                raise
            del self._out[:sent]

    def received(self) -> Iterator[bytes]:
        assert self._sock is not None
        self._flush()
        while True:
            try:
                data = self._sock.recv(LONGEST)
            except OSError as error:
                if _waits(error):
                    break
                raise
            if not data:
                raise OSError("the server has closed the connection")
            self._in += data
        while (message := _framed(self._in)) is not None:
            yield message

    def close(self) -> None:
        self._closed = True
        for sock in (self._sock, self._news, self._tell):
            if sock is not None:
                sock.close()


def _framed(buffer: bytearray) -> bytes | None:
    """Take one message off the buffer; None while it is not whole. Raises OSError for what is no message."""
    if len(buffer) < 4:
        return None
    length = int.from_bytes(buffer[2:4], "big")
    kind = buffer[0] >> 6
    if kind > 1:
        raise OSError("the server sent neither STUN nor a channel's data")
    kept = 20 + length if kind == 0 else 4 + length
    size = kept + -kept % 4
    if len(buffer) < size:
        return None
    message = bytes(buffer[:kept])
    del buffer[:size]
    return message


def _tls(sock: socket.socket, host: str, ca_file: str) -> ssl.SSLSocket:
    import ssl

    context = ssl.create_default_context(cafile=ca_file or None)
    return context.wrap_socket(sock, server_hostname=host)


def _waits(error: OSError) -> bool:
    """Whether a stream has nothing to read, or no room, at the moment."""
    if isinstance(error, BlockingIOError):
        return True
    return type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")
