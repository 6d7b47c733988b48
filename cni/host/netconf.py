"""Which links forward packets, and notifications that forwarding was switched off (RTM_NEWNETCONF)."""

from __future__ import annotations

import struct

from cni.host import nlmsg
from cni.host.netlink import Message, Netlink

_RTM_NEWNETCONF, _RTM_GETNETCONF = 80, 82
_AF_INET = 2
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


def not_forwarding(socket: Netlink) -> set[int]:
    """The indices of the links whose own IPv4 forwarding is off. Raises OSError."""
    ask = Message(_RTM_GETNETCONF, 0, bytes([_AF_INET, 0, 0, 0]), "list the settings of links")
    return {index for answer in socket.dump(ask) for index in _closed(answer.body[_HEADER:]) if index > 0}


def switched_off(data: bytes) -> set[int]:
    """The indices of the links that do not forward, according to a datagram. Pure."""
    indices = set()
    for kind, _, _, _, start, end in nlmsg.messages(data):
        if kind == _RTM_NEWNETCONF:
            indices |= _closed(data[start + _HEADER : end])
    return indices


def _closed(body: bytes) -> set[int]:
    """The index in a message if its forwarding is 0, else nothing."""
    attrs = nlmsg.attributes(body)
    off = len(attrs.get(_IFINDEX, b"")) == 4 and attrs.get(_FORWARDING) == bytes(4)
    return {_INT.unpack(attrs[_IFINDEX])[0]} if off else set()
