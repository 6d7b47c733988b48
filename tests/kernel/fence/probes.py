"""Who reaches whom, asked with real packets: every pair at once, then whatever arrived where it was meant to.

A probe carries its number (TCP and UDP: the destination port; ICMP: the payload), so it is known however its source was
rewritten on the way. Arrival is read from raw sockets at the destination, which hear what the local stack was
given: one packet that arrives is a leak, answered or not. TCP and ping are answered by the kernel there (closed
port, echo), and the answer is looked for at the source.
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

from . import packets
from .lab import Lab, Place

FIRST_PORT = 20000
PROTOCOLS = ("tcp", "udp", "ping")
SETTLE = 0.15  # seconds after the last expected packet in which a leak would have shown
PATIENCE = 6.0


@dataclass(frozen=True)
class Probe:
    """One packet from one place to an address."""

    number: int
    src: Place
    dst: Place
    address: str
    source: str
    protocol: str

    @property
    def port(self) -> int:
        """The number as a port."""
        return FIRST_PORT + self.number


class Ears:
    """Raw sockets in every namespace; they hear what the stack there was given."""

    def __init__(self, lab: Lab) -> None:
        self._selector = selectors.DefaultSelector()
        # Not the same again soon: a packet that waited for its neighbour may be late by a whole round.
        self.numbers = itertools.cycle(range(45000))
        self._mouths: dict[tuple[str, str, int], socket.socket] = {}
        for space in {id(p.space): p.space for p in lab.places.values()}.values():
            for family, protocols in (
                (socket.AF_INET, (packets.ICMP, packets.TCP, packets.UDP)),
                (socket.AF_INET6, (packets.ICMP6, packets.TCP, packets.UDP)),
            ):
                for protocol in protocols:
                    ear = space.socket(family, socket.SOCK_RAW, protocol)
                    ear.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
                    self._selector.register(ear, selectors.EVENT_READ, (id(space), family, protocol))

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        for mouth in self._mouths.values():
            mouth.close()
        self._selector.close()

    def mouth(self, place: Place, source: str, protocol: int) -> socket.socket:
        """A raw socket that speaks with one of the place's addresses."""
        key = (place.name, source, protocol)
        if key not in self._mouths:
            made = place.space.socket(packets.raw_family(source), socket.SOCK_RAW, protocol)
            made.bind((source, 0))
            made.setsockopt(socket.SOL_SOCKET, 32, 1 << 22)
            made.setsockopt(socket.SOL_SOCKET, 8, 0)
            self._mouths[key] = made
        return self._mouths[key]

    def drain(self) -> set[tuple[int, int, str, int]]:
        """What has arrived: (space, number, protocol, 4 or 6, and for answers a protocol of `tcp!` or `ping!`)."""
        heard = set()
        for key, _ in self._selector.select(0):
            space, family, protocol = key.data
            while True:
                try:
                    data = key.fileobj.recv(2048)  # type: ignore[union-attr]
                except BlockingIOError:
                    break
                if family == socket.AF_INET:
                    data = data[(data[0] & 15) * 4 :]
                number, what = _read(data, protocol)
                if number is not None:
                    heard.add((space, number, what, 4 if family == socket.AF_INET else 6))
        return heard


def _read(data: bytes, protocol: int) -> tuple[int | None, str]:
    if protocol in (packets.ICMP, packets.ICMP6):
        if data[8:11] != b"zlt" or data[0] not in (8, 0, 128, 129):
            return None, ""
        return int.from_bytes(data[11:15], "big"), "ping" if data[0] in (8, 128) else "ping!"
    sport, dport = struct.unpack_from("!HH", data)
    if protocol == packets.UDP:
        return dport - FIRST_PORT, "udp"
    if data[13] & 4:  # RST: the answer of a closed port
        return sport - FIRST_PORT, "tcp!"
    return dport - FIRST_PORT, "tcp"


def _send(ears: Ears, probe: Probe) -> None:
    src, dst = probe.source, probe.address
    six = ":" in dst
    if probe.protocol == "ping":
        rest = struct.pack("!HH", probe.number & 0xFFFF, 1) + b"zlt" + probe.number.to_bytes(4, "big")
        body = packets.icmp6(src, dst, 128, 0, rest) if six else packets.icmp(8, 0, rest)
        protocol = packets.ICMP6 if six else packets.ICMP
    elif probe.protocol == "tcp":
        body, protocol = packets.tcp(src, dst, 1024 + probe.number % 60000, probe.port), packets.TCP
    else:
        body, protocol = packets.udp(src, dst, 1024 + probe.number % 60000, probe.port, b"zlt"), packets.UDP
    with contextlib.suppress(OSError):  # no route, or a neighbour that does not answer: it did not get there
        ears.mouth(probe.src, src, protocol).sendto(body, (dst, 0))


@dataclass
class Outcome:
    """What became of the probes of one pair: which protocols arrived, and which were answered."""

    arrived: frozenset[str]
    answered: frozenset[str]


def ask(
    ears: Ears, pairs: Iterable[tuple[Place, Place]], expected: set[tuple[str, str]]
) -> dict[tuple[str, str], Outcome]:
    """Probe every pair, both families, three protocols; wait for what is expected, and a while for what is not."""
    ears.drain()
    probes = [
        Probe(next(ears.numbers), src, dst, address, source, protocol)
        for src, dst in pairs
        for source, address in ((src.four, dst.four), (src.six, dst.six))
        for protocol in PROTOCOLS
    ]
    assert len(probes) < 45000
    heard: set[tuple[int, int, str, int]] = set()
    for i, probe in enumerate(probes):
        _send(ears, probe)
        if i % 64 == 63:
            heard |= ears.drain()
    wanted = {item for p in probes if (p.src.name, p.dst.name) in expected for item in _marks(p)}
    deadline = time.monotonic() + PATIENCE
    while not wanted <= heard and time.monotonic() < deadline:
        time.sleep(0.01)
        heard |= ears.drain()
    time.sleep(SETTLE)
    heard |= ears.drain()
    return _outcomes(probes, heard)


def _marks(p: Probe) -> list[tuple[int, int, str, int]]:
    version = 6 if ":" in p.address else 4
    marks = [(id(p.dst.space), p.number, p.protocol, version)]
    if p.protocol != "udp":
        marks.append((id(p.src.space), p.number, f"{p.protocol}!", version))
    return marks


def _outcomes(probes: list[Probe], heard: set[tuple[int, int, str, int]]) -> dict[tuple[str, str], Outcome]:
    found: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for p in probes:
        arrived, answered = found.setdefault((p.src.name, p.dst.name), (set(), set()))
        first, *answer = _marks(p)
        label = f"{p.protocol}{first[3]}"
        if first in heard:
            arrived.add(label)
        if answer and answer[0] in heard:
            answered.add(label)
    return {pair: Outcome(frozenset(a), frozenset(b)) for pair, (a, b) in found.items()}
