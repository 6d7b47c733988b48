"""Notifications that forwarding was switched off, for the node or for a link (RTM_NEWNETCONF)."""

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
    """A socket that receives the notifications of the namespace of the constructing thread. For one thread at a time.
    Raises OSError."""

    def __init__(self) -> None:
        self._socket = nlmsg.opened(nlmsg.ROUTE)
        for group in _GROUPS:
            self._socket.setsockopt(nlmsg.SOL_NETLINK, nlmsg.ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def read(self) -> set[int]:
        """Where forwarding was switched off since the last call: indices of links, and ALL for the node or if messages
        were lost. Never waits."""
        indices: set[int] = set()
        while True:
            try:
                for data in nlmsg.at_hand(self._socket):
                    indices |= switched_off(data)
                return indices
            except OSError:
                indices.add(ALL)


def switched_off(data: bytes) -> set[int]:
    """The indices of the links that do not forward, according to a datagram. Pure."""
    indices = set()
    for kind, _, _, _, start, end in nlmsg.messages(data):
        if kind == _RTM_NEWNETCONF:
            attrs = nlmsg.attributes(data[start + _HEADER : end])
            if len(attrs.get(_IFINDEX, b"")) == 4 and attrs.get(_FORWARDING) == bytes(4):
                indices.add(_INT.unpack(attrs[_IFINDEX])[0])
    return indices
