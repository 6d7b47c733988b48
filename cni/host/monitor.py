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
GONE = "link "
"""How `Change.link` begins for what went with its link."""
_PORTS, _OURS = "zl-??????????-v", "zl-*"  # cni/naming.py
_ADDRESS = struct.Struct("=BBBBI")
"""struct ifaddrmsg: family, prefix length, flags, scope, index."""
_IFA_LABEL, _RTA_OIF = 3, 4
_ROUTE = 12  # bytes of struct rtmsg
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
    """A change that the kernel announced. An address or a route that this process set or removed by netlink on a link
    of the overlay is left out.

    `link`: the link's name, if it is about a link or about an address or a route of a link of the overlay, else "".
    `is_loss`: a link or an address was deleted, or notifications were lost. Of the overlay's links themselves only
    deletions are announced, of ports nothing. For an address or a route that went with its link, `link` is the index in
    words."""

    link: str
    is_loss: bool


class Monitor:
    """Calls `heard` with each change in its own thread, from the construction on as soon as it is started."""

    def __init__(self, heard: Callable[[Change], None], crew: Crew) -> None:
        """Raises OSError."""
        self._heard = heard
        self._sock = opened()
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
                yield from changes(data)
        except OSError:
            yield Change("", is_loss=True)


def opened() -> socket.socket:
    """A socket that receives the notifications of the calling thread's namespace. Raises OSError."""
    made = nlmsg.opened(nlmsg.ROUTE, GROUPS)
    socket_filter.attach(made, _UNWANTED)
    return made


def is_of_the_host(link: str) -> bool:
    """Whether a change with that `Change.link` may concern the host's own links, addresses and routes.

    The loss of a link of the host is announced as such, so what went with its link needs no look.
    """
    return not link.startswith((naming.PREFIX, GONE))


def changes(data: bytes) -> Iterator[Change]:
    """The changes in a datagram of `opened`."""
    for kind, _, _, port, start, end in nlmsg.messages(data):
        if kind in (netlink.RTM_NEWLINK, netlink.RTM_DELLINK):
            body = data[start + netlink.IFINFO.size : end]
            name = nlmsg.string(nlmsg.attributes(body).get(links.IFLA_IFNAME, b""))
        elif kind in (netlink.RTM_NEWADDR, netlink.RTM_DELADDR):
            _, _, _, _, index = _ADDRESS.unpack_from(data, start)
            label = nlmsg.attributes(data[start + _ADDRESS.size : end]).get(_IFA_LABEL, b"")
            name = _overlay_link(index, nlmsg.string(label))
        elif kind in (netlink.RTM_NEWROUTE, netlink.RTM_DELROUTE):
            index = links.number(nlmsg.attributes(data[start + _ROUTE : end]).get(_RTA_OIF))
            name = _overlay_link(index) if index else ""
            if netlink.is_own(port) and not index:
                continue  # the subnets of routed services
        else:
            continue
        if name.startswith(naming.PREFIX) and netlink.is_own(port):
            continue
        yield Change(name, kind in (netlink.RTM_DELLINK, netlink.RTM_DELADDR))


def _overlay_link(index: int, name: str = "") -> str:
    """The name of a link of the overlay; "" for another link, and the index in words for a link that is gone. `name`:
    as in the message, which only addresses of IPv4 have."""
    if not name:
        try:
            name = socket.if_indextoname(index)
        except OSError:
            return f"{GONE}{index}"
    return name if name.startswith(naming.PREFIX) else ""
