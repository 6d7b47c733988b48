"""Notifications of changes to nftables (NFNLGRP_NFTABLES), summarized by what they are about.

The kernel sends the changes of a transaction, and then its number (the generation) with the name of the process.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from cni.host import nlmsg, socket_filter

_GROUP = 7  # NFNLGRP_NFTABLES
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_TABLES, _CHAINS, _RULES, _SETS, _ELEMENTS, _GEN = (0, 2), (3, 5), (6, 8), (9, 11), (12, 14), 15  # NEW..., DEL...
_NAMES = {1: "inet", 7: "bridge"}
_IPTABLES = {2: ("filter", "nat", "mangle", "raw", "security"), 10: ("filter", "nat", "mangle", "raw", "security")}
ROOM = 1 << 21  # bytes of the socket's receive buffer; the kernel drops what does not fit, and reports that
AT_ONCE = 1 << 19  # bytes that are parsed per call; beyond it, everything counts as changed


@dataclass
class News:
    """The changes announced, to the tables of one name in family inet and bridge, and to other programs' filters.

    `rules`: chains, rules or sets were added or deleted. `sets`: (family, name) of sets whose elements were.
    `generations`: of the transactions that did that. `forward`: iptables' FORWARD or a chain it may lead to changed.
    `hooks`: other programs' base chains changed. `lost`: some notifications were dropped. `by`: the process's name, if
    known.
    """

    rules: bool = False
    sets: set[tuple[str, str]] = field(default_factory=set)
    generations: list[int] = field(default_factory=list)
    forward: bool = False
    hooks: bool = False
    lost: bool = False
    by: str = ""

    def ours(self) -> bool:
        """Whether the changes are about our tables, or may be."""
        return self.rules or bool(self.sets) or self.lost


class Interest(NamedTuple):
    """The name of our tables, and which chains of iptables' filter table decide on forwarded packets at present."""

    table: str
    chains: Callable[[], frozenset[str]]


class Ear:
    """A socket that receives notifications of the constructing thread's namespace. One thread at a time. Raises
    OSError.
    """

    def __init__(self, interest: Interest, own: Callable[[], int]) -> None:
        """`own` returns the netlink port whose changes are the daemon's own."""
        self._interest, self._own = interest, own
        self._socket = nlmsg.opened(nlmsg.NETFILTER)
        nlmsg.widen(self._socket, socket.SO_RCVBUF, ROOM)
        self._filtered = 0  # the port whose changes the kernel drops
        self._drop_own()
        self._socket.setsockopt(nlmsg.SOL_NETLINK, nlmsg.ADD_MEMBERSHIP, _GROUP)

    def fileno(self) -> int:
        """The file descriptor, for poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def _drop_own(self) -> int:
        """Have the kernel drop what is announced of the daemon's own changes: an attach makes twenty. Returns the
        port."""
        own = self._own()
        if own != self._filtered:
            socket_filter.attach(self._socket, socket_filter.dropping([socket_filter.from_port(own)]))
            self._filtered = own
        return own

    def read(self) -> News:
        """All changes announced since the last call. Never waits."""
        news, size, own = News(), 0, self._drop_own()
        while size < 4 * ROOM:
            try:
                data = self._socket.recv(1 << 17, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS
                news.lost = True
                continue
            size += len(data)
            if size < AT_ONCE:
                gather(news, data, self._interest, own)
            else:
                news.lost = True
        return news


def gather(news: News, data: bytes, interest: Interest, own: int) -> None:
    """Adds the changes in one datagram to `news`. Pure except for that."""
    for what, _, _, port, start, end in nlmsg.messages(data):
        if what >> 8 == _SUBSYSTEM and start + nlmsg.NFGEN <= len(data):
            if what & 0xFF == _GEN:
                _generation(news, data[start + nlmsg.NFGEN : end])
            elif port != own:
                _object(news, what & 0xFF, data[start], data[start + nlmsg.NFGEN : end], interest)


def _generation(news: News, data: bytes) -> None:
    attributes = nlmsg.attributes(data)
    if news.ours() and len(attributes.get(1, b"")) == 4:
        news.generations.append(int.from_bytes(attributes[1], "big"))
        name = nlmsg.string(attributes.get(3, b""))
        news.by = "".join(c if c.isprintable() else "?" for c in name)


def _object(news: News, kind: int, family: int, data: bytes, interest: Interest) -> None:
    parts = {}
    for attribute, value in nlmsg.items(data):
        parts[attribute] = value
        if attribute >= 2 and kind not in _CHAINS:
            break
    name = nlmsg.string(parts.get(1, b""))
    if family in _NAMES and name == interest.table:
        if kind in _ELEMENTS:
            news.sets.add((_NAMES[family], nlmsg.string(parts.get(2, b""))))
        elif kind <= _SETS[1]:
            news.rules = True
    elif name in _IPTABLES.get(family, ()):
        chain = nlmsg.string(parts.get(3 if kind in _CHAINS else 2, b""))
        touches = kind in _TABLES or (kind in (*_CHAINS, *_RULES) and chain in interest.chains())
        news.forward = news.forward or (name == "filter" and touches)
    elif kind in _TABLES or kind == _CHAINS[1] or (kind == _CHAINS[0] and 4 in parts):
        news.hooks = True
