"""Routing by source address in a container that has several interfaces: packets from the address of an interface leave
by that interface, which is the only one on which the fence admits the address."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Sequence

from cni.host import addressing, links
from cni.host import netlink as nl
from cni.host.netns import NetnsId, entered, identify, open_path

TABLES = 0x7A000000
"""The first number of the tables; the interface's index is added. Far from the numbers that other programs choose: the
plugin `sbr` takes the first one from 100 to which no rule leads."""
_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_FRA_SRC, _FRA_TABLE, _FRA_PROTOCOL = 2, 15, 21
_TO_TABLE = 1  # FR_ACT_TO_TBL
_NONE = frozenset({errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP})


def table_of(index: int) -> int:
    """The table of the interface with that index."""
    return TABLES + index


def ensure(netns_fd: int, index: int, addresses: Sequence[links.Interface], routes: Iterable[links.Route]) -> None:
    """Let packets from `addresses` leave by the interface `index`: to its subnets directly, and by `routes` of the same
    IP versions. An address without a subnet reaches nothing directly but what `routes` says. Idempotent. Raises
    OSError."""
    table = table_of(index)
    versions = {address.version for address in addresses}
    exists = frozenset({errno.EEXIST})
    whole = [address for address in addresses if address.network.prefixlen < address.max_prefixlen]
    planned = [links.Route(address.network, None, index) for address in whole]
    planned += [route for route in routes if route.dst.version in versions]
    messages = [addressing.route_message(route, exists, table) for route in planned]
    for address in addresses:
        body = _rule(address.ip) + nl.u32(_FRA_TABLE, table)
        what = f"route packets from {address.ip} by table {table}"
        messages.append(_removal(address.ip))  # one of an earlier interface with that address
        messages.append(nl.Message(_RTM_NEWRULE, nl.F_CREATE | nl.F_EXCL, body, what, exists))
    with entered(netns_fd):
        inner = nl.Netlink()
    with inner:
        inner.send(messages)


def remove(path: str, netns: NetnsId, addresses: Sequence[links.Address]) -> None:
    """Remove the rules for `addresses` in the namespace at `path`; the routes go with their interface. Nothing is done
    if the namespace is gone or the path names another one. Raises OSError."""
    try:
        fd = open_path(path)
    except OSError:
        return
    try:
        if identify(fd) != netns:
            return
        with entered(fd):
            inner = nl.Netlink()
    finally:
        os.close(fd)
    with inner:
        inner.send(_removal(address) for address in addresses)


def _removal(source: links.Address) -> nl.Message:
    return nl.Message(_RTM_DELRULE, 0, _rule(source), f"remove the rule from {source}", _NONE)


def _rule(source: links.Address) -> bytes:
    """The beginning of a rule of ours for a source, to which the kernel compares the rules when one is removed."""
    body = addressing.ROUTE.pack(links.family_of(source), 0, source.max_prefixlen, 0, 0, 0, 0, _TO_TABLE, 0)
    return body + nl.attribute(_FRA_SRC, source.packed) + nl.u8(_FRA_PROTOCOL, links.OUR_PROTO)


def scan_tables(
    socket: nl.Netlink, family: int, sources: Collection[links.Address], most: int
) -> tuple[set[int], bool]:
    """The tables to which rules of that family lead the packets from any of `sources`. Reads at most `most` rules; the
    second value is False if there are more. The socket cannot serve another request afterwards. Raises NetlinkError."""
    tables: set[int] = set()
    prefixes = {(source.max_prefixlen, source.packed) for source in sources if links.family_of(source) == family}

    def take(body: bytes) -> bool:
        at, _, bits, _, table, _, _, action, _ = addressing.ROUTE.unpack_from(body)
        raw = nl.attributes(body[addressing.ROUTE.size :])
        if at == family and action == _TO_TABLE and (bits, raw.get(_FRA_SRC, b"")) in prefixes:
            tables.add(links.number(raw.get(_FRA_TABLE)) or table)
        return False

    body = addressing.ROUTE.pack(family, *[0] * 8)
    whole = socket.scan(nl.Message(_RTM_GETRULE, 0, body, "list rules", _NONE), most, take)
    return tables, whole
