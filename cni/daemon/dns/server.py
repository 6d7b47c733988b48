"""The node's DNS server: its sockets at the node's overlay addresses, UDP and TCP, and the thread that serves them.

It listens at the node's own addresses and never at a wildcard address, so it does not answer for other addresses of the
host, and another server there is not disturbed. The addresses are compared with the node's every second: an agent or
the cluster may change them, and a port that another program has may become free.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cni.daemon.dns.handler import Handle
from cni.daemon.dns.inbox import Inbox
from cni.daemon.dns.stream import Streams
from cni.daemon.problem_board import ProblemBoard
from cni.defaults import DNS_PORT
from cni.host import port_holders, source_sockets
from cni.host.worker import Crew, beat

log = logging.getLogger(__name__)

CODE = "dns-not-served"
TICK = 1.0  # seconds between two comparisons of the sockets with the node's addresses
QUEUES = 8  # UDP sockets at one address, each for an eighth of the senders
BUFFER = 1 << 20  # bytes of one of them: some 2,500 questions wait there while the processor is busy


@dataclass(frozen=True)
class Listener:
    """The sockets at one address: for UDP one for each group of senders."""

    udp: tuple[socket.socket, ...]
    tcp: socket.socket

    @property
    def port(self) -> int:
        """The port of all of them."""
        return int(self.tcp.getsockname()[1])

    def register(
        self,
        selector: selectors.BaseSelector,
        receive: Callable[[socket.socket], None],
        accept: Callable[[socket.socket], None],
    ) -> None:
        """Have the selector watch them: its keys' data is to be called."""
        for sock in self.udp:
            selector.register(sock, selectors.EVENT_READ, functools.partial(receive, sock))
        selector.register(self.tcp, selectors.EVENT_READ, functools.partial(accept, self.tcp))

    def unregister(self, selector: selectors.BaseSelector) -> None:
        """Have the selector no longer watch them."""
        for sock in (*self.udp, self.tcp):
            selector.unregister(sock)

    def close(self) -> None:
        """Close all."""
        for sock in (*self.udp, self.tcp):
            sock.close()


class DnsServer:
    """Serves one node. `resume`, `start` and `stop` are for the thread that starts the daemon."""

    def __init__(
        self,
        *,
        handle: Handle,
        inbox: Inbox,
        addresses: Callable[[], list[str]],
        port: int,
        board: ProblemBoard,
        crew: Crew,
    ) -> None:
        """`addresses`: the node's own, now."""
        self._handle, self._inbox, self._addresses, self._port = handle, inbox, addresses, port
        self._board = board
        self._listeners: dict[str, Listener] = {}
        self._faults: dict[str, str] = {}
        self._selector = selectors.DefaultSelector()
        self._streams = Streams(handle, self._selector)
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, lambda: None)
        self._opening = threading.Lock()
        self._has_addresses = self._stopped = False
        self._worker = crew.worker("dns", self._run)

    @property
    def served(self) -> tuple[str, ...]:
        """The node's addresses at which the server answers, UDP and TCP, in their order."""
        listeners = self._listeners
        return tuple(address for address in self._addresses() if address in listeners)

    @property
    def offered(self) -> tuple[str, ...]:
        """What a resolv.conf can name of `served`: it has no ports."""
        return self.served if self._port == DNS_PORT else ()

    def open(self) -> None:
        """Open the sockets at the node's present addresses, and close those at former ones. What cannot be opened
        is tried again, and becomes a problem once the node has its addresses."""
        with self._opening:
            self._open()

    def _open(self) -> None:
        wanted = self._addresses()
        for address in self._listeners.keys() - set(wanted):
            listener = self._listeners.pop(address)
            listener.unregister(self._selector)
            self._inbox.forget(listener.udp)
            listener.close()
        for address in wanted:
            if address not in self._listeners:
                self._open_at(address)
        self._faults = {address: self._faults[address] for address in wanted if address in self._faults}
        if self._has_addresses:
            self._board.set_all(CODE, self._faults)

    def _open_at(self, address: str) -> None:
        try:
            listener = listen(address, self._port)
        except OSError as error:
            if address not in self._faults or error.errno != errno.EADDRINUSE:
                self._faults[address] = self._fault(address, error)
            return
        self._faults.pop(address, None)
        listener.register(self._selector, self._receive, self._streams.accept)
        self._listeners[address] = listener
        log.info("DNS is served at %s port %d", address, self._port)

    def _fault(self, address: str, error: OSError) -> str:
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            names = (port_holders.holder(protocol, self._port) for protocol in ("udp", "tcp"))
            reason = f"{next(filter(None, names), 'another program')} has the port"
        return f"DNS is not served at {address} port {self._port}: {reason}"

    def resume(self) -> None:
        """Start the thread, and open the sockets where the node has its addresses from an earlier daemon."""
        self.open()
        self._worker.start()

    def start(self) -> None:
        """Open the sockets at all addresses of the node, which it has now."""
        with self._opening:
            self._has_addresses, self._faults = True, {}
        self.open()

    def stop(self) -> None:
        """Stop the thread, and close the sockets."""
        self._worker.retire()
        self._stopped = True
        os.write(self._woken, b"\0")
        self._worker.join(2 * TICK)
        self._streams.close()
        for listener in self._listeners.values():
            listener.close()
        self._listeners = {}

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        compared = time.monotonic()
        while not self._stopped:
            for key, _ in self._selector.select(TICK):
                key.data()
            now = time.monotonic()
            if now - compared >= TICK:
                compared = now
                beat(TICK)
                self.open()
                self._streams.sweep(now)

    def _receive(self, sock: socket.socket) -> None:
        """Answer the datagrams that have arrived."""
        for message, sender in self._inbox.read(sock):
            answer = self._handle(message, sender[0], "udp", Datagram(sock, sender), None)
            if answer is not None:
                send(sock, answer, sender)


class Datagram:
    """Sends an answer that comes later. Any thread may call it."""

    __slots__ = ("_sender", "_sock")

    def __init__(self, sock: socket.socket, sender: object) -> None:
        self._sock, self._sender = sock, sender

    def __call__(self, answer: bytes) -> None:
        send(self._sock, answer, self._sender)


def send(sock: socket.socket, answer: bytes, to: object) -> None:
    """Send an answer; one that cannot be sent is asked for again."""
    try:
        sock.sendto(answer, to)  # type: ignore[call-overload]
    except OSError as error:
        log.debug("an answer to %s was not sent: %s", to, error)  # the asker asks again


def listen(address: str, port: int) -> Listener:
    """The sockets at an address, not blocking; `port`: 0 for any that is free. Raises OSError, with none open."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    tcp, udp = socket.socket(family, socket.SOCK_STREAM), []
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier daemon may linger
        tcp.bind((address, port))  # first: another daemon's sockets are not joined by those for UDP
        udp = source_sockets.bind(address, tcp.getsockname()[1], QUEUES, BUFFER)
        for sock in (*udp, tcp):
            sock.setblocking(False)
        tcp.listen(256)
    except OSError:
        for sock in (*udp, tcp):
            sock.close()
        raise
    return Listener(tuple(udp), tcp)
