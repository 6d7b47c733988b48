"""Which links forward packets, and notifications that forwarding was switched off (RTM_NEWNETCONF)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection

from cni.host import nlmsg, socket_filter
from cni.host.netlink import Message, Netlink

_RTM_NEWNETCONF, _RTM_DELNETCONF, _RTM_GETNETCONF = 80, 81, 82
_AF_INET, _AF_INET6 = 2, 10
_FAMILIES = {4: _AF_INET, 6: _AF_INET6}
_GROUPS = (24, 25)  # RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF
_IFINDEX, _FORWARDING = 1, 2  # NETCONFA_...
_INT = struct.Struct("=i")
_HEADER = 4  # bytes of struct netconfmsg, padded
ALL = -1  # NETCONFA_IFINDEX_ALL


_OF_NEW, _OF_GONE = [socket_filter.of_type(_RTM_NEWNETCONF)], [socket_filter.of_type(_RTM_DELNETCONF)]
_SECOND = 16 + _HEADER + 8  # the offset of the second attribute, behind that of the index: usually the forwarding
_IS_ON = [
    *_OF_NEW,
    socket_filter.equal(_SECOND + 2, socket_filter.native(_FORWARDING, 2)),
    socket_filter.equal(_SECOND + 4, socket_filter.native(1, 4)),
]


_IS_ON_BYTES = socket_filter.native(_FORWARDING, 2) + socket_filter.native(1, 4)
"""The type and the value of the second attribute, if it is the forwarding and that is on."""


class SettingsEar:
    """A socket that receives the notifications of the namespace of the constructing thread. For one thread at a time.
    Raises OSError."""

    def __init__(self, versions: Callable[[], Collection[int]]) -> None:
        """`versions`: the IP versions that count now. Every new link is announced for both."""
        self._versions = versions
        self._filtered: tuple[int, ...] = ()
        self._socket = nlmsg.opened(nlmsg.ROUTE)
        self._filter()
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
        versions = self._filter()
        while True:
            try:
                for data in nlmsg.at_hand(self._socket):
                    indices |= switched_off(data, versions)
                return indices
            except OSError:
                indices.add(ALL)

    def _filter(self) -> tuple[int, ...]:
        """Have the kernel drop what is of no interest: forwarding is on, a link is gone, the family does not count."""
        versions = tuple(sorted(self._versions()))
        if versions != self._filtered:
            others = [family for version, family in _FAMILIES.items() if version not in versions]
            unwanted = [[*_OF_NEW, socket_filter.equal(16, bytes([family]))] for family in others]
            socket_filter.attach(self._socket, socket_filter.dropping(_IS_ON, _OF_GONE, *unwanted))
            self._filtered = versions
        return versions


def not_forwarding(socket: Netlink, version: int = 4) -> set[int]:
    """The indices of the links whose own forwarding of that IP version is off. Raises OSError."""
    ask = Message(_RTM_GETNETCONF, 0, bytes([_FAMILIES[version], 0, 0, 0]), "list the settings of links")
    bodies = (answer.body for answer in socket.dump(ask))
    closed = (body for body in bodies if body[_HEADER + 10 : _HEADER + 16] != _IS_ON_BYTES)  # quick: usually all are on
    return {index for body in closed for index in _closed(body[_HEADER:]) if index > 0}


def switched_off(data: bytes, versions: Collection[int]) -> set[int]:
    """The indices of the links that do not forward one of these IP versions, according to a datagram. Pure."""
    families = [bytes([_FAMILIES[version]]) for version in versions]
    indices = set()
    for kind, _, _, _, start, end in nlmsg.messages(data):
        if kind == _RTM_NEWNETCONF and data[start : start + 1] in families:
            indices |= _closed(data[start + _HEADER : end])
    return indices


def _closed(body: bytes) -> set[int]:
    """The index in a message if its forwarding is 0, else nothing."""
    attrs = nlmsg.attributes(body)
    off = len(attrs.get(_IFINDEX, b"")) == 4 and attrs.get(_FORWARDING) == bytes(4)
    return {_INT.unpack(attrs[_IFINDEX])[0]} if off else set()
