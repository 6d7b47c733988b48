"""Hearing that forwarding was switched off, for the node or for a link (RTM_NEWNETCONF)."""

from __future__ import annotations

import struct

from cni.host import nlmsg

_RTM_NEWNETCONF = 80
_GROUPS = (24, 25)  # RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF
_IFINDEX, _FORWARDING = 1, 2  # NETCONFA_...
_INT = struct.Struct("=i")
_HEADER = 4  # bytes of struct netconfmsg, padded
ALL = -1  # NETCONFA_IFINDEX_ALL


class SettingsEar:
    """A socket that hears the namespace of the constructing thread. One thread at a time. Raises OSError."""

    def __init__(self) -> None:
        self._socket = nlmsg.opened(nlmsg.ROUTE)
        for group in _GROUPS:
            self._socket.setsockopt(nlmsg.SOL_NETLINK, nlmsg.ADD_MEMBERSHIP, group)

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
                for data in nlmsg.at_hand(self._socket):
                    found |= switched_off(data)
                return found
            except OSError:
                found.add(ALL)


def switched_off(data: bytes) -> set[int]:
    """The links of which a datagram says that they do not forward. Pure."""
    found = set()
    for kind, _, _, _, start, end in nlmsg.messages(data):
        if kind == _RTM_NEWNETCONF:
            told = nlmsg.attributes(data[start + _HEADER : end])
            if len(told.get(_IFINDEX, b"")) == 4 and told.get(_FORWARDING) == bytes(4):
                found.add(_INT.unpack(told[_IFINDEX])[0])
    return found
