"""NFLOG: packets that rules with `log group` copy to this process (linux/netfilter/nfnetlink_log.h)."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cni.host import nlmsg

_SUBSYSTEM = 4  # NFNL_SUBSYS_ULOG
_PACKET, _CONFIG = _SUBSYSTEM << 8, _SUBSYSTEM << 8 | 1
_BIND, _COPY_PACKET = 1, 2  # NFULNL_CFG_CMD_BIND, NFULNL_COPY_PACKET
_CMD, _MODE, _BUFFER, _TIMEOUT, _THRESHOLD = 1, 2, 3, 4, 5  # NFULA_CFG_...
_HEADER, _IN, _OUT, _PHYS_IN, _PHYS_OUT, _PAYLOAD, _PREFIX, _HARDWARE = 1, 4, 5, 6, 7, 9, 10, 16  # NFULA_...
_QUEUE = 1 << 17  # bytes that the kernel gathers before it sends them
_DELAY = 10  # hundredths of a second after which it sends what it has
_ROOM = 1 << 20  # bytes of the socket's buffer
AT_ONCE = 1 << 18  # bytes of one read


@dataclass(frozen=True, slots=True)
class Logged:
    """One packet. `devices`: the interface indexes that it came in by and goes out by, 0 for none; where it passes a
    bridge, those of the ports. `link`: its link-layer header, if known. `time`: seconds since the epoch."""

    prefix: str
    ethertype: int
    devices: tuple[int, int]
    link: bytes
    payload: bytes
    time: float


class PacketLog:
    """The packets of one group in the constructing thread's namespace. One thread at a time. The kernel allows one
    process to each group: raises OSError, EBUSY if another has it.
    """

    def __init__(self, group: int, length: int) -> None:
        """`length`: bytes of each packet that are copied."""
        self._lost = 0
        self._sock = nlmsg.opened(nlmsg.NETFILTER)
        try:
            nlmsg.widen(self._sock, socket.SO_RCVBUF, _ROOM)
            self._sock.settimeout(5.0)
            self._configure(group, nlmsg.attribute(_CMD, bytes([_BIND])))
            self._configure(
                group,
                nlmsg.attribute(_MODE, length.to_bytes(4, "big") + bytes([_COPY_PACKET, 0])),
                nlmsg.attribute(_BUFFER, _QUEUE.to_bytes(4, "big")),
                nlmsg.attribute(_TIMEOUT, _DELAY.to_bytes(4, "big")),
                nlmsg.attribute(_THRESHOLD, (64).to_bytes(4, "big")),
            )
            self._sock.settimeout(None)
        except OSError:
            self._sock.close()
            raise

    def _configure(self, group: int, *attributes: bytes) -> None:
        body = nlmsg.nfgen(0, group) + b"".join(attributes)
        self._sock.send(nlmsg.message(_CONFIG, nlmsg.ACK, 1, body))
        while True:
            data = self._sock.recv(nlmsg.RECEIVE)
            for answer in nlmsg.messages(data):
                if answer.type == nlmsg.ERROR:
                    if code := nlmsg.error(data, answer.start):
                        raise nlmsg.failed(code)
                    return

    def close(self) -> None:
        """Closes the socket; the kernel then frees the group. Idempotent."""
        self._sock.close()

    def take_lost(self) -> int:
        """How often, since the last call, the kernel dropped packets because this process did not read in time."""
        lost, self._lost = self._lost, 0
        return lost

    def read(self, seconds: float) -> list[Logged]:
        """The packets that are there, after a wait of at most `seconds`. Raises OSError."""
        if not select.select([self._sock], [], [], seconds)[0]:
            return []
        packets: list[Logged] = []
        try:
            for data in nlmsg.at_hand(self._sock, AT_ONCE):
                packets += _packets(data)
                if len(packets) >= 4096:
                    break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._lost += 1
        return packets


def _packets(data: bytes) -> Iterator[Logged]:
    now = time.time()
    for message in nlmsg.messages(data):
        if message.type != _PACKET:
            continue
        attrs = dict(nlmsg.items(data, message.start + nlmsg.NFGEN, message.end))
        yield Logged(
            nlmsg.string(attrs.get(_PREFIX, b"")),
            int.from_bytes(attrs.get(_HEADER, b"")[:2], "big"),
            (_index(attrs, _PHYS_IN, _IN), _index(attrs, _PHYS_OUT, _OUT)),
            attrs.get(_HARDWARE, b""),
            attrs.get(_PAYLOAD, b""),
            now,
        )


def _index(attrs: dict[int, bytes], *kinds: int) -> int:
    return next((int.from_bytes(attrs[kind], "big") for kind in kinds if kind in attrs), 0)


def name_of(index: int) -> str:
    """The name of the interface in the calling thread's namespace; empty without one."""
    with contextlib.suppress(OSError):
        return socket.if_indextoname(index) if index else ""
    return ""
