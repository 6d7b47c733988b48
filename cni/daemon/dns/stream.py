"""DNS over TCP (RFC 7766): connections of askers, each with its messages and their lengths before them."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from cni.daemon.dns.forward.seam import Transport
from cni.daemon.dns.handler import Handle
from cni.daemon.model.dns_upstreams import NameServer

log = logging.getLogger(__name__)

MOST = 512  # connections; more are closed at once
MOST_OF_ONE = 64  # connections from one address
IDLE = 10.0  # seconds without a byte after which a connection is closed
MOST_WAITING = 1 << 20  # bytes of answers that an asker does not read
TCP: Transport = "tcp"


class _Stream:
    """One connection. Answers may come from any thread."""

    def __init__(self, sock: socket.socket, source: str, asked: NameServer | None) -> None:
        self.sock, self.source, self.asked = sock, source, asked
        self.received = bytearray()
        self.waiting = bytearray()  # bytes that were not sent yet
        self.last = time.monotonic()
        self._closed = False
        self._lock = threading.Lock()

    def send(self, answer: bytes) -> None:
        """Send an answer, or as much of it as the connection takes; `flush` sends the rest."""
        with self._lock:
            self.waiting += len(answer).to_bytes(2, "big") + answer
        self.flush()

    def touch(self) -> None:
        """Note that the connection is in use."""
        self.last = time.monotonic()

    def flush(self) -> bool:
        """Send what waits. Returns whether bytes are left."""
        with self._lock:
            if self._closed:
                return False
            try:
                while self.waiting:
                    del self.waiting[: self.sock.send(self.waiting)]
                self.last = time.monotonic()
            except BlockingIOError:
                pass
            except OSError:
                self.waiting.clear()
            return bool(self.waiting)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self.sock.close()


class Streams:
    """The connections of one server. For the server's thread, except that answers may come from others."""

    def __init__(
        self,
        handle: Handle,
        selector: selectors.BaseSelector,
        asked: Callable[[socket.socket], NameServer | None] = lambda _: None,
    ) -> None:
        """`asked`: the server that the peer of a connection had called, where it was led here."""
        self._handle, self._selector, self._asked = handle, selector, asked
        self._streams: set[_Stream] = set()
        self._of_source: Counter[str] = Counter()

    def accept(self, listener: socket.socket) -> None:
        """Accept one connection."""
        try:
            sock, peer = listener.accept()
        except OSError:
            return
        source = peer[0]
        if len(self._streams) >= MOST or self._of_source[source] >= MOST_OF_ONE:
            sock.close()
            return
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = _Stream(sock, source, self._asked(sock))
        self._streams.add(stream)
        self._of_source[source] += 1
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._receive(stream))

    def _receive(self, stream: _Stream) -> None:
        try:
            chunk = stream.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._drop(stream)
            return
        stream.touch()
        received = stream.received
        received += chunk
        while len(received) >= 2:
            size = int.from_bytes(received[:2], "big")
            if len(received) < 2 + size:
                break
            message = bytes(received[2 : 2 + size])
            del received[: 2 + size]
            answer = self._handle(message, stream.source, TCP, stream.send, stream.asked)
            if answer is not None:
                stream.send(answer)
        if len(stream.waiting) > MOST_WAITING:
            self._drop(stream)

    def sweep(self, now: float) -> None:
        """Send what waits, and close the connections that were idle. `now`: seconds of the monotonic clock."""
        for stream in tuple(self._streams):
            if stream.waiting:
                stream.flush()
            if now - stream.last > IDLE:
                self._drop(stream)

    def _drop(self, stream: _Stream) -> None:
        self._selector.unregister(stream.sock)
        stream.close()
        self._streams.discard(stream)
        self._of_source[stream.source] -= 1
        if not self._of_source[stream.source]:
            del self._of_source[stream.source]

    def close(self) -> None:
        """Close every connection."""
        for stream in tuple(self._streams):
            self._drop(stream)
