"""Notifications of changes to links, addresses and routes, made by any program."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable

from cni.host import links, netlink, nlmsg
from cni.host.worker import IDLE, Crew, beat

GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
ALL_GROUPS = GROUPS | 0x40 | 0x400  # and RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE
_ADDRESS = struct.Struct("=BBBBI")
"""struct ifaddrmsg: family, prefix length, flags, scope, index."""
_OVERRUN = -1  # stands for lost notifications: the socket's buffer was full


class Monitor:
    """Calls `heard(message type, link name)` in its own thread; the name is empty for addresses, routes and
    overruns. For a single address on another link than lo it is that link's index in words: the gateway of a routed
    port, which goes with its container.
    """

    def __init__(
        self,
        heard: Callable[[int, str], None],
        groups: int = GROUPS,
        *,
        crew: Crew | None = None,
        name: str = "monitor",
    ) -> None:
        self._heard = heard
        self._sock = nlmsg.opened(nlmsg.ROUTE, groups)
        self._end, self._stop = socket.socketpair()
        self._worker = (crew or Crew()).worker(name, self._run)
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
            if not ready:
                continue
            try:
                data = self._sock.recv(nlmsg.RECEIVE)
            except OSError:
                self._heard(_OVERRUN, "")
                continue
            self._report(data)

    def _report(self, data: bytes) -> None:
        for kind, _, _, _, start, end in nlmsg.messages(data):
            name = ""
            if kind in (netlink.RTM_NEWLINK, netlink.RTM_DELLINK):
                body = data[start + netlink.IFINFO.size : end]
                name = nlmsg.string(nlmsg.attributes(body).get(links.IFLA_IFNAME, b""))
            elif kind in (netlink.RTM_NEWADDR, netlink.RTM_DELADDR):
                family, prefix, _, _, index = _ADDRESS.unpack_from(data, start)
                whole = prefix == (32 if family == links.AF_INET else 128)
                name = f"link {index}" if whole and index != links.LOOPBACK else ""
            self._heard(kind, name)


def is_loss(kind: int) -> bool:
    """Whether a message type says that a link or an address was deleted, or that notifications were lost."""
    return kind in (netlink.RTM_DELLINK, netlink.RTM_DELADDR, _OVERRUN)


__all__ = ["ALL_GROUPS", "Monitor", "is_loss"]
