"""Hears of changes of the container's end of veths, in all network namespaces that have an id in this one (Linux 4.2).

The kernel gives a container's namespace an id as soon as a link of this namespace has its peer there. It names the
namespace in the ancillary data of each message.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from cni.host import links, netlink, nlmsg, socket_filter

LISTEN_ALL_NSID = 8  # NETLINK_LISTEN_ALL_NSID: the option, and the type of the ancillary data
RTMGRP_LINK = 1
_NSID = struct.Struct("=i")
_ROOM = socket.CMSG_SPACE(_NSID.size)
_HOST_ENDS = socket_filter.of_link("zl-??????????-v")  # cni/naming.py: no container's end has such a name
_LINK = socket_filter.of_type(netlink.RTM_NEWLINK)
_OF_FAMILIES = ([_LINK, socket_filter.of_family(family)] for family in (socket.AF_INET6, socket.AF_BRIDGE))
_UNWANTED = socket_filter.dropping([_LINK, *_HOST_ENDS], *_OF_FAMILIES)  # a family's message has no MAC
_ADDRESS = frozenset({links.IFLA_ADDRESS})
MOST_AT_ONCE = 64  # messages that one look reads: a container may change its links as often as it likes


class PortNews:
    """A socket of the constructing thread's namespace. For one thread at a time; `fileno` is for poll(2)."""

    def __init__(self) -> None:
        """Raises OSError: EPERM without CAP_NET_BROADCAST, ENOPROTOOPT on an older kernel."""
        self._sock = nlmsg.opened(nlmsg.ROUTE)
        try:
            self._sock.setsockopt(nlmsg.SOL_NETLINK, LISTEN_ALL_NSID, 1)
            socket_filter.attach(self._sock, _UNWANTED)
            self._sock.setsockopt(nlmsg.SOL_NETLINK, nlmsg.ADD_MEMBERSHIP, RTMGRP_LINK)
        except OSError:
            self._sock.close()
            raise

    def close(self) -> None:
        self._sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def heard(self) -> dict[tuple[int, int], str] | None:
        """The MACs, by (id of the namespace, index), of the links that changed since the last look, without waiting.
        None if messages were lost, or more are left than one look reads: any link may have changed."""
        changed: dict[tuple[int, int], str] = {}
        for _ in range(MOST_AT_ONCE):
            try:
                data, ancillary, _, _ = self._sock.recvmsg(nlmsg.RECEIVE, _ROOM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return changed
            except OSError:
                return None
            for level, kind, value in ancillary:
                if (level, kind) == (nlmsg.SOL_NETLINK, LISTEN_ALL_NSID) and len(value) >= _NSID.size:
                    (netns,) = _NSID.unpack_from(value)
                    changed |= {(netns, index): mac for index, mac in _macs(data)}
        return None


def _macs(data: bytes) -> Iterator[tuple[int, str]]:
    """The indexes and MACs of the links of which a datagram tells."""
    for told in nlmsg.messages(data):
        if told.type != netlink.RTM_NEWLINK:
            continue
        family, _, index, _, _ = netlink.IFINFO.unpack_from(data, told.start)
        raw = nlmsg.chosen(data[told.start : told.end], _ADDRESS, netlink.IFINFO.size) if not family else {}
        if raw:
            yield index, links.mac_text(raw[links.IFLA_ADDRESS])
