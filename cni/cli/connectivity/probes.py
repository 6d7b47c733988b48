"""What is sent from one namespace to another: a token that must come back. One port for TCP and UDP."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable

PORT = 9473
TOKEN = 16  # bytes
LARGE = 60_000  # bytes of a datagram that is sent in fragments
BULK = 1 << 20  # bytes each way
SMALLEST = 1280
WINDOW = 24  # datagrams on their way at a time
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_PROBE = 3  # IP_PMTUDISC_PROBE: "don't fragment", whatever the kernel has cached about the path
_DONTFRAG = 62  # IPV6_DONTFRAG
_HEADERS = {4: 28, 6: 48}  # bytes of the IP and UDP headers
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}


def version_of(address: str) -> int:
    return 6 if ":" in address else 4


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _unfragmented(sock: socket.socket, version: int) -> None:
    sock.setsockopt(*_MTU_DISCOVER[version], _PROBE)
    if version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, _DONTFRAG, 1)


class Responder:
    """Answers everything that comes to PORT in one namespace with the same bytes, until `close`."""

    def __init__(
        self, addresses: Iterable[str], inside: Callable[[Callable[[], list[socket.socket]]], list[socket.socket]]
    ):
        """`inside` runs a function in the namespace. Raises OSError."""
        addresses = tuple(addresses)
        self._sockets = inside(lambda: _opened(addresses))
        self._end, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and close the sockets. Idempotent."""
        self._stop.close()
        self._thread.join(5)
        for sock in (*self._sockets, self._end):
            sock.close()

    def _run(self) -> None:
        streams: dict[socket.socket, bytearray] = {}
        while True:
            waiting = [*self._sockets, self._end, *streams]
            readable, writable, _ = select.select(waiting, [s for s, data in streams.items() if data], [])
            if self._end in readable:
                break
            for sock in writable:
                _write(sock, streams)
            for sock in readable:
                if sock in streams:
                    _read(sock, streams)
                elif sock in self._sockets:
                    self._serve(sock, streams)
        for sock in streams:
            sock.close()

    @staticmethod
    def _serve(sock: socket.socket, streams: dict[socket.socket, bytearray]) -> None:
        with contextlib.suppress(OSError):
            if sock.type == socket.SOCK_STREAM:
                client, _ = sock.accept()
                client.setblocking(False)
                streams[client] = bytearray()
            else:
                data, sender = sock.recvfrom(1 << 16)
                large = len(data) > 1 << 14
                version = 6 if sock.family == socket.AF_INET6 else 4
                sock.setsockopt(*_MTU_DISCOVER[version], 0 if large else _PROBE)
                sock.sendto(data, sender)


def _opened(addresses: Iterable[str]) -> list[socket.socket]:
    made: list[socket.socket] = []
    try:
        for address in addresses:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = socket.socket(_family(address), kind)
                made.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((address, PORT))
                if kind == socket.SOCK_STREAM:
                    sock.listen(64)
                else:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made


def _read(sock: socket.socket, streams: dict[socket.socket, bytearray]) -> None:
    try:
        data = sock.recv(1 << 16)
    except BlockingIOError:
        return
    except OSError:
        data = b""
    if data:
        streams[sock] += data
    else:
        del streams[sock]
        sock.close()


def _write(sock: socket.socket, streams: dict[socket.socket, bytearray]) -> None:
    with contextlib.suppress(OSError):
        del streams[sock][: sock.send(streams[sock])]


def tcp(address: str, size: int, seconds: float, source: str = "", port: int = PORT) -> bool:
    """Whether `size` bytes go to the address and come back whole within `seconds`."""
    data = os.urandom(size)
    end = time.monotonic() + seconds
    try:
        with socket.socket(_family(address), socket.SOCK_STREAM) as sock:
            if source:
                sock.bind((source, 0))
            sock.settimeout(seconds)
            sock.connect((address, port))
            sock.setblocking(False)
            return _exchange(sock, data, end)
    except OSError:
        return False


def _exchange(sock: socket.socket, data: bytes, end: float) -> bool:
    heard, sent = bytearray(), 0
    while len(heard) < len(data):
        left = end - time.monotonic()
        readable, writable, _ = select.select([sock], [sock] if sent < len(data) else [], [], max(left, 0))
        if left <= 0 or not (readable or writable):
            return False
        if writable:
            sent += sock.send(data[sent : sent + (1 << 16)])
        if readable:
            part = sock.recv(1 << 16)
            if not part:
                return False
            heard += part
    return bytes(heard) == data


def answered(address: str, port: int, seconds: float, source: str = "") -> bool:
    """Whether something at the port answers a connection, be it by a refusal."""
    try:
        with socket.socket(_family(address), socket.SOCK_STREAM) as sock:
            if source:
                sock.bind((source, 0))
            sock.settimeout(seconds)
            sock.connect((address, port))
            return True
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


def udp(address: str, size: int, seconds: float) -> bool:
    """Whether a datagram of `size` bytes, in fragments if need be, comes back whole; it is sent up to three times."""
    data = os.urandom(size)
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
            sock.settimeout(seconds / 3)
            sock.connect((address, PORT))
            for _ in range(3):
                with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                    sock.send(data)
                    if sock.recv(1 << 16) == data:
                        return True
    except OSError:
        pass
    return False


def sizes(address: str, mtu: int, seconds: float) -> tuple[set[int], bool]:
    """The sizes of packets from SMALLEST to `mtu` that came back unfragmented, and whether one byte more did not."""
    version = version_of(address)
    wanted = set(range(SMALLEST, mtu + 1))
    back: set[int] = set()
    end = time.monotonic() + seconds
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
            _unfragmented(sock, version)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.connect((address, PORT))
            for _ in range(3):
                _send_sizes(sock, sorted(wanted - back), _HEADERS[version], back, end)
                if back >= wanted or time.monotonic() > end:
                    break
            _send_sizes(sock, [mtu + 1], _HEADERS[version], back, time.monotonic() + 0.25)
    except OSError:
        pass
    return back & wanted, mtu + 1 not in back


def _send_sizes(sock: socket.socket, missing: list[int], headers: int, back: set[int], end: float) -> None:
    for at in range(0, len(missing), WINDOW):
        part = missing[at : at + WINDOW]
        for size in part:
            with contextlib.suppress(OSError):
                sock.send(struct.pack(">I", size) + bytes(size - headers - 4))
        until = min(end, time.monotonic() + 0.25)
        while not back.issuperset(part) and (left := until - time.monotonic()) > 0:
            if not select.select([sock], [], [], left)[0]:
                break
            with contextlib.suppress(OSError):
                data = sock.recv(1 << 16)
                if len(data) >= 4 and struct.unpack_from(">I", data)[0] == len(data) + headers:
                    back.add(len(data) + headers)


def echo(address: str, seconds: float) -> bool:
    """Whether an echo request (ICMP) is answered."""
    version = version_of(address)
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    token, number = os.urandom(TOKEN), int.from_bytes(os.urandom(2), "big")
    head = struct.pack(">BBHHH", _REQUEST[version], 0, 0, number, 1)
    if version == 4:
        head = struct.pack(">BBHHH", _REQUEST[version], 0, _checksum(head + token), number, 1)
    try:
        with socket.socket(_family(address), socket.SOCK_RAW, protocol) as sock:
            sock.connect((address, 0))
            end = time.monotonic() + seconds
            for _ in range(3):
                sock.send(head + token)
                if _hears_echo(sock, token, version, min(end, time.monotonic() + seconds / 3)):
                    return True
    except OSError:
        pass
    return False


def _hears_echo(sock: socket.socket, token: bytes, version: int, end: float) -> bool:
    while (left := end - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
        data = sock.recv(1 << 12)
        start = (data[0] & 15) * 4 if version == 4 else 0
        if data[start : start + 1] == bytes([_REPLY[version]]) and data.endswith(token):
            return True
    return False


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def resolves(server: str, name: str, seconds: float) -> bool:
    """Whether the resolver answers a question for the name, with any code but "refused" or "server failure"."""
    number = os.urandom(2)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = number + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    try:
        with socket.socket(_family(server), socket.SOCK_DGRAM) as sock:
            sock.settimeout(seconds)
            sock.connect((server, 53))
            sock.send(question)
            answer = sock.recv(1 << 12)
    except OSError:
        return False
    return answer[:2] == number and len(answer) > 3 and answer[3] & 15 in (0, 3)
