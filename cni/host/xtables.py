"""Whether iptables-legacy's FORWARD changed. The kernel announces no change of it, so it is polled.

It is read by getsockopt(2), some 50 microseconds per poll, where starting iptables costs 4 ms. A table is read only if
it exists: reading a missing one would create it, with its hooks.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

_FORWARD = 2  # NF_INET_FORWARD
_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_..., IP6T_SO_...
_INFO = struct.Struct("=32sI5I5III")
_LISTS = {4: Path("/proc/thread-self/net/ip_tables_names"), 6: Path("/proc/thread-self/net/ip6_tables_names")}
# Offsets in struct ipt_entry and ip6t_entry: its target, its size, and what the kernel changes by itself (comefrom,
# counters).
_TARGET_AT, _SIZE_AT = {4: 88, 6: 140}, {4: 90, 6: 142}
_VOLATILE = {4: (92, 112), 6: (144, 168)}
_LEVELS = {4: (socket.AF_INET, 0), 6: (socket.AF_INET6, 41)}
_libc = ctypes.CDLL(None, use_errno=True)


def present(version: int) -> bool:
    """Whether iptables-legacy's filter table exists, for IP version 4 or 6."""
    return exists(version, "filter")


def has_chain(version: int, table: str, chain: str) -> bool:
    """Whether a table of iptables-legacy has a chain that a program added. False if it cannot be read."""
    if not exists(version, table):
        return False
    try:
        _, entries = _read(version, table)
    except OSError:
        return False
    return b"\0" + chain.encode() + b"\0" in entries  # the name in the entry at the chain's head


def exists(version: int, table: str) -> bool:
    """Whether iptables-legacy has a table, for IP version 4 or 6."""
    try:
        return table in _LISTS[version].read_text().split()
    except OSError:
        return False


def nat(version: int) -> bytes:
    """Bytes that change with the rules of iptables-legacy's table nat; empty without it, `?` if it cannot be read."""
    if not exists(version, "nat"):
        return b""
    try:
        info, entries = _read(version, "nat")
    except OSError:
        return b"?"
    low, high = _VOLATILE[version]
    parts = [
        entries[at : at + low] + entries[at + high : at + size] for at, size in _walk(entries, 0, len(entries), version)
    ]
    return info[32:] + b"".join(parts)


def forward(version: int) -> bytes:
    """Bytes that change if a rule of FORWARD changes, or of a chain that FORWARD leads to, or the size of another chain
    of the filter table; empty if the table does not exist, `?` if it cannot be read. Never raises."""
    if not present(version):
        return b""
    try:
        info, entries = _read(version, "filter")
    except OSError:
        return b"?"
    fields = _INFO.unpack(info)
    return info[32:] + masked(entries, fields[2 + _FORWARD], fields[7 + _FORWARD], version)


def _read(version: int, table: str) -> tuple[bytes, bytes]:
    """Header and entries of a table that exists. Raises OSError."""
    family, level = _LEVELS[version]
    name = table.encode()
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as sock:
        info = _ask(sock, level, _GET_INFO, name.ljust(_INFO.size, b"\0"))
        size = _INFO.unpack(info)[-1]
        asked = name.ljust(32, b"\0") + struct.pack("=II", size, 0) + bytes(size)
        return info, _ask(sock, level, _GET_ENTRIES, asked)[40:]


def masked(entries: bytes, start: int, last: int, version: int) -> bytes:
    """The chain from offset `start` to offset `last`, inclusive, and the chains that it leads to, without what the
    kernel changes by itself. Pure.
    """
    parts, todo, walked = [], [start], set[int]()
    low, high = _VOLATILE[version]
    while todo:
        begin = todo.pop()
        walked.add(begin)
        for at, size in _walk(entries, begin, last if begin == start else len(entries), version):
            target = at + _short(entries, at + _TARGET_AT[version])
            name = entries[target + 2 : target + 31].partition(b"\0")[0]
            if name == b"ERROR":  # the head of the next chain
                break
            parts.append(entries[at : at + low] + entries[at + high : at + size])
            verdict = int.from_bytes(entries[target + 32 : target + 36], sys.byteorder, signed=True)
            leads = name == b"" and verdict > 0 and verdict != at + size  # to another entry than the next
            if leads and verdict not in walked:
                todo.append(verdict)
    return b"".join(parts)


def _walk(entries: bytes, at: int, last: int, version: int) -> Iterator[tuple[int, int]]:
    """Offset and size of each entry from one offset to another, inclusive."""
    least = _VOLATILE[version][1]
    while at <= last and at + least <= len(entries):
        size = _short(entries, at + _SIZE_AT[version])
        if size < least:
            return
        yield at, size
        at += size


def _short(entries: bytes, at: int) -> int:
    return int.from_bytes(entries[at : at + 2], sys.byteorder)


def _ask(sock: socket.socket, level: int, option: int, asked: bytes) -> bytes:
    buffer, size = ctypes.create_string_buffer(asked, len(asked)), ctypes.c_uint32(len(asked))
    if _libc.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), "getsockopt")
    return buffer.raw
