"""Connection tracking: forget every flow of an address, so that its next owner inherits none.

ctnetlink, packed by hand: the kernel hands over only the flows of the address (filters: Linux 5.8; an older one hands
over all, and we pick), and each is deleted by what names it. A walk of the kernel's whole hash table costs about 10 ms,
two for an address, one for all of a family when there are many: not for the event loop.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, ip_address

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE = 0, 1, 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_NESTED = 0x8000
_ERROR, _DONE = 2, 3
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER = 1, 2, 25  # CTA_...
_TUPLE_IP, _ZONE, _ID = 1, 18, 12
_DIRECTIONS = (_TUPLE_ORIG, _TUPLE_REPLY)  # who opened it is the first's source; who answers, the second's
_FEW = 2  # addresses of a family to look for one by one, two walks each
_NAMES = (_TUPLE_ORIG, _ZONE, _ID)  # an id is a flow's own: a new flow of the same addresses is not deleted by it
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_IP_SRC = 1 << 0  # CTA_FILTER_FLAG(CTA_IP_SRC)
_HEADER = struct.Struct("=IHHII")


class ConntrackError(OSError):
    """The kernel refused."""


class Conntrack:
    """A ctnetlink socket of the calling thread's namespace; afterwards any thread may use it, one at a time."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.settimeout(5)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def forget(self, addresses: Iterable[str]) -> int:
        """Delete every flow that one of `addresses` opened or answers, translated or not; how many there were.

        Twice is the same as once. Raises ConntrackError.
        """
        count = 0
        asked = {str(ip_address(address)) for address in addresses}
        for version in (4, 6):
            mine = {address for address in asked if ip_address(address).version == version}
            flows = dict.fromkeys(flow for found in self._dumps(mine) for flow in found)
            count += sum(self._delete(flow, version) for flow in flows)
        return count

    def _dumps(self, addresses: set[str]) -> Iterator[list[bytes]]:
        """The flows of these addresses of one family: by the kernel's filter for a few, by one look at all for many."""
        wanted = {ip_address(address).packed for address in addresses}
        version = 6 if any(":" in address for address in addresses) else 4
        if len(addresses) <= _FEW:
            for address in addresses:
                for direction in _DIRECTIONS:
                    yield list(self._flows(version, wanted, _filter(address, direction)))
        else:
            yield list(self._flows(version, wanted, b""))

    def _flows(self, version: int, wanted: set[bytes], attributes: bytes) -> Iterator[bytes]:
        """What names each flow that one of `wanted` is the first source of, in either direction."""
        self._send(_GET, _DUMP, version, attributes)
        for body in self._answers():
            found = dict(_attributes(body))
            if any(_source_of(found.get(direction, b"")) in wanted for direction in _DIRECTIONS):
                yield b"".join(_attr(kind, found[kind]) for kind in _NAMES if kind in found)

    def _delete(self, flow: bytes, version: int) -> int:
        self._send(_DELETE, _ACK, version, flow)
        try:
            list(self._answers())
        except ConntrackError as error:
            if error.errno == errno.ENOENT:
                return 0
            raise
        return 1

    def _send(self, kind: int, flags: int, version: int, attributes: bytes) -> None:
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        body = struct.pack("=BBH", family, 0, 0) + attributes
        self._socket.send(_HEADER.pack(16 + len(body), _SUBSYSTEM << 8 | kind, flags | _REQUEST, 1, 0) + body)

    def _answers(self) -> Iterator[bytes]:
        """Bodies, less their nfgenmsg, until the kernel says it is done. Raises ConntrackError."""
        while True:
            data = self._socket.recv(1 << 16)
            while len(data) >= _HEADER.size:
                size, kind, _, _, _ = _HEADER.unpack_from(data)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    code = -int.from_bytes(data[16:20], "little", signed=True)
                    if code:
                        raise ConntrackError(code, os.strerror(code))
                    return
                yield data[20:size]
                data = data[(size + 3) & ~3 :]


def _attr(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:size]
        data = data[(size + 3) & ~3 :]


def _filter(address: str, direction: int) -> bytes:
    """Only flows whose source in `direction` is `address`."""
    asked, other = (
        (_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS)
        if direction == _TUPLE_ORIG
        else (_FILTER_REPLY_FLAGS, _FILTER_ORIG_FLAGS)
    )
    flags = _attr(asked, struct.pack("=I", _IP_SRC)) + _attr(other, struct.pack("=I", 0))
    return _attr(direction | _NESTED, _attr(_TUPLE_IP | _NESTED, _source(address))) + _attr(_FILTER | _NESTED, flags)


def _source(address: str) -> bytes:
    packed = ip_address(address)
    return _attr(1 if isinstance(packed, IPv4Address) else 3, packed.packed)  # CTA_IP_V4_SRC, CTA_IP_V6_SRC


def _source_of(tuple_: bytes) -> bytes:
    inside = dict(_attributes(dict(_attributes(tuple_)).get(_TUPLE_IP, b"")))
    return inside.get(1) or inside.get(3) or b""
