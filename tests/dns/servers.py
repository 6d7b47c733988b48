"""DNS servers of the tests' own, each at an address of 127.0.0.0/8 by UDP and TCP; dnspython reads and writes."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

PORT = 53535
_hosts = itertools.count(1)

Behaviour = Callable[[dns.message.Message, "Server", str], "list[bytes] | None"]


def fresh_address() -> str:
    """An address of this machine that no other server of the tests has."""
    number = next(_hosts)
    return f"127.53.{number >> 8}.{number & 255}"


def records(query: dns.message.Message, *lines: str, code: int = dns.rcode.NOERROR) -> dns.message.Message:
    """The reply with these records in the answer section; `name ttl class type data` each."""
    reply = dns.message.make_response(query, recursion_available=True)
    reply.set_rcode(code)
    for line in lines:
        name, ttl, kind, data = line.split(maxsplit=3)
        reply.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, data))
    return reply


def negative(query: dns.message.Message, code: int, ttl: int = 20, minimum: int = 10) -> dns.message.Message:
    """NXDOMAIN, or NODATA, with an SOA."""
    reply = records(query, code=code)
    soa = f"ns.example. host.example. 1 2 3 4 {minimum}"
    reply.authority.append(dns.rrset.from_text("example.", ttl, "IN", "SOA", soa))
    return reply


def address_of_name(query: dns.message.Message, server: Server, _: str) -> list[bytes] | None:
    """One A or AAAA record with the address of the server itself, TTL 60."""
    name, kind = query.question[0].name.to_text(), "AAAA" if ":" in server.address else "A"
    return [records(query, f"{name} 60 {kind} {server.address}").to_wire()]


def code(number: int) -> Behaviour:
    """A server that answers every question with one code."""
    return lambda query, server, transport: [records(query, code=number).to_wire()]


def silent(query: dns.message.Message, server: Server, transport: str) -> list[bytes] | None:
    """A server that never answers."""
    return None


class Server:
    """One server. `behaviour` makes the datagrams that answer a question; `udp`, `tcp`: what it listens at. What it was
    asked: `seen`, as (transport, question, peer's port)."""

    def __init__(
        self,
        behaviour: Behaviour = address_of_name,
        *,
        udp: bool = True,
        tcp: bool = True,
        delay: float = 0.0,
        address: str = "",
        port: int = PORT,
    ) -> None:
        self.address, self.behaviour, self.delay = address or fresh_address(), behaviour, delay
        self.port = port
        self.seen: list[tuple[str, dns.message.Message, int]] = []
        self.peers: set[str] = set()
        self._sockets: list[socket.socket] = []
        if udp:
            self._open(socket.SOCK_DGRAM, self._serve_udp)
        if tcp:
            self._open(socket.SOCK_STREAM, self._serve_tcp)

    def _open(self, kind: int, serve: Callable[[socket.socket], None]) -> None:
        made = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((self.address, self.port))
        if kind == socket.SOCK_STREAM:
            made.listen(64)
        self._sockets.append(made)
        threading.Thread(target=self._run, args=(serve, made), daemon=True).start()

    def _run(self, serve: Callable[[socket.socket], None], listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                serve(listener)

    def _answers(self, wire: bytes, transport: str, peer: tuple[str, int]) -> list[bytes]:
        query = dns.message.from_wire(wire)
        self.seen.append((transport, query, peer[1]))
        self.peers.add(peer[0])
        if self.delay:
            time.sleep(self.delay)
        return self.behaviour(query, self, transport) or []

    def _serve_udp(self, listener: socket.socket) -> None:
        wire, peer = listener.recvfrom(65535)
        if peer is None:
            raise OSError("closed")

        def answer() -> None:
            for each in self._answers(wire, "udp", peer):
                with contextlib.suppress(OSError):
                    listener.sendto(each, peer)

        threading.Thread(target=answer, daemon=True).start()

    def _serve_tcp(self, listener: socket.socket) -> None:
        stream, peer = listener.accept()

        def answer() -> None:
            with stream, contextlib.suppress(OSError):
                size = int.from_bytes(exactly(stream, 2), "big")
                for each in self._answers(exactly(stream, size), "tcp", peer):
                    stream.sendall(len(each).to_bytes(2, "big") + each)
                stream.settimeout(10)
                stream.recv(1)

        threading.Thread(target=answer, daemon=True).start()

    def asked(self, transport: str = "") -> list[Any]:
        """The questions so far."""
        return [query for how, query, _ in self.seen if how == (transport or how)]

    def close(self) -> None:
        """Stop listening: a question is then refused by the kernel, at once."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def exactly(stream: socket.socket, size: int) -> bytes:
    """So many octets of a stream."""
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the stream has ended")
        data += more
    return data
