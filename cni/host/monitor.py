"""Notifications of changes to links, addresses and routes, made by any program.

A filter in the kernel leaves out what every ADD and DEL causes and no reader needs: changes of the overlay's own links,
and the deletion of ports.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cni import naming
from cni.host import links, netlink, nlmsg, socket_filter
from cni.host.worker import IDLE, Crew, beat

GROUPS = 0x1 | 0x10 | 0x100 | 0x40 | 0x400  # RTMGRP_LINK, and IFADDR and ROUTE of both families
GATHER = 0.005  # seconds from a notification to the reading: changes seldom come alone, and one reading serves all
_PORTS, _OURS = "zl-??????????-v", "zl-*"  # cni/naming.py
_ADDRESS = struct.Struct("=BBBBI")
"""struct ifaddrmsg: family, prefix length, flags, scope, index."""
_IFA_LABEL = 3
_TO_MANY = (3, 4, 5)  # RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST: every link has such routes
_UNWANTED = socket_filter.dropping(
    [socket_filter.of_type(netlink.RTM_NEWLINK), *socket_filter.of_link(_OURS)],
    [socket_filter.of_type(netlink.RTM_DELLINK), *socket_filter.of_link(_PORTS)],
    *(
        [socket_filter.of_type(kind), socket_filter.of_route(of)]
        for kind in (netlink.RTM_NEWROUTE, netlink.RTM_DELROUTE)
        for of in _TO_MANY
    ),
)


class Change(NamedTuple):
    """A change that the kernel announced. `link`: the name, if it is about a link, else "". `is_loss`: a link or an
    address was deleted, or notifications were lost. Of the overlay's links only deletions are announced, of ports
    nothing. For the address of a routed port, `link` is the port's index in words: it goes with its container."""

    link: str
    is_loss: bool


class Monitor:
    """Calls `heard` with each change in its own thread, from the construction on as soon as it is started."""

    def __init__(self, heard: Callable[[Change], None], crew: Crew) -> None:
        """Raises OSError."""
        self._heard = heard
        self._sock = nlmsg.opened(nlmsg.ROUTE, GROUPS)
        socket_filter.attach(self._sock, _UNWANTED)
        self._end, self._stop = socket.socketpair()
        self._worker = crew.worker("monitor", self._run)

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def close(self) -> None:
        """Stops the thread and closes the sockets."""
        self._worker.retire()
        self._stop.close()
        self._worker.join(2.0)
        self._sock.close()
        self._end.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._end, select.POLLIN | select.POLLHUP)
        while True:
            beat(IDLE)
            ready = [fd for fd, _ in poll.poll(IDLE * 1000)]
            beat()
            if self._end.fileno() in ready:
                return
            if ready:
                time.sleep(GATHER)
                for change in dict.fromkeys(self._read()):
                    self._heard(change)

    def _read(self) -> Iterator[Change]:
        """The changes announced since the last call."""
        try:
            for data in nlmsg.at_hand(self._sock):
                yield from _changes(data)
        except OSError:
            yield Change("", is_loss=True)


def _changes(data: bytes) -> Iterator[Change]:
    for kind, _, _, _, start, end in nlmsg.messages(data):
        name = ""
        if kind in (netlink.RTM_NEWLINK, netlink.RTM_DELLINK):
            body = data[start + netlink.IFINFO.size : end]
            name = nlmsg.string(nlmsg.attributes(body).get(links.IFLA_IFNAME, b""))
        elif kind in (netlink.RTM_NEWADDR, netlink.RTM_DELADDR):
            family, prefix, _, _, index = _ADDRESS.unpack_from(data, start)
            single = prefix == (32 if family == links.AF_INET else 128)
            if single and _is_gateway(index, nlmsg.attributes(data[start + _ADDRESS.size : end])):
                name = f"link {index}"
        yield Change(name, kind in (netlink.RTM_DELLINK, netlink.RTM_DELADDR))


def _is_gateway(index: int, attributes: dict[int, bytes]) -> bool:
    """Whether a single address is that of a routed port, by the link's name: an uplink may have a single address too,
    as in clouds. The kernel sends the name with addresses of IPv4 only, and a link that is gone has none."""
    name = nlmsg.string(attributes.get(_IFA_LABEL, b""))
    if not name:
        try:
            name = socket.if_indextoname(index)
        except OSError:
            return True
    return name.startswith(naming.PREFIX)
