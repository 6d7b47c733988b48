"""Whether iptables-legacy's FORWARD changed. The kernel announces no change of it, so it is polled.

It is read by getsockopt(2), some 50 microseconds per poll, where starting iptables costs 4 ms. A table is read only if
it exists: reading a missing one would create it, with its hooks.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from pathlib import Path

_FORWARD = 2  # NF_INET_FORWARD
_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_..., IP6T_SO_...
_INFO = struct.Struct("=32sI5I5III")
_LISTS = {4: Path("/proc/thread-self/net/ip_tables_names"), 6: Path("/proc/thread-self/net/ip6_tables_names")}
# Offsets in struct ipt_entry and ip6t_entry: its size, and what the kernel changes by itself (comefrom, counters).
_SIZE_AT = {4: 90, 6: 142}
_VOLATILE = {4: (92, 112), 6: (144, 168)}
_LEVELS = {4: (socket.AF_INET, 0), 6: (socket.AF_INET6, 41)}
_libc = ctypes.CDLL(None, use_errno=True)


def present(version: int) -> bool:
    """Whether iptables-legacy's filter table exists, for IP version 4 or 6."""
    try:
        return "filter" in _LISTS[version].read_text().split()
    except OSError:
        return False


def forward(version: int) -> bytes:
    """Bytes that change if a rule of FORWARD changes, or the size of another chain of the filter table; empty if the
    table does not exist, `?` if it cannot be read. Never raises."""
    if not present(version):
        return b""
    family, level = _LEVELS[version]
    try:
        with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as sock:
            info = _ask(sock, level, _GET_INFO, b"filter".ljust(_INFO.size, b"\0"))
            fields = _INFO.unpack(info)
            size, entry, underflow = fields[-1], fields[2 + _FORWARD], fields[7 + _FORWARD]
            blob = _ask(
                sock, level, _GET_ENTRIES, b"filter".ljust(32, b"\0") + struct.pack("=II", size, 0) + bytes(size)
            )
    except OSError:
        return b"?"
    return info[32:] + masked(blob[40:], entry, underflow, version)


def masked(entries: bytes, start: int, last: int, version: int) -> bytes:
    """The entries from offset `start` to offset `last`, inclusive, without what the kernel changes by itself. Pure."""
    parts, at, (low, high) = [], start, _VOLATILE[version]
    while start <= at <= last and at + high <= len(entries):
        size = int.from_bytes(entries[at + _SIZE_AT[version] : at + _SIZE_AT[version] + 2], sys.byteorder)
        if size < high:
            break
        parts.append(entries[at : at + low] + entries[at + high : at + size])
        at += size
    return b"".join(parts)


def _ask(sock: socket.socket, level: int, option: int, asked: bytes) -> bytes:
    buffer, size = ctypes.create_string_buffer(asked, len(asked)), ctypes.c_uint32(len(asked))
    if _libc.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), "getsockopt")
    return buffer.raw
