"""Requests of the CNI socket as they come in, and the connections whose request is not complete.

A plugin sends its request at once. A client that is silent or slow occupies no thread of its own: one thread waits for
all of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cni import plugin_protocol

log = logging.getLogger(__name__)

CHUNK = 1 << 16
PATIENCE = 10.0  # seconds that a client may take to send its request
EAGER = 0.02  # seconds that the accepting thread waits for a request; a plugin takes less than a millisecond
MOST_DESCRIPTORS = 4  # descriptors per message; the first one received is used, the rest are closed at once
_EAGER = struct.pack("@ll", 0, int(EAGER * 1e6))  # struct timeval


@dataclass
class Incoming:
    """A connection, and what has been received of its request. One thread at a time uses it."""

    client: socket.socket
    fds: list[int] = field(default_factory=list)
    deadline: float = field(default_factory=lambda: time.monotonic() + PATIENCE)
    _data: bytearray = field(default_factory=bytearray)

    @property
    def body(self) -> bytes:
        """The body of the complete request."""
        return bytes(self._data[4:])

    def wait(self) -> bool:
        """Receive for EAGER seconds; returns whether the request is complete. Raises OSError as `receive`."""
        end = time.monotonic() + EAGER
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _EAGER)
        with contextlib.suppress(BlockingIOError):
            while not self.receive():
                if time.monotonic() > end:
                    return False
            return True
        return False

    def receive(self, flags: int = 0) -> bool:
        """Receive once; returns whether the request is complete. The first descriptor is kept in `fds`. Raises OSError:
        BlockingIOError if no byte came, ConnectionError if the client closed early or sends more than LARGEST."""
        chunk, received, _, _ = socket.recv_fds(self.client, CHUNK, MOST_DESCRIPTORS, flags)
        for fd in received:
            if self.fds:
                os.close(fd)
            else:
                self.fds.append(fd)
        if not chunk:
            raise ConnectionResetError("the client closed its connection early")
        self._data += chunk
        size = int.from_bytes(self._data[:4], "big")
        if len(self._data) >= 4 and size > plugin_protocol.LARGEST:
            log.warning("a plugin's request is larger than %d bytes", plugin_protocol.LARGEST)
            raise ConnectionAbortedError("the request is too large")
        return len(self._data) >= 4 + size

    def close(self) -> None:
        """Close the connection and the descriptors that came with it."""
        for fd in self.fds:
            os.close(fd)
        self.client.close()


class SlowClients:
    """Waits for the rest of incomplete requests in one thread, which ends with the last of them. Thread-safe."""

    def __init__(self, complete: Callable[[Incoming], None], most: int) -> None:
        """`complete` is called with each request that is complete and takes the connection over; it must not raise.
        `most`: connections at a time."""
        self._complete, self._most = complete, most
        self._lock = threading.Lock()
        self._clients: dict[int, Incoming] = {}  # by descriptor, in the order of their deadlines
        self._epoll = select.epoll()
        self._runs = False

    def take(self, incoming: Incoming) -> bool:
        """Take the connection over; False if there are too many, or if no thread can be started."""
        with self._lock:
            if len(self._clients) >= self._most or not self._start():
                return False
            fd = incoming.client.fileno()
            self._clients[fd] = incoming
            self._epoll.register(fd, select.EPOLLIN)
        return True

    def _start(self) -> bool:
        """Ensure that the thread runs; called with the lock."""
        if not self._runs:
            try:
                threading.Thread(target=self._run, name="slow-calls", daemon=True).start()
            except RuntimeError as error:
                log.warning("cannot start a thread for slow plugins: %s", error)
                return False
            self._runs = True
        return True

    def _run(self) -> None:
        while self._goes_on():
            for fd, _ in self._epoll.poll(0.2):
                self._receive(self._clients[fd])

    def _goes_on(self) -> bool:
        """Close what is late; returns False, and has another thread started by the next client, if none is left."""
        with self._lock:
            now = time.monotonic()
            late = [incoming for incoming in self._clients.values() if incoming.deadline < now]
            for incoming in late:
                self._remove(incoming)
                incoming.close()
            self._runs = bool(self._clients)
            return self._runs

    def _receive(self, incoming: Incoming) -> None:
        complete = False
        try:
            if not (complete := incoming.receive(socket.MSG_DONTWAIT)):
                return
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("a plugin's connection ended: %r", error)
        with self._lock:
            self._remove(incoming)
        if complete:
            self._complete(incoming)
        else:
            incoming.close()

    def _remove(self, incoming: Incoming) -> None:
        fd = incoming.client.fileno()
        del self._clients[fd]
        self._epoll.unregister(fd)
