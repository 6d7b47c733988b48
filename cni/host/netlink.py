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

from cni.host import nlmsg

# The codec's names stand here as well: what builds the body of a request needs both.
attribute, nested, text, u32, u8 = nlmsg.attribute, nlmsg.nested, nlmsg.text, nlmsg.u32, nlmsg.u8
attributes, items, BYTE_ORDER = nlmsg.attributes, nlmsg.items, nlmsg.BYTE_ORDER
ROUTE, NETFILTER, GENERIC = nlmsg.ROUTE, nlmsg.NETFILTER, nlmsg.GENERIC
F_ECHO, F_REPLACE, F_EXCL, F_CREATE = nlmsg.ECHO, nlmsg.REPLACE, nlmsg.EXCL, nlmsg.CREATE

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29

IFINFO = struct.Struct("=BxHiII")
RECEIVE_BUFFER = 1 << 22  # bytes of answers the kernel may keep for us: each refused message is an answer of its own
AT_ONCE = 512  # messages in one send; more are sent in parts, so that their answers fit
DUMP_TRIES = 5  # a dump that the kernel says was interrupted is repeated so often


class NetlinkError(OSError):
    """The kernel refused a message: `errno` is its word, `what` is what was asked."""

    def __init__(self, code: int, what: str, said: str = "") -> None:
        super().__init__(code, os.strerror(code) + (f" ({said})" if said else ""))
        self.what = what

    def __str__(self) -> str:
        return f"{self.what}: {self.strerror}"


class Interrupted(Exception):
    """What was dumped changed meanwhile: it is not one moment."""


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


def ifinfo(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    """The header of a link message."""
    return IFINFO.pack(family, 0, index, flags, change)


class Netlink:
    """A netlink socket in the namespace of the thread that opened it. Not for several threads at once."""

    def __init__(self, timeout: float = 20.0, protocol: int = ROUTE, *, strict: bool = False) -> None:
        """`strict`: the kernel filters dumps by the keys in their headers, where it can (Linux 4.20)."""
        self._sock = nlmsg.opened(protocol)
        self._sock.settimeout(timeout)
        self._sock.setsockopt(nlmsg.SOL_NETLINK, nlmsg.EXT_ACK, 1)  # the kernel says in words what it did not like
        self._sock.setsockopt(nlmsg.SOL_NETLINK, nlmsg.CAP_ACK, 1)  # and does not send our own message back with it
        if strict:
            with contextlib.suppress(OSError):  # an older kernel gives everything, and the reader skips it
                self._sock.setsockopt(nlmsg.SOL_NETLINK, nlmsg.STRICT, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, nlmsg.RCVBUFFORCE, RECEIVE_BUFFER)
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
            flags = message.flags | (nlmsg.ACK if n == len(batch) - 1 else 0)
            wire.append(nlmsg.message(message.type, flags, first + n, message.body))
        self._seq += len(batch)
        self._sock.send(b"".join(wire))
        outcome = Outcome(errors=[0] * len(batch))
        failure: NetlinkError | None = None
        for kind, seq, _, body in self._replies(first, self._seq):
            if kind != nlmsg.ERROR:
                outcome.answers.append(Answer(kind, body))
                continue
            code = nlmsg.error(body)
            at = seq - first
            outcome.errors[at] = code
            if code and code not in batch[at].forgive and failure is None:
                failure = NetlinkError(code, batch[at].what, nlmsg.explanation(body))
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
            try:
                for answer in self.stream(message):
                    if read == most:
                        return False
                    read += 1
                    if take(answer.body):
                        return True
            except Interrupted:
                continue
            break
        return True

    def dump(self, message: Message) -> list[Answer]:
        """Every object of a kind. Costs as much as there are objects: never on the path of an ADD or DEL."""
        answers: list[Answer] = []
        for _ in range(DUMP_TRIES):
            answers.clear()
            try:
                answers.extend(self.stream(message))
            except Interrupted:
                continue
            break
        return answers

    def stream(self, message: Message) -> Iterator[Answer]:
        """Every object of a kind, one at a time. Raises Interrupted after the last, and NetlinkError.

        One that is not read to its end leaves the rest of the dump to come, which the next request passes over.
        """
        self._seq += 1
        self._sock.send(nlmsg.message(message.type, nlmsg.DUMP | message.flags, self._seq, message.body))
        interrupted = False
        for kind, _, flags, body in self._replies(self._seq, self._seq):
            interrupted = interrupted or bool(flags & nlmsg.INTERRUPTED)
            if kind in (nlmsg.ERROR, nlmsg.DONE):
                code = nlmsg.error(body)
                if code and code not in message.forgive:
                    raise NetlinkError(code, message.what, nlmsg.explanation(body))
            else:
                yield Answer(kind, body)
        if interrupted:
            raise Interrupted

    def _replies(self, first: int, last: int) -> Iterator[tuple[int, int, int, bytes]]:
        """Each reply as (type, sequence, flags, body) up to the one that ends the request numbered `last`.

        Late answers to earlier requests, those before `first`, are passed over. When answers were lost the rest of
        them is read away, so that the next request begins with an empty socket.
        """
        while True:
            try:
                data = self._sock.recv(nlmsg.RECEIVE)
            except OSError:
                self._drain()
                raise
            for kind, flags, seq, _, start, end in nlmsg.messages(data):
                if first <= seq <= last:
                    yield kind, seq, flags, data[start:end]
                if seq == last and kind in (nlmsg.ERROR, nlmsg.DONE):
                    return

    def _drain(self) -> None:
        """Read away what is there, without waiting for more."""
        while True:
            try:
                self._sock.recv(nlmsg.RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS says once more that something was lost
