"""Dumps of nftables objects by nfnetlink, as the kernel gives them: one object after the other, as raw attributes."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

FAMILIES = {"inet": 1, "bridge": 7}
TABLES, CHAINS, RULES, SETS, ELEMENTS = 1, 4, 7, 10, 13  # GET... of enum nf_tables_msg_types

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


class Disturbed(Exception):
    """A transaction was committed during the dump, so what was dumped is not one moment."""


def words(kind: int, text: str) -> bytes:
    """A string attribute, without padding."""
    value = text.encode() + b"\0"
    return _ATTRIBUTE.pack(4 + len(value), kind) + value


def attributes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(type without flags, value) of each attribute in `data[start:end]`, in order."""
    at, end = start, len(data) if end is None else end
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


class Dumper:
    """An nfnetlink socket of the calling thread's namespace; afterwards any thread may use it, one at a time."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12)
        self._socket.bind((0, 0))
        self._number = 0

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def dump(self, kind: int, family: int, table: str, of: str = "") -> Iterator[bytes]:
        """The attributes of each object of a kind in a table; for ELEMENTS those of the set `of`.

        A table or set that is missing has none. Raises Disturbed, OSError.
        """
        self._number += 1
        wanted = words(1, table)
        more = words(2, of) if of else b""
        asked = wanted + bytes(-len(wanted) % 4) + more + bytes(-len(more) % 4)
        request = struct.pack(">BBH", family, 0, 0) + asked
        size = _HEADER.size + len(request)
        self._socket.send(_HEADER.pack(size, _SUBSYSTEM << 8 | kind, _REQUEST | _DUMP, self._number, 0) + request)
        disturbed = False
        while True:
            data = self._socket.recv(1 << 16)
            at = 0
            while at < len(data):
                length, what, flags, number, _ = _HEADER.unpack_from(data, at)
                if number == self._number:
                    disturbed = disturbed or bool(flags & _INTERRUPTED)
                    if what in (_ERROR, _DONE):
                        code = -int.from_bytes(data[at + 16 : at + 20], "little", signed=True)
                        if code not in (0, errno.ENOENT):  # some kernels have no empty dump for a missing table
                            raise OSError(code, os.strerror(code))
                        if disturbed:
                            raise Disturbed
                        return
                    # The table's name comes first: the kernel filters chains and tables by family alone.
                    if data.startswith(wanted, at + 20):
                        yield data[at + 20 : at + length]
                at += (length + 3) & ~3
