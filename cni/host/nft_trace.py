"""nftables' trace of one flow: which rules a packet meets, in every table of the node (linux/netfilter/nf_tables.h).

The packets are marked by a table of our own with the flag `owner`: the kernel deletes it with the socket that made it,
so also when this process is killed (since Linux 5.12). Nothing of the other tables is touched.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cni.errors import FenceFailed
from cni.host import nlmsg
from cni.host.nft import Nft

_GROUP = 9  # NFNLGRP_NFTRACE
_TRACE = 10 << 8 | 17  # NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _IIF, _OIF, _FAMILY, _POLICY = 1, 2, 3, 4, 5, 6, 10, 12, 15, 16
_KINDS = {1: "policy", 2: "return", 3: "rule"}
_VERDICTS = {0: "drop", 1: "accept", 2: "stolen", 3: "queue", -1: "continue", -2: "break", -3: "jump", -4: "goto"}
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
EARLY = -450  # before defragmentation (-400), and before every chain of ours
ROOM = 1 << 21


@dataclass(frozen=True, slots=True)
class Step:
    """One rule, or the policy of a base chain, that a packet met. `packet` is the same for the steps of one packet;
    `verdict` with the chain that it leads to; devices are 0 where there is none."""

    packet: int
    family: str
    table: str
    chain: str
    handle: int
    kind: str
    verdict: str
    into: int
    out: int


class Tracer:
    """Marks a flow in the constructing thread's namespace, and reads what the kernel tells. Raises OSError,
    FenceFailed."""

    def __init__(self, match: str, arp: str, rate: int) -> None:
        """`match`: of the flow, in nft's language; `arp`: of the questions for its neighbour, empty for none; `rate`:
        packets a second that are traced at most."""
        self.table = f"zlayer_trace_{os.getpid()}"
        self._sock = nlmsg.opened(nlmsg.NETFILTER, 0)
        try:
            self._sock.setsockopt(nlmsg.SOL_NETLINK, nlmsg.ADD_MEMBERSHIP, _GROUP)
            nlmsg.widen(self._sock, socket.SO_RCVBUF, ROOM)
            self._nft = Nft()
        except BaseException:
            self._sock.close()
            raise
        try:
            self._nft.run(_tables(self.table, match, arp, rate))
        except FenceFailed:
            self.close()
            raise

    def close(self) -> None:
        """Removes the table, and closes the sockets."""
        self._nft.close()
        self._sock.close()

    def steps(self, seconds: float) -> Iterator[Step]:
        """The steps that come within `seconds`. Raises OSError."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and select.select([self._sock], [], [], left)[0]:
            try:
                for data in nlmsg.at_hand(self._sock):
                    yield from (step for step in _steps(data) if step.table != self.table)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def rule(self, step: Step) -> str:
        """The text of the step's rule; empty for a policy, or if it is gone. Raises FenceFailed."""
        return self._nft.rule_text(step.family, step.table, step.chain, step.handle) if step.handle else ""


def _tables(name: str, match: str, arp: str, rate: int) -> str:
    mark = f"limit rate {rate}/second burst {rate} packets meta nftrace set 1"
    lines = []
    for family, hooks in (("bridge", ("prerouting", "output")), ("inet", ("prerouting", "output"))):
        lines.append(f"add table {family} {name} {{ flags owner; }}")
        for hook in hooks:
            lines.append(f"add chain {family} {name} {hook} {{ type filter hook {hook} priority {EARLY}; }}")
            lines.append(f"add rule {family} {name} {hook} {match} {mark}")
            if arp and family == "bridge":
                lines.append(f"add rule {family} {name} {hook} {arp} {mark}")
    return "\n".join(lines) + "\n"


def _steps(data: bytes) -> Iterator[Step]:
    for message in nlmsg.messages(data):
        if message.type == _TRACE:
            attrs = dict(nlmsg.items(data, message.start + nlmsg.NFGEN, message.end))
            family = _FAMILIES.get(_number(attrs, _FAMILY), _FAMILIES.get(data[message.start], "?"))
            kind = _KINDS.get(_number(attrs, _TYPE), "?")
            yield Step(
                packet=_number(attrs, _ID),
                family=_FAMILIES.get(data[message.start], family),
                table=nlmsg.string(attrs.get(_TABLE, b"")),
                chain=nlmsg.string(attrs.get(_CHAIN, b"")),
                handle=_number(attrs, _HANDLE),
                kind=kind,
                verdict=_VERDICTS.get(_signed(attrs.get(_POLICY, b"")), "?")
                if kind == "policy"
                else _verdict(attrs.get(_VERDICT, b"")),
                into=_number(attrs, _IIF),
                out=_number(attrs, _OIF),
            )


def _verdict(data: bytes) -> str:
    attrs = nlmsg.attributes(data)
    word = _VERDICTS.get(_signed(attrs.get(1, b"")), "return")
    chain = nlmsg.string(attrs.get(2, b""))
    return f"{word} {chain}".strip()


def _number(attrs: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(attrs.get(kind, b""), "big")


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)
