"""Netlink, packed by hand: messages in, acknowledgements and answers out. rtnetlink, unless told otherwise.

Why not a library: an attach is two sends here and costs 1 ms; the same through message classes costs 2 to 5
(docs/architecture.md, "Netlink"). The tests read the kernel back with a library, so our packing is judged by others.

One `Netlink` belongs to one thread and, for ever, to the network namespace it was opened in.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

ROUTE, GENERIC = 0, 16  # netlink protocols
NLMSG_ERROR, NLMSG_DONE = 2, 3
F_REQUEST, F_ACK, F_ECHO = 0x1, 0x4, 0x8
F_DUMP, F_REPLACE, F_EXCL, F_CREATE = 0x300, 0x100, 0x200, 0x400
F_DUMP_INTR = 0x10

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

HEADER = struct.Struct("=IHHII")
IFINFO = struct.Struct("=BxHiII")
ATTR = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
RECEIVE_BUFFER = 1 << 22  # bytes of answers the kernel may keep for us: each refused message is an answer of its own
AT_ONCE = 512  # messages in one send; more are sent in parts, so that their answers fit
_RCVBUFFORCE = 33
RECEIVE = 1 << 16  # a read gives at most 32 KiB of a dump; from 128 KiB on every read would map memory, and unmap it
STRICT = 12  # NETLINK_GET_STRICT_CHK (Linux 4.20): the kernel filters a dump by index, table, device
DUMP_TRIES = 5  # a dump that the kernel says was interrupted is repeated so often


class NetlinkError(OSError):
    """The kernel refused a message: `errno` is its word, `what` is what was asked."""

    def __init__(self, code: int, what: str, said: str = "") -> None:
        super().__init__(code, os.strerror(code) + (f" ({said})" if said else ""))
        self.what = what

    def __str__(self) -> str:
        return f"{self.what}: {self.strerror}"


@dataclass(frozen=True)
class Message:
    """One request: its type, flags beyond REQUEST, body, what it is for, and the errors it forgives."""

    type: int
    flags: int
    body: bytes
    what: str
    forgive: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Answer:
    """One message from the kernel that is not an acknowledgement."""

    type: int
    body: bytes


@dataclass
class Outcome:
    """What came of a batch: the answers, and per message the errno that was forgiven (0 where it worked)."""

    answers: list[Answer] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)


def attribute(kind: int, value: bytes) -> bytes:
    """One rtattr, padded to 4 bytes."""
    size = 4 + len(value)
    return ATTR.pack(size, kind) + value + bytes(-size & 3)


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """A 32-bit attribute in host order."""
    return attribute(kind, value.to_bytes(4, "little" if _LITTLE else "big"))


def u8(kind: int, value: int) -> bytes:
    """An 8-bit attribute."""
    return attribute(kind, bytes([value]))


_LITTLE = struct.pack("=H", 1) == b"\1\0"
BYTE_ORDER: Literal["little", "big"] = "little" if _LITTLE else "big"


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data` by type; of a repeated one the last. Flags in the type are masked."""
    found, at = {}, 0
    while at + 4 <= len(data):
        size, kind = ATTR.unpack_from(data, at)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += size + (-size & 3)
    return found


def ifinfo(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    """The header of a link message."""
    return IFINFO.pack(family, 0, index, flags, change)


class Netlink:
    """A netlink socket in the namespace of the thread that opened it. Not for several threads at once."""

    def __init__(self, timeout: float = 20.0, protocol: int = ROUTE, *, strict: bool = False) -> None:
        """`strict`: the kernel filters dumps by the keys in their headers, where it can (Linux 4.20)."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sock.settimeout(timeout)
        self._sock.setsockopt(270, 11, 1)  # NETLINK_EXT_ACK: the kernel says in words what it did not like
        self._sock.setsockopt(270, 10, 1)  # NETLINK_CAP_ACK: and does not send our own message back with it
        if strict:
            with contextlib.suppress(OSError):  # an older kernel gives everything, and the reader skips it
                self._sock.setsockopt(270, STRICT, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, RECEIVE_BUFFER)
        self._sock.bind((0, 0))
        self._seq = 0

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, messages: Iterable[Message]) -> Outcome:
        """Carry out `messages` in one send, in order; the first error that is not forgiven is raised.

        The kernel goes on after a message that fails, so what follows a failure may have been done: callers undo by
        removing everything, which is idempotent.
        """
        batch = list(messages)
        if len(batch) > AT_ONCE:
            whole = Outcome()
            for start in range(0, len(batch), AT_ONCE):
                part = self.send(batch[start : start + AT_ONCE])
                whole.answers += part.answers
                whole.errors += part.errors
            return whole
        first = self._seq + 1
        wire = []
        for n, message in enumerate(batch):
            flags = F_REQUEST | message.flags | (F_ACK if n == len(batch) - 1 else 0)
            wire.append(HEADER.pack(16 + len(message.body), message.type, flags, first + n, 0) + message.body)
        self._seq += len(batch)
        self._sock.send(b"".join(wire))
        outcome = Outcome(errors=[0] * len(batch))
        failure: NetlinkError | None = None
        for kind, seq, _, body in self._replies(first, self._seq):
            if kind != NLMSG_ERROR:
                outcome.answers.append(Answer(kind, body))
                continue
            code = -_ERRNO.unpack_from(body)[0]
            at = seq - first
            outcome.errors[at] = code
            if code and code not in batch[at].forgive and failure is None:
                failure = NetlinkError(code, batch[at].what, _explanation(body))
        if failure is not None:
            raise failure
        return outcome

    def scan(self, message: Message, most: int, take: Callable[[bytes], bool]) -> bool:
        """Give the objects of a kind to `take`, one at a time, until it returns True; keep none.

        For a namespace that a container fills: at most `most` objects are read. False where that bound was met. An
        interrupted dump is repeated, within the same bound. After an early end the rest of the dump is still to come,
        so the socket serves no further request: close it. Raises NetlinkError.
        """
        read = 0
        for _ in range(DUMP_TRIES):
            self._seq += 1
            flags = F_REQUEST | F_DUMP | message.flags
            self._sock.send(HEADER.pack(16 + len(message.body), message.type, flags, self._seq, 0) + message.body)
            interrupted = False
            for kind, _, flags, body in self._replies(self._seq, self._seq):
                interrupted = interrupted or bool(flags & F_DUMP_INTR)
                code = -_ERRNO.unpack_from(body)[0] if kind in (NLMSG_ERROR, NLMSG_DONE) and len(body) >= 4 else 0
                if code and code not in message.forgive:
                    raise NetlinkError(code, message.what, _explanation(body))
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    continue
                if read == most:
                    return False
                read += 1
                if take(body):
                    return True
            if not interrupted:
                break
        return True

    def dump(self, message: Message) -> list[Answer]:
        """Every object of a kind. Costs as much as there are objects: never on the path of an ADD or DEL."""
        for _ in range(DUMP_TRIES):
            self._seq += 1
            self._sock.send(
                HEADER.pack(16 + len(message.body), message.type, F_REQUEST | F_DUMP | message.flags, self._seq, 0)
                + message.body
            )
            answers, interrupted = [], False
            for kind, _, flags, body in self._replies(self._seq, self._seq):
                interrupted = interrupted or bool(flags & F_DUMP_INTR)
                code = -_ERRNO.unpack_from(body)[0] if kind in (NLMSG_ERROR, NLMSG_DONE) and len(body) >= 4 else 0
                if code:
                    raise NetlinkError(code, message.what, _explanation(body))
                if kind not in (NLMSG_ERROR, NLMSG_DONE):
                    answers.append(Answer(kind, body))
            if not interrupted:
                return answers
        return answers

    def _replies(self, first: int, last: int) -> Iterator[tuple[int, int, int, bytes]]:
        """Each reply as (type, sequence, flags, body) up to the one that ends the request numbered `last`.

        Late answers to earlier requests, those before `first`, are passed over. When answers were lost the rest of
        them is read away, so that the next request begins with an empty socket.
        """
        while True:
            try:
                data = self._sock.recv(RECEIVE)
            except OSError:
                self._drain()
                raise
            at = 0
            while at + 16 <= len(data):
                size, kind, flags, seq, _ = HEADER.unpack_from(data, at)
                if first <= seq <= last:
                    yield kind, seq, flags, data[at + 16 : at + size]
                if seq == last and kind in (NLMSG_ERROR, NLMSG_DONE):
                    return
                at += size + (-size & 3)

    def _drain(self) -> None:
        """Read away what is there, without waiting for more."""
        while True:
            try:
                self._sock.recv(RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS says once more that something was lost


def _explanation(error: bytes) -> str:
    """The kernel's words in an extended acknowledgement (attribute 1), where it sent any."""
    if len(error) <= 20:
        return ""
    return attributes(error[20:]).get(1, b"").rstrip(b"\0").decode(errors="replace")
