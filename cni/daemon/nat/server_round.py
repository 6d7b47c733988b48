"""The rounds in which this node asks the configured STUN servers, from the thread that owns WireGuard's port.

Servers' names are looked up by the mesh's resolver, which never blocks. A node asks at the start, when its own
addresses change, and at the interval of the rules.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

from cni.daemon.model.endpoints import is_name
from cni.daemon.model.nat_behaviour import Place
from cni.daemon.nat.stun_exchange import Query, Reply, StunExchange

DOUBT = 2.0  # seconds at least between two rounds of which a path that fails causes the second
AGAIN = 5.0  # seconds until the next round if no server answered


class ServerRound:
    """The present round. Times in seconds on the monotonic clock. For one thread."""

    def __init__(self, addresses_of: Callable[[str], tuple[str, ...]]) -> None:
        """`addresses_of`: the addresses of a name as of the last lookup."""
        self._addresses_of = addresses_of
        self._exchange: StunExchange | None = None
        self._asked: list[Place] = []
        self._answered = False
        self._began = float("-inf")

    def begin(self, servers: Iterable[tuple[str, int]], now: float) -> None:
        """Ask every server now."""
        self._asked = self._places(servers)
        self._exchange = StunExchange([Query(place) for place in self._asked], now) if self._asked else None
        self._began, self._answered = now, False

    def ask_anew(self, servers: Iterable[tuple[str, int]], now: float) -> None:
        """Ask every server now, unless the last round began less than `DOUBT` seconds ago."""
        if now - self._began >= DOUBT:
            self.begin(servers, now)

    def refresh(self, servers: Iterable[tuple[str, int]], interval: float, now: float) -> None:
        """Ask again if the interval, in seconds, is over, or if the servers are others than before."""
        servers = list(servers)
        if now >= self.next_round(servers, interval) or self._places(servers) != self._asked:
            self.begin(servers, now)

    def next_round(self, servers: Iterable[tuple[str, int]], interval: float) -> float:
        """When `refresh` should be called next; infinite without servers."""
        return self._began + (interval if self._answered else AGAIN) if list(servers) else float("inf")

    def requests(self, now: float) -> list[tuple[Place, bytes]]:
        """The requests to send now."""
        if self._exchange is None or self._exchange.is_over(now):
            self._exchange = None
            return []
        return self._exchange.due(now)

    def take(self, message: bytes, now: float) -> Reply | None:
        """The reply in a datagram; None if it answers no request of this round."""
        reply = self._exchange.take(message, now) if self._exchange is not None else None
        self._answered = self._answered or reply is not None
        return reply

    def due(self) -> float:
        """When a request is due."""
        return self._exchange.next_due() if self._exchange is not None else float("inf")

    def _places(self, servers: Iterable[tuple[str, int]]) -> list[Place]:
        return [
            (ipaddress.ip_address(text), port)
            for host, port in servers
            for text in (self._addresses_of(host) if is_name(host) else (host,))
        ]
