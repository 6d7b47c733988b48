"""Set and map elements of nftables, packed by hand: what an attach changes, at a cost that does not grow.

libnftables reads every set and chain on the machine before it adds one element (1.5 ms with 200 networks, and other
programs' tables count as well); the kernel's own message needs only names (0.05 to 0.25 ms). This module sends a
`Change` to nfnetlink as one transaction.

A key is parts joined by " . "; a part's form gives its type: "name" an interface, a MAC, an IPv4 or IPv6 address,
0x... raw bytes. `destroy` is a `delete` that ignores elements that do not exist (nft 1.0.7 and Linux 6.3 have it; on
older kernels it takes two steps).
"""

from __future__ import annotations

import errno
import functools
import os
import re
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cni.host import nlmsg
from cni.host.nlmsg import attribute, message, nested, nfgen, text

NEWGEN, GETGEN = 15, 16  # enum nf_tables_msg_types
FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
NEWSETELEM, GETSETELEM, DELSETELEM, DESTROYSETELEM = 12, 13, 14, 30  # enum nf_tables_msg_types
_VERDICTS = {"drop": 0, "accept": 1, "jump": -3, "goto": -4}

_AT_ONCE = 64  # elements asked for by one send: the answers fit into the socket's buffer
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 0x10, 0x11
_IFNAME = 16

_MAC = re.compile(
    r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}"
)  # no IPv6 address has this form: `fd00:200:0:77::50` does not match


class Refused(OSError):
    """The kernel refused the transaction; `line` is the first refused change, in nft's language."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(code, os.strerror(code))
        self.line = line


class Element(NamedTuple):
    """One element of a set or map: its key, and for a map its verdict ("goto CHAIN") or the MAC that it gives."""

    family: str
    set: str
    key: str
    verdict: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        """Family, set and key: no two elements share all three."""
        return self[:3]

    @property
    def is_range(self) -> bool:
        """Whether the key is a CIDR or a range, which is two elements in the kernel."""
        return not self.key.startswith('"') and ("/" in self.key or "-" in self.key)


@dataclass(frozen=True, slots=True)
class Change:
    """Elements of one table's sets, in each family: deletes `take`, present or not, then adds `add`. One
    transaction.
    """

    table: str
    take: tuple[Element, ...] = ()
    add: tuple[Element, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.take or self.add)

    @property
    def has_ranges(self) -> bool:
        """Whether the change must go through libnftables."""
        return any(element.is_range for element in (*self.take, *self.add))

    def text(self) -> str:
        """The change in nft's language, where a deleted element must exist: not every nft version has `destroy`."""
        lines = [_line("delete", self.table, element) for element in self.take]
        return "".join(f"{line}\n" for line in [*lines, *map(self.adding, self.add)])

    def adding(self, element: Element) -> str:
        """The line that adds an element."""
        return _line("add", self.table, element)


def _line(verb: str, table: str, element: Element) -> str:
    leads = f" : {element.verdict}" if verb == "add" and element.verdict else ""
    return f"{verb} element {element.family} {table} {element.set} {{ {element.key}{leads} }}"


def pack_key(key: str) -> bytes:
    """A key as the kernel stores it: every part padded to four bytes. Raises ValueError for a part of no known form."""
    return b"".join(map(_padded_part, key.split(" . "))) if " . " in key else _pack_part(key)


@functools.lru_cache(8192)
def _padded_part(part: str) -> bytes:
    packed = _pack_part(part)
    return packed + bytes(-len(packed) % 4)


@functools.lru_cache(8192)  # a port's name, MAC and addresses are parts of several keys
def _pack_part(part: str) -> bytes:
    if part.startswith('"') and part.endswith('"'):
        name = part[1:-1].encode()
        if not 0 < len(name) < _IFNAME:
            raise ValueError(f"no interface name: {part}")
        return name.ljust(_IFNAME, b"\0")
    if part.startswith("0x"):
        return bytes.fromhex(part[2:])
    if _MAC.fullmatch(part):
        return bytes.fromhex(part.replace(":", ""))
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in part else socket.AF_INET, part)
    except OSError as error:
        raise ValueError(f"not a key: {part}") from error


class Elements:
    """An nfnetlink socket of the constructing thread's namespace; any thread may use it, one at a time.

    `destroys`: whether the kernel knows `destroy element`; None to find out at the first use.
    """

    def __init__(self, destroys: bool | None = None) -> None:
        self._destroys = destroys
        self._socket = nlmsg.opened(nlmsg.NETFILTER)
        self._socket.setsockopt(nlmsg.SOL_NETLINK, nlmsg.CAP_ACK, 1)
        self._room = 0

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def apply(self, change: Change) -> None:
        """Carries out a change, all or none; `change` has no ranges. Raises Refused, ValueError."""
        if self._destroys is not False:
            todo = [*((DESTROYSETELEM, e) for e in change.take), *((NEWSETELEM, e) for e in change.add)]
            errors = self._send(change.table, todo)
            if not any(errors.get(i) == errno.EINVAL for i in range(len(change.take))):
                self._destroys = self._destroys or bool(change.take) or None
                return _raise_first(errors, change.table, todo)
            self._destroys = False
        return self._apply_without_destroy(change)

    @property
    def portid(self) -> int:
        """The socket's netlink port."""
        port: int = self._socket.getsockname()[0]
        return port

    def refill(self, packed: Iterable[bytes]) -> None:
        """Sends what `pack` packed as one transaction. Raises OSError; EEXIST for a map's key with another verdict."""
        body = b"".join(packed)
        if not body:
            return
        begin = message(_BEGIN, 0, 0, nfgen(0, _SUBSYSTEM))
        batch = begin + body + message(_END, nlmsg.ACK, 1, nfgen(0, _SUBSYSTEM))
        self._make_room(len(batch))
        self._socket.send(batch)
        errors = self._errors()
        if errors:
            raise nlmsg.failed(next(iter(errors.values())))

    def missing(self, table: str, elements: Sequence[Element]) -> list[Element]:
        """Those of the elements that are not in force, a map's with its verdict: by one send for `_AT_ONCE` of them.
        Raises Refused for any answer but "not found"."""
        missing = []
        for start in range(0, len(elements), _AT_ONCE):
            some = elements[start : start + _AT_ONCE]
            self._socket.send(b"".join(_request(GETSETELEM, 0, n, table, element) for n, element in enumerate(some)))
            found = self._found(table, some)
            missing += [e for n, e in enumerate(some) if not _is_in(e, found.get(n))]
        return missing

    def _found(self, table: str, elements: Sequence[Element]) -> dict[int, bytes]:
        """The answers to requests for these elements by number, without those that do not exist."""
        found, refused = {}, {}
        for data in nlmsg.at_hand(self._socket):
            for kind, _, seq, _, start, end in nlmsg.messages(data):
                if kind != nlmsg.ERROR:
                    found[seq] = data[start:end]
                elif (code := nlmsg.error(data, start)) not in (0, errno.ENOENT):
                    refused[seq] = code
        for seq, code in refused.items():
            raise Refused(code, _line("add", table, elements[seq]))
        return found

    def generation(self) -> int:
        """The number of the last transaction of any program in this namespace. Raises OSError."""
        self._socket.send(message(_SUBSYSTEM << 8 | GETGEN, 0, 1, nfgen(0)))
        data = self._socket.recv(nlmsg.RECEIVE)
        for kind, _, _, _, start, end in nlmsg.messages(data):
            if kind & 0xFF == NEWGEN:
                return int.from_bytes(nlmsg.attributes(data[start:end], nlmsg.NFGEN)[1], "big")
        raise OSError(errno.EPROTO, "the kernel does not tell nftables' generation")

    def _apply_without_destroy(self, change: Change) -> None:
        """For Linux before 6.3: skips elements that do not exist, and deletes only entries that conflict with an added
        one.
        """
        added = {e.place for e in change.add}
        todo = [(DELSETELEM, e) for e in change.take if e.place not in added]
        todo += [(NEWSETELEM, e) for e in change.add]
        for _ in range(3):  # one more transaction for each kind of refusal: missing, conflicting, both
            errors = self._send(change.table, todo)
            refused = [(i, code, *todo[i]) for i, code in sorted(errors.items()) if i >= 0]
            missing = {i for i, code, kind, _ in refused if code == errno.ENOENT and kind == DELSETELEM}
            conflicting = [(DELSETELEM, e) for _, code, _, e in refused if code == errno.EEXIST and e.verdict]
            if not (missing or conflicting):
                return _raise_first(errors, change.table, todo)
            todo = conflicting + [step for i, step in enumerate(todo) if i not in missing]
        return _raise_first(errors, change.table, todo)

    def _send(self, table: str, todo: list[tuple[int, Element]]) -> dict[int, int]:
        """Sends one batch. Returns the refusals' error codes by position (-1: the whole batch); empty if it is in
        force.
        """
        if not todo:
            return {}
        last = len(todo) - 1
        messages = [message(_BEGIN, 0, 0, nfgen(0, _SUBSYSTEM))]
        for i, (kind, element) in enumerate(todo):
            flags = (nlmsg.CREATE if kind == NEWSETELEM else 0) | (nlmsg.ACK if i == last else 0)
            messages.append(_request(kind, flags, i + 1, table, element))
        messages.append(message(_END, 0, last + 2, nfgen(0, _SUBSYSTEM)))
        batch = b"".join(messages)
        self._make_room(len(batch))
        self._socket.send(batch)
        return self._errors()

    def _make_room(self, size: int) -> None:
        if size > self._room:
            self._room = max(2 * size, 1 << 18)
            nlmsg.widen(self._socket, socket.SO_SNDBUF, self._room)
            nlmsg.widen(self._socket, socket.SO_RCVBUF, self._room)  # an error for each message

    def _errors(self) -> dict[int, int]:
        """The refusals' error codes. The kernel answers before `send` returns, so all answers are readable now."""
        errors: dict[int, int] = {}
        for data in nlmsg.at_hand(self._socket):
            for kind, _, seq, _, start, _ in nlmsg.messages(data):
                if kind == nlmsg.ERROR and (code := nlmsg.error(data, start)):
                    errors[seq - 1] = code
        return errors


def pack(change: Change) -> bytes:
    """The messages that add what `change` adds, for `Elements.refill`. Raises ValueError for a key of no known form."""
    return b"".join(_request(NEWSETELEM, nlmsg.CREATE, 1, change.table, element) for element in change.add)


def _raise_first(errors: dict[int, int], table: str, todo: list[tuple[int, Element]]) -> None:
    for i, code in sorted(errors.items()):
        if i < 0:
            raise Refused(code, "the transaction")
        kind, element = todo[i]
        raise Refused(code, _line("add" if kind == NEWSETELEM else "destroy", table, element))


def _request(kind: int, flags: int, seq: int, table: str, element: Element) -> bytes:
    content = nested(1, attribute(1, pack_key(element.key)))
    if element.verdict and kind == NEWSETELEM:
        content += _packed_verdict(element.verdict)
    body = _head(element.family, table, element.set) + nested(3, nested(1, content))
    return message(_SUBSYSTEM << 8 | kind, flags, seq, body)


@functools.lru_cache(4096)
def _head(family: str, table: str, of_set: str) -> bytes:
    """What names a set in a request."""
    return nfgen(FAMILIES[family]) + text(1, table) + text(2, of_set)


@functools.lru_cache(4096)
def _packed_verdict(verdict: str) -> bytes:
    if _MAC.fullmatch(verdict):
        return nested(2, attribute(1, pack_verdict(verdict)))
    return nested(2, nested(2, pack_verdict(verdict)))


def _is_in(element: Element, answer: bytes | None) -> bool:
    return answer is not None and (not element.verdict or pack_verdict(element.verdict) in answer)


def pack_verdict(verdict: str) -> bytes:
    """The attributes of a verdict: its code, and the chain it goes to. For a MAC, its octets."""
    if _MAC.fullmatch(verdict):
        return bytes.fromhex(verdict.replace(":", ""))
    verb, _, chain = verdict.partition(" ")
    code = attribute(1, struct.pack(">i", _VERDICTS[verb]))
    return code + (text(2, chain) if chain else b"")
