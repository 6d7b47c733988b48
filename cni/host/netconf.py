"""Hearing that forwarding was switched off, for the node or for a link (RTM_NEWNETCONF)."""

from __future__ import annotations

import socket
import struct

from cni.host import netlink

_RTM_NEWNETCONF = 80
_GROUPS = (24, 25)  # RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_IFINDEX, _FORWARDING = 1, 2  # NETCONFA_...
_INT = struct.Struct("=i")
ALL = -1  # NETCONFA_IFINDEX_ALL


class SettingsEar:
    """A socket that hears the namespace of the constructing thread. One thread at a time. Raises OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.ROUTE)
        self._socket.bind((0, 0))
        for group in _GROUPS:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    def read(self) -> set[int]:
        """Where forwarding was switched off since the last time: indices of links, and ALL for the node or where
        something was lost. Never waits."""
        found: set[int] = set()
        while True:
            try:
                data = self._socket.recv(netlink.RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError:
                found.add(ALL)
                continue
            found |= switched_off(data)


def switched_off(data: bytes) -> set[int]:
    """The links of which a datagram says that they do not forward. Pure."""
    found, at = set(), 0
    while at + 20 <= len(data):
        size, kind, *_ = netlink.HEADER.unpack_from(data, at)
        if size < 20:
            break
        if kind == _RTM_NEWNETCONF:
            told = netlink.attributes(data[at + 20 : at + size])
            if len(told.get(_IFINDEX, b"")) == 4 and told.get(_FORWARDING) == bytes(4):
                found.add(_INT.unpack(told[_IFINDEX])[0])
        at += size + (-size & 3)
    return found
