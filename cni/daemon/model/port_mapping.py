"""Asks a router for a port that leads to this node: by PCP (RFC 6887), or NAT-PMP (RFC 6886) if it has no PCP. Pure.

Both speak UDP to port 5351 of the router. A mapping has a lifetime, and is renewed after half of it.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Literal

from cni.addresses import Address
from cni.daemon.model.nat_behaviour import Place

Protocol = Literal["PCP", "NAT-PMP"]

PORT = 5351  # of the router
LIFETIME = 7200  # seconds that are asked for (RFC 6886, section 3.3)
REPEATS = (0.0, 0.25, 0.75, 1.75)  # seconds after a request's begin at which it is sent (RFC 6886, section 3.1)
PATIENCE = 3.75  # seconds until a router that has not answered has no such protocol
REST = 600.0  # seconds until a router that has neither is asked again
LEAST = 60.0  # seconds between two renewals at least
NONCE = 12  # bytes
_PCP, _MAP, _UDP, _RESPONSE = 2, 1, 17, 0x80
_PCP_HEAD = struct.Struct("!BBHI16s")
_PCP_ANSWER = struct.Struct("!BBxBII12x")
_PCP_MAP = struct.Struct("!12sB3xHH16s")
_PMP_ANSWER = struct.Struct("!BBHIHHI")
_PMP_ADDRESS = struct.Struct("!BBHI4s")
_UNSUPPORTED = 1  # result: unsupported version (RFC 6887, section 7.4; RFC 6886, section 3.5)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a router has answered. `result`: 0 for success; `place`: what is mapped, its address unspecified where
    another message has it; `lifetime` in seconds."""

    protocol: Protocol
    result: int
    place: Place | None = None
    address: Address | None = None
    lifetime: int = 0


def pcp_request(own: Address, port: int, nonce: bytes, suggested: Place | None, lifetime: int = LIFETIME) -> bytes:
    """A request to map UDP `port` of the node's address. `suggested`: what was mapped before."""
    outside = (
        suggested[0] if suggested is not None else ipaddress.ip_address("::ffff:0:0" if own.version == 4 else "::")
    )
    body = _PCP_MAP.pack(nonce, _UDP, port, suggested[1] if suggested is not None else port, _sixteen(outside))
    return _PCP_HEAD.pack(_PCP, _MAP, 0, lifetime, _sixteen(own)) + body


def pmp_requests(port: int, suggested: Place | None, lifetime: int = LIFETIME) -> tuple[bytes, bytes]:
    """The requests for the router's public address, and for a mapping of UDP `port`."""
    outside = suggested[1] if suggested is not None else port
    return b"\0\0", struct.pack("!BBHHHI", 0, 1, 0, port, outside, lifetime)


def parse(data: bytes, port: int, nonce: bytes) -> Answer:
    """The answer to one of the requests. Raises ValueError for anything else."""
    if len(data) >= 2 and data[0] == _PCP and data[1] == _RESPONSE | _MAP:
        return _parse_pcp(data, port, nonce)
    if len(data) >= 8 and data[0] == 0 and data[1] in (_RESPONSE, _RESPONSE | 1):
        return _parse_pmp(data, port)
    raise ValueError("no answer of a router")


def _parse_pcp(data: bytes, port: int, nonce: bytes) -> Answer:
    if len(data) < _PCP_ANSWER.size:
        raise ValueError("shorter than an answer")
    _, _, result, lifetime, _ = _PCP_ANSWER.unpack_from(data)
    if result:
        return Answer("PCP", result)
    if len(data) < _PCP_ANSWER.size + _PCP_MAP.size:
        raise ValueError("shorter than a mapping")
    echoed, protocol, internal, external, address = _PCP_MAP.unpack_from(data, _PCP_ANSWER.size)
    if (echoed, protocol, internal) != (nonce, _UDP, port):
        raise ValueError("the answer to another request")
    packed = ipaddress.IPv6Address(address)
    return Answer("PCP", 0, (packed.ipv4_mapped or packed, external), lifetime=lifetime)


def _parse_pmp(data: bytes, port: int) -> Answer:
    result = int.from_bytes(data[2:4], "big")
    if result:
        return Answer("NAT-PMP", result)
    if data[1] == _RESPONSE:
        if len(data) < _PMP_ADDRESS.size:
            raise ValueError("shorter than an address")
        return Answer("NAT-PMP", 0, address=ipaddress.ip_address(_PMP_ADDRESS.unpack_from(data)[4]))
    if len(data) < _PMP_ANSWER.size:
        raise ValueError("shorter than a mapping")
    *_, internal, external, lifetime = _PMP_ANSWER.unpack_from(data)
    if internal != port:
        raise ValueError("the answer to another request")
    return Answer("NAT-PMP", 0, (ipaddress.ip_address("0.0.0.0"), external), lifetime=lifetime)


def _sixteen(address: Address) -> bytes:
    """An address in 16 bytes, IPv4 mapped (RFC 6887, section 5)."""
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


class PortMapping:
    """The mapping of one port by one router. Times are arguments, in seconds of a monotonic clock."""

    def __init__(self, own: Address, port: int, nonce: bytes, now: float) -> None:
        self._own, self._port, self._nonce = own, port, nonce
        self._protocol: Protocol = "PCP"
        self._began: float | None = now
        self._sent = 0
        self._next = now
        self._address: Address | None = None  # the router's, by NAT-PMP
        self._ends = float("-inf")
        self.place: Place | None = None
        """What leads to this node from outside."""
        self.protocol: Protocol | None = None
        """The router's protocol; None if it has answered none."""
        self.refusal = 0
        """The number by which the router has refused."""

    def due(self) -> float:
        """When `advance` has something to do next."""
        if self._began is None:
            return self._next
        times = [*REPEATS[self._sent : self._sent + 1], PATIENCE]
        return self._began + times[0]

    def advance(self, now: float) -> list[bytes]:
        """The requests to send now."""
        if now > self._ends:
            self.place = None
        if self._began is None and now >= self._next:
            self._began, self._sent = now, 0
        if self._began is None:
            return []
        if self._sent < len(REPEATS) and now - self._began >= REPEATS[self._sent]:
            self._sent += 1
            return self._requests()
        if now - self._began >= PATIENCE:
            self._give_up(now)
        return []

    def _requests(self) -> list[bytes]:
        if self._protocol == "PCP":
            return [pcp_request(self._own, self._port, self._nonce, self.place)]
        return list(pmp_requests(self._port, self.place))

    def _give_up(self, now: float) -> None:
        if self._protocol == "PCP" and self._own.version == 4:
            self._protocol, self._began, self._sent = "NAT-PMP", now, 0
            return
        self._protocol, self._began, self._next = "PCP", None, now + REST

    def take(self, data: bytes, now: float) -> None:
        """Take in an answer of the router. Raises ValueError for what is none."""
        answer = parse(data, self._port, self._nonce)
        if self._began is None:
            return
        if answer.result == _UNSUPPORTED and self._protocol == "PCP":
            self._give_up(now)
            return
        if answer.protocol != self._protocol:
            return
        self.protocol, self.refusal = answer.protocol, answer.result
        if answer.result:
            self._began, self._next = None, now + REST
            return
        self._address = answer.address or self._address
        if answer.place is None:
            return
        address = self._address if answer.protocol == "NAT-PMP" else answer.place[0]
        if address is None:
            return  # the router's address follows, and the mapping is asked for again
        self.place, self._ends = (address, answer.place[1]), now + answer.lifetime
        self._began, self._next = None, now + max(answer.lifetime / 2, LEAST)

    def farewell(self) -> list[bytes]:
        """The requests that remove the mapping; none if there is none."""
        if self.place is None:
            return []
        if self.protocol == "PCP":
            return [pcp_request(self._own, self._port, self._nonce, None, 0)]
        return [pmp_requests(self._port, None, 0)[1]]
