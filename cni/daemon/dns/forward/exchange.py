"""One question to one server: a socket of its own, so that each question has a source port that the kernel chose at
random, with an identifier and letters in random case beside it (RFC 5452)."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass, field
from enum import Enum

from cni.daemon.dns.forward.message import HEADER, MOST_OVER_TCP, Question, write_question
from cni.daemon.dns.forward.upstreams import Transport
from cni.daemon.model.dns_upstreams import NameServer

MOST_DATAGRAMS = 16  # of one socket that are read at once
MOST_STRANGERS = 16  # datagrams that are no answer until the server is asked by TCP: they are guesses of the identifier


class Fit(Enum):
    """How a message fits a question: it answers it, it answers it in other letters, it is another's."""

    ANSWER = 1
    OTHER_CASE = 2
    STRANGE = 3


def fit_of(message: bytes, ident: bytes, wire: bytes) -> Fit:
    """Compare a message with the identifier and the question that were sent. Pure."""
    end = HEADER + len(wire)
    if message[:2] != ident or message[2] & 0xF8 != 0x80:
        return Fit.STRANGE
    if message[4:6] == b"\0\0" and message[3] & 0x0F:
        return Fit.ANSWER  # a refusal by a server that does not repeat what it could not read
    if message[4:6] != b"\0\1" or message[HEADER:end].lower() != wire.lower():
        return Fit.STRANGE
    return Fit.ANSWER if message[HEADER:end] == wire else Fit.OTHER_CASE


@dataclass(eq=False, slots=True)
class Exchange:
    """A question that was sent to a server. `edns`: whether with an OPT record; `outgoing`: what is not sent yet."""

    server: NameServer
    transport: Transport
    edns: bool
    ident: bytes
    wire: bytes
    socket: socket.socket
    outgoing: bytes = b""
    strangers: int = 0
    _incoming: bytearray = field(default_factory=bytearray)

    def read(self) -> list[bytes]:
        """The messages that have arrived; over TCP at most one, when it is whole. Raises OSError when there will be
        none."""
        if self.transport == "tcp":
            return self._read_stream()
        found = []
        for _ in range(MOST_DATAGRAMS):
            try:
                message = self.socket.recv(MOST_OVER_TCP)
            except BlockingIOError:
                break
            if len(message) >= HEADER:
                found.append(message)
        return found

    def _read_stream(self) -> list[bytes]:
        try:
            data = self.socket.recv(MOST_OVER_TCP + 2)
        except BlockingIOError:
            return []
        self._incoming += data
        size = int.from_bytes(self._incoming[:2], "big") if len(self._incoming) >= 2 else MOST_OVER_TCP
        if len(self._incoming) >= size + 2 and size >= HEADER:
            return [bytes(self._incoming[2 : size + 2])]
        if not data or size < HEADER:
            raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
        return []

    def write(self) -> bool:
        """Send what is left to send; whether all is sent. Raises OSError if there is no connection."""
        failure = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, os.strerror(failure))
        try:
            self.outgoing = self.outgoing[self.socket.send(self.outgoing) :]
        except BlockingIOError:
            return False
        return not self.outgoing

    def is_flooded(self) -> bool:
        """Count a datagram that is no answer; whether there were too many."""
        self.strangers += 1
        return self.strangers > MOST_STRANGERS


def begin(server: NameServer, transport: Transport, question: Question, wire: bytes, edns: bool) -> Exchange:
    """Send a question in the letters of `wire`; over TCP, begin to connect. Raises OSError."""
    ident = os.urandom(2)
    message = write_question(ident, wire, question, edns)
    address, _, zone = server.address.partition("%")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        where = (address, server.port) if family == socket.AF_INET else (address, server.port, 0, _index_of(zone))
        failure = made.connect_ex(where)
        if failure not in (0, errno.EINPROGRESS):
            raise OSError(failure, os.strerror(failure))
        if transport == "udp":
            made.send(message)
            return Exchange(server, transport, edns, ident, wire, made)
        return Exchange(server, transport, edns, ident, wire, made, len(message).to_bytes(2, "big") + message)
    except BaseException:
        made.close()
        raise


def _index_of(zone: str) -> int:
    if not zone:
        return 0
    return int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
