"""Classic BPF on a netlink socket (SO_ATTACH_FILTER): the kernel drops notifications that no reader needs.

A notification that is dropped wakes no thread. Where the kernel refuses a filter, the reader gets all notifications and
sorts them out itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

from cni.host import nlmsg

_ATTACH = 26  # SO_ATTACH_FILTER
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _AND, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x54, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_WHOLE = 0xFFFFFFFF
_SIZES = {1: _LOAD_BYTE, 2: _LOAD_HALF, 4: _LOAD_WORD}

_TYPE, _PORT = (4, 2), (12, 4)  # offset and size in struct nlmsghdr
_BODY = 16

Check = tuple[int, bytes, bytes]
"""Offset, value and mask of 1, 2 or 4 bytes of a message."""


def native(value: int, size: int) -> bytes:
    """A number as the kernel stores it in a header."""
    return value.to_bytes(size, nlmsg.BYTE_ORDER)


def equal(offset: int, value: bytes, mask: bytes = b"") -> Check:
    """The bytes at `offset` are `value`; only where `mask` has ones."""
    return offset, value, mask or b"\xff" * len(value)


def of_type(kind: int) -> Check:
    """The message has that type."""
    return equal(_TYPE[0], native(kind, _TYPE[1]))


def from_port(port: int) -> Check:
    """The message was caused by the socket with that netlink port."""
    return equal(_PORT[0], native(port, _PORT[1]))


def of_link(name: str) -> list[Check]:
    """The message is about a link whose name has these characters: "?" stands for any, "*" at the end for any rest.
    IFLA_IFNAME is the first attribute of a link."""
    attribute = _BODY + 16  # behind struct ifinfomsg
    wanted = name.encode().ljust(16, b"\0") if not name.endswith("*") else name[:-1].encode().ljust(16, b"?")
    mask = bytes(0 if byte == ord("?") else 0xFF for byte in wanted)
    words = [(at, wanted[at : at + 4], mask[at : at + 4]) for at in range(0, 16, 4)]
    return [
        equal(attribute + 2, native(3, 2)),
        *(equal(attribute + 4 + at, value, ones) for at, value, ones in words if any(ones)),
    ]


def of_family(family: int) -> Check:
    """The message is about the settings that an address family has for a link."""
    return equal(_BODY, bytes([family]))


def of_route(kind: int) -> Check:
    """The message is about a route of that type (RTN_*)."""
    return equal(_BODY + 7, bytes([kind]))


def dropping(*unwanted: list[Check]) -> bytes:
    """A program that drops a message if all checks of one of `unwanted` hold. A message too short for a check is
    dropped, so the first check of each is the type."""
    code = b""
    for checks in unwanted:
        steps = [_loaded(check) for check in checks]
        lengths = [len(step) // _INSTRUCTION.size + 1 for step in steps]
        for number, (step, (_, value, mask)) in enumerate(zip(steps, checks, strict=True)):
            target = int.from_bytes(value, "big") & int.from_bytes(mask, "big")
            beyond = sum(lengths[number + 1 :]) + 1  # over the remaining checks, and the return
            code += step + _INSTRUCTION.pack(_JUMP_EQUAL, 0, beyond, target)
        code += _INSTRUCTION.pack(_RETURN, 0, 0, 0)
    return code + _INSTRUCTION.pack(_RETURN, 0, 0, _WHOLE)


def _loaded(check: Check) -> bytes:
    offset, value, mask = check
    load = _INSTRUCTION.pack(_SIZES[len(value)], 0, 0, offset)
    every = mask == b"\xff" * len(mask)
    return load if every else load + _INSTRUCTION.pack(_AND, 0, 0, int.from_bytes(mask, "big"))


def attach(sock: socket.socket, program: bytes) -> None:
    """Let the kernel drop what `program` drops, in place of an earlier program. Does nothing where that is refused."""
    code = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("@HP", count, ctypes.addressof(code)))
