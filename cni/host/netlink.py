"""A netlink socket: sends messages, returns acknowledgements and answers. The protocol is rtnetlink by default.

No library is used: an attach is two sends here and takes 1 ms; the same through message classes takes 2 to 5 ms
(docs/architecture.md, "Netlink"). The tests read the kernel's state with a library, so the encoding is checked
independently.

A `Netlink` belongs to one thread, and always to the network namespace in which it was opened.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from cni.host import nlmsg

# The codec's names are repeated here: the code that builds the body of a request needs both modules.
attribute, nested, text, u32, u8 = nlmsg.attribute, nlmsg.nested, nlmsg.text, nlmsg.u32, nlmsg.u8
attributes, items, chosen, BYTE_ORDER = nlmsg.attributes, nlmsg.items, nlmsg.chosen, nlmsg.BYTE_ORDER
ROUTE, NETFILTER, GENERIC = nlmsg.ROUTE, nlmsg.NETFILTER, nlmsg.GENERIC
F_ECHO, F_REPLACE, F_EXCL, F_CREATE = nlmsg.ECHO, nlmsg.REPLACE, nlmsg.EXCL, nlmsg.CREATE

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
REST = 64  # messages that are read behind the one that a scan has searched for, so that the socket can be used again
_ASK = 2  # the last two bits of the type RTM_GET...

IFINFO = struct.Struct("=BxHiII")
RECEIVE_BUFFER = 1 << 22  # bytes of answers that the kernel may queue: each refused message has an answer of its own
AT_ONCE = 512  # messages in one send; more are sent in parts, so that the answers fit into the buffer
DUMP_TRIES = 5  # attempts at a dump that the kernel reports as interrupted


_own_ports: set[int] = set()


def is_own(port: int) -> bool:
    """Whether a notification with that netlink port tells of a change by an open `Netlink` of this process."""
    return port in _own_ports


class NetlinkError(OSError):
    """The kernel refused a message: `errno` is its error number, `what` describes the request."""

    def __init__(self, code: int, what: str, explanation: str = "") -> None:
        super().__init__(code, os.strerror(code) + (f" ({explanation})" if explanation else ""))
        self.what = what

    def __str__(self) -> str:
        return f"{self.what}: {self.strerror}"


class Interrupted(Exception):
    """The dumped objects changed during the dump: the result is not consistent."""


@dataclass(frozen=True)
class Message:
    """One request: its type, flags besides REQUEST, body, a description for errors, and the error numbers to ignore."""

    type: int
    flags: int
    body: bytes
    what: str
    forgive: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Answer:
    """One message from the kernel other than an acknowledgement."""

    type: int
    body: bytes


@dataclass
class Outcome:
    """The result of a batch: the answers, and for each message the ignored error number (0 if it succeeded)."""

    answers: list[Answer] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)


def ifinfo(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    """The header of a link message."""
    return IFINFO.pack(family, 0, index, flags, change)


class Netlink:
    """A netlink socket in the namespace of the thread that opened it. For one thread at a time."""

    def __init__(self, timeout: float = 20.0, protocol: int = ROUTE, *, strict: bool = False) -> None:
        """`timeout` in seconds. `strict`: the kernel filters dumps by their header fields (since Linux 4.20)."""
        self._sock = nlmsg.opened(protocol)
        # The kernel's time-outs: with Python's each call would be two, and the interpreter's lock would change hands
        # twice as often.
        limit = struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6))  # struct timeval
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._sock.setsockopt(socket.SOL_SOCKET, option, limit)
        self._route = protocol == ROUTE
        self._sock.setsockopt(nlmsg.SOL_NETLINK, nlmsg.EXT_ACK, 1)  # the kernel adds an error text
        self._sock.setsockopt(nlmsg.SOL_NETLINK, nlmsg.CAP_ACK, 1)  # and leaves our own message out of the error
        if strict:
            with contextlib.suppress(OSError):  # an older kernel dumps everything, and the reader skips the rest
                self._sock.setsockopt(nlmsg.SOL_NETLINK, nlmsg.STRICT, 1)
        room = nlmsg.widen(self._sock, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._at_once = max(AT_ONCE * min(room, RECEIVE_BUFFER) // RECEIVE_BUFFER, 1)
        self._seq = 0
        self._port: int = self._sock.getsockname()[0]
        if self._route:
            _own_ports.add(self._port)
        self.spent = False
        """Whether a scan has left answers unread."""

    def close(self) -> None:
        _own_ports.discard(self._port)
        self._sock.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, messages: Iterable[Message]) -> Outcome:
        """Carry out `messages` in one send, in order; raises the first error that is not ignored.

        The kernel continues after a message that fails, so later messages may have taken effect: callers undo by
        removing everything, which is idempotent.
        """
        batch = list(messages)
        if len(batch) > self._at_once:
            whole = Outcome()
            for start in range(0, len(batch), self._at_once):
                part = self.send(batch[start : start + self._at_once])
                whole.answers += part.answers
                whole.errors += part.errors
            return whole
        first = self._seq + 1
        wire = []
        # A question for one object has one answer, or an error: no acknowledgement is needed.
        asks = self._route and len(batch) == 1 and batch[0].type & 3 == _ASK
        for n, message in enumerate(batch):
            flags = message.flags | (nlmsg.ACK if n == len(batch) - 1 and not asks else 0)
            wire.append(nlmsg.message(message.type, flags, first + n, message.body))
        self._seq += len(batch)
        self._sock.send(b"".join(wire))
        outcome = Outcome(errors=[0] * len(batch))
        failure: NetlinkError | None = None
        for kind, seq, _, body in self._replies(first, self._seq):
            if kind != nlmsg.ERROR:
                outcome.answers.append(Answer(kind, body))
                if asks:
                    break
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
        """Dump the objects of a kind and pass each to `take`, until it returns True; none is kept.

        For the namespace of a container, which may create any number of objects: at most `most` are read. Returns False
        if that bound was reached. An interrupted dump is repeated within the same bound. After an early end much of the
        dump may be unread: the socket is `spent` then, and cannot serve another request. Raises NetlinkError.
        """
        read = 0
        for _ in range(DUMP_TRIES):
            try:
                answers = self.stream(message)
                self.spent = True
                for answer in answers:
                    if read == most:
                        return False
                    read += 1
                    if take(answer.body):
                        self.spent = not _ends_soon(answers)
                        return True
                self.spent = False
            except Interrupted:
                self.spent = False
                continue
            break
        return True

    def dump(self, message: Message, tries: int = DUMP_TRIES) -> list[Answer]:
        """Every object of a kind. The cost grows with the number of objects: never used by an ADD or DEL.

        If objects change during a dump, it is repeated, up to `tries` dumps in all. The last one may lack objects that
        existed all the time, or have one twice.
        """
        answers: list[Answer] = []
        for _ in range(tries):
            answers.clear()
            try:
                answers.extend(self.stream(message))
            except Interrupted:
                continue
            break
        return answers

    def stream(self, message: Message) -> Iterator[Answer]:
        """Every object of a kind, one at a time. Raises Interrupted after the last one, and NetlinkError.

        If the iterator is not read to its end, the rest of the dump stays unread, and the next request skips it.
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

        Late answers to requests before `first` are skipped. If answers were lost, the remaining ones are read and
        dropped, so that the next request begins with an empty socket.
        """
        while True:
            try:
                data = self._sock.recv(nlmsg.RECEIVE)
            except OSError as error:
                self._drain()
                if isinstance(error, BlockingIOError):
                    raise TimeoutError(errno.ETIMEDOUT, "the kernel does not answer") from error
                raise
            for kind, flags, seq, _, start, end in nlmsg.messages(data):
                if first <= seq <= last:
                    yield kind, seq, flags, data[start:end]
                if seq == last and kind in (nlmsg.ERROR, nlmsg.DONE):
                    return

    def _drain(self) -> None:
        """Read and drop all queued messages, without waiting for more."""
        while True:
            try:
                self._sock.recv(nlmsg.RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS reports the lost messages again


def _ends_soon(answers: Iterator[Answer]) -> bool:
    """Whether the dump ends within REST messages, which are read and dropped."""
    try:
        return sum(1 for _ in itertools.islice(answers, REST)) < REST
    except Interrupted:
        return True
    except OSError:
        return False
