"""Several UDP sockets at one address and port, among which the kernel chooses by the sender's address
(SO_ATTACH_REUSEPORT_CBPF). A sender that fills one queue leaves those of most other senders alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

_ATTACH = 51  # SO_ATTACH_REUSEPORT_CBPF
_LOAD_WORD, _MODULO, _RETURN_ACCUMULATOR = 0x20, 0x94, 0x16
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF: offsets count from the IP header
_LAST_OF_SOURCE = {socket.AF_INET: 12, socket.AF_INET6: 20}  # offset of the last four bytes of the source address
_INSTRUCTION = struct.Struct("=HBBI")


def bind(address: str, port: int, number: int, buffer: int) -> list[socket.socket]:
    """`number` sockets at an address, each with a receive buffer of so many bytes; `port`: 0 for any that is free.
    Where the kernel refuses the program, it chooses among them by the sender's port as well. Raises OSError, with none
    open.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sockets: list[socket.socket] = []
    try:
        for _ in range(number):
            sockets.append(socket.socket(family, socket.SOCK_DGRAM))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            sockets[-1].bind((address, port))
            port = sockets[-1].getsockname()[1]
        _attach(sockets[0], _program(family, number))
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _program(family: int, number: int) -> bytes:
    """The index of the socket for a datagram: its source address modulo the number of sockets."""
    return b"".join(
        (
            _INSTRUCTION.pack(_LOAD_WORD, 0, 0, _NETWORK_HEADER + _LAST_OF_SOURCE[socket.AddressFamily(family)]),
            _INSTRUCTION.pack(_MODULO, 0, 0, number),
            _INSTRUCTION.pack(_RETURN_ACCUMULATOR, 0, 0, 0),
        )
    )


def _attach(sock: socket.socket, program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("@HP", count, ctypes.addressof(code)))
