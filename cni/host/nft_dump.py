"""Dumps of nftables objects by nfnetlink, as the kernel sends them: one object at a time, as raw attributes."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from cni.host import netlink, nlmsg

FAMILIES = {"inet": 1, "bridge": 7}
IP = 2  # the family of tables for IPv4 alone
TABLES, CHAINS, RULES, SETS, ELEMENTS = 1, 4, 7, 10, 13  # GET... of enum nf_tables_msg_types

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_MISSING = frozenset({errno.ENOENT})  # some kernels answer so for a missing table, and not with an empty dump


class Disturbed(Exception):
    """A transaction was committed during the dump, so the dump is not consistent."""


class Dumper:
    """An nfnetlink socket of the constructing thread's namespace; any thread may use it, one at a time."""

    def __init__(self) -> None:
        self._socket = netlink.Netlink(protocol=netlink.NETFILTER)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def dump(self, kind: int, family: int, table: str, of: str = "") -> Iterator[bytes]:
        """Yields the attributes of each object of a kind in a table; for ELEMENTS those of the set `of`.

        A missing table or set yields nothing. Raises Disturbed, OSError.
        """
        name = nlmsg.text(1, table)
        prefix = name[: 5 + len(table.encode())]  # without the padding, which the kernel's answer does not have
        request = nlmsg.nfgen(family) + name + (nlmsg.text(2, of) if of else b"")
        try:
            for answer in self._socket.stream(
                netlink.Message(_SUBSYSTEM << 8 | kind, 0, request, f"list nftables' table {table}", _MISSING)
            ):
                # The table's name comes first: the kernel filters chains and tables by family alone.
                if answer.body.startswith(prefix, nlmsg.NFGEN):
                    yield answer.body[nlmsg.NFGEN :]
        except netlink.Interrupted:
            raise Disturbed from None
