"""Every link of the namespace, kept by notifications: a list of a thousand links takes the kernel's lock of links for
15 ms, and an ADD waits for that lock.

The socket of the notifications is read only when the links are asked for, so no change wakes a thread. The kernel
queues a notification before it releases the lock of links: the table has every change that was complete before the
question. The whole list is read at the first question, after lost notifications, and every `ANEW` seconds.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from cni.host import links, netlink, nlmsg

ANEW = 60.0  # seconds after which the whole list is read again, whatever was announced
ROOM = 1 << 22  # bytes of notifications that may wait: those of some 300 ADDs and DELs
_GROUP = 0x1  # RTMGRP_LINK


class LinkTable:
    """The links of the constructing thread's namespace. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds. Raises OSError."""
        self._clock = clock
        self._guard = threading.Lock()
        self._links: dict[int, links.Link] = {}
        self._listed_at: float | None = None
        self._asks = netlink.Netlink()
        self._news = nlmsg.opened(nlmsg.ROUTE, _GROUP)
        nlmsg.widen(self._news, socket.SO_RCVBUF, ROOM)

    def close(self) -> None:
        """Close the sockets."""
        self._news.close()
        self._asks.close()

    def now(self) -> list[links.Link]:
        """Every link, as after the last change before the call. Raises OSError."""
        with self._guard:
            whole = self._follow()
            if not whole or self._listed_at is None or self._clock() - self._listed_at >= ANEW:
                self._list()
            return list(self._links.values())

    def _list(self) -> None:
        """Read the whole list. It is not consistent if links change meanwhile, but those changes are announced, and are
        applied to it."""
        self._listed_at = None
        self._links = {link.index: link for link in links.list_links(self._asks, tries=1)}
        if not self._follow():
            self._links = {link.index: link for link in links.list_links(self._asks)}
        self._listed_at = self._clock()

    def _follow(self) -> bool:
        """Apply what was announced; whether nothing was lost."""
        told = _Told()
        try:
            for data in nlmsg.at_hand(self._news):
                told.take(data)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return False
        for index, body in told.bodies.items():
            link = links.parsed(body) if body is not None else None
            self._put(index, link)
            if link is not None and link.kind == "veth" and not link.peer:
                told.doubtful.add(index)  # the first message comes before the kernel has joined the ends
        for index, (master, hairpin) in told.ports.items():
            if index in self._links:
                self._put(index, replace(self._links[index], master=master, hairpin=hairpin))
        for index in told.doubtful:
            self._put(index, links.find_link(self._asks, index=index))
        return True

    def _put(self, index: int, link: links.Link | None) -> None:
        if link is None:
            self._links.pop(index, None)
        else:
            self._links[index] = link


class _Told:
    """The last word of the notifications about each link, by index."""

    def __init__(self) -> None:
        self.bodies: dict[int, bytes | None] = {}
        """The bodies of messages about links; None for a link that is gone."""
        self.ports: dict[int, tuple[int, bool]] = {}
        """What later messages tell of bridges' ports: the bridge's index, and hairpin mode."""
        self.doubtful: set[int] = set()
        """Links that may have changed in another way."""

    def take(self, data: bytes) -> None:
        for kind, _, _, _, start, end in nlmsg.messages(data):
            if kind not in (netlink.RTM_NEWLINK, netlink.RTM_DELLINK):
                continue
            family, _, index, _, _ = netlink.IFINFO.unpack_from(data, start)
            if family == links.AF_UNSPEC:
                self.bodies[index] = data[start:end] if kind == netlink.RTM_NEWLINK else None
                self.ports.pop(index, None)
                self.doubtful.discard(index)
                continue
            port = links.port_state(data[start:end]) if kind == netlink.RTM_NEWLINK else None
            if port is not None:
                self.ports[index] = port
            else:
                self.doubtful.add(index)  # as a rule a message about the link follows
