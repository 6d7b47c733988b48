"""Has the router lead a port of its public address to WireGuard's port of this node (PCP, NAT-PMP)."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import Collection

from cni.addresses import Address
from cni.daemon.model import port_mapping
from cni.daemon.model.nat_behaviour import Place
from cni.daemon.model.port_mapping import PortMapping
from cni.host.gateway import default_gateway
from cni.host.udp_port import UdpPort

log = logging.getLogger(__name__)

BEHIND = tuple(
    ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
)
"""The addresses of nodes behind a NAT, and of carriers' NATs (RFC 1918, RFC 6598)."""


class PortMapper:
    """The mapping of one node, over IPv4. Times in seconds on the monotonic clock. For one thread."""

    def __init__(self) -> None:
        self._mapping: PortMapping | None = None
        self._sock: UdpPort | None = None
        self._asked: tuple[Address, Address, int] | None = None  # the router, the node's own address, the port
        self._place: Place | None = None

    def configure(self, enabled: bool, own: Collection[Address], port: int, now: float) -> None:
        """Ask the router of the default route, if the node has an address behind a NAT alone."""
        behind = [address for address in own if _is_behind(address)]
        is_public = any(address.version == 4 and not _is_behind(address) for address in own)
        gateway = default_gateway() if enabled and behind and not is_public else None
        asked = (gateway, behind[0], port) if gateway is not None else None
        if asked == self._asked:
            return
        self.close()
        self._asked = asked
        if asked is not None:
            self._mapping = PortMapping(asked[1], port, os.urandom(port_mapping.NONCE), now)
            self._sock = UdpPort()

    def close(self) -> None:
        """Leave the mapping, which lasts for its lifetime."""
        if self._sock is not None:
            self._sock.close()
        self._sock, self._mapping, self._asked, self._place = None, None, None, None

    def remove(self) -> None:
        """Remove the mapping, for `uninstall`."""
        if self._mapping is not None and self._sock is not None and self._asked is not None:
            for request in self._mapping.farewell():
                self._sock.send((self._asked[0], port_mapping.PORT), request)
        self.close()

    def sockets(self) -> list[socket.socket]:
        """What becomes readable with an answer."""
        return self._sock.sockets() if self._sock is not None else []

    def due(self) -> float:
        """When `work` has something to do next."""
        return self._mapping.due() if self._mapping is not None else float("inf")

    def work(self, now: float) -> bool:
        """Send and receive; returns whether the mapping has changed."""
        if self._mapping is None or self._sock is None or self._asked is None:
            return False
        router = (self._asked[0], port_mapping.PORT)
        for sender, data in self._sock.received():
            if sender == router:
                with contextlib.suppress(ValueError):
                    self._mapping.take(data, now)
        for request in self._mapping.advance(now):
            self._sock.send(router, request)
        before, self._place = self._place, self._mapping.place
        if before != self._place and self._place is not None:
            log.info("the router leads %s port %d here (%s)", *self._place, self._mapping.protocol)
        return before != self._place

    def place(self) -> Place | None:
        """What leads to WireGuard's port from outside; None without a mapping, and for one of a router that is itself
        behind a NAT."""
        return None if self._place is None or _is_behind(self._place[0]) else self._place

    def words(self) -> str:
        """What is known, for people."""
        if self._asked is None or self._mapping is None:
            return "not asked for"
        if self._place is not None:
            return f"{self._place[0]}:{self._place[1]} by {self._mapping.protocol}"
        if self._mapping.refusal:
            return f"refused by {self._asked[0]} ({self._mapping.protocol}, result {self._mapping.refusal})"
        return f"{self._asked[0]} has neither PCP nor NAT-PMP"


def _is_behind(address: Address) -> bool:
    return address.version == 4 and any(address in network for network in BEHIND)
