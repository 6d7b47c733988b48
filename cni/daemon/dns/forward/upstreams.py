"""The servers that questions go to: those of the settings or of the host's resolv.conf, and which of them answer.

A server that has not answered is asked last for `PENALTY` seconds, so that a dead server costs one question its
patience, not every question. After that the server is asked first again, with the next one beside it at once: no client
waits for the test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cni.daemon.model.dns_upstreams import NameServer, Zones, endpoint_of, in_resolv_conf, zones_of
from cni.daemon.settings import Dns

LOOK = 1.0  # seconds between two looks at resolv.conf
PENALTY = 10.0  # seconds for which a server that did not answer is asked last
REMEMBER = 60.0  # seconds for which a server is asked by the transport, or without the extension, that it took before
MOST_REMEMBERED = 256  # servers; an intercepted container can ask any number
ROUND = 3.0  # seconds of the first round, in which each server is asked once
LATER = 1.0  # seconds of each further round
PATIENCE = 1.0  # seconds, at most, until the next server is asked beside one that has not answered

Transport = Literal["udp", "tcp"]


@dataclass(slots=True)
class Health:
    """What is known of one server, as times on the monotonic clock. `failed`: until when it is asked last; `by_tcp`,
    `plain`: until when it is asked by TCP first, and without EDNS. `tested`: it failed before, and has not answered
    since."""

    failed: float = 0.0
    tested: bool = False
    by_tcp: float = 0.0
    plain: float = 0.0

    def answered(self) -> None:
        """The server has sent a message."""
        self.failed, self.tested = 0.0, False

    def silent(self, now: float) -> None:
        """The server was asked and did not answer in time."""
        self.failed, self.tested = now + PENALTY, True

    def took_tcp_alone(self, now: float) -> None:
        """The server has answered by TCP and not by UDP."""
        self.by_tcp = now + REMEMBER

    def refused_edns(self, now: float) -> None:
        """The server does not know EDNS."""
        self.plain = now + REMEMBER


@dataclass(frozen=True, slots=True)
class Step:
    """One attempt: which server, by which transport, and the seconds until the next step if there is no answer."""

    server: NameServer
    transport: Transport
    patience: float


def steps_of(servers: Sequence[NameServer], health: Mapping[NameServer, Health], now: float) -> list[Step]:
    """The attempts for one question, in their order: each server by UDP, then each by TCP, then by UDP again. Pure."""
    ordered = sorted(servers, key=lambda server: health[server].failed > now)  # stable: the given order otherwise
    first, later = min(PATIENCE, ROUND / len(ordered)), LATER / len(ordered)
    steps = []
    for number, transport in enumerate(("udp", "tcp", "udp", "tcp")):
        for server in ordered:
            known = health[server]
            by_tcp = (transport == "tcp") == (known.by_tcp <= now)
            doubted = number == 0 and known.tested and known.failed <= now and len(ordered) > 1
            patience = 0.0 if doubted else (first if number == 0 else later)
            steps.append(Step(server, "tcp" if by_tcp else "udp", patience))
    return steps


class Upstreams:
    """The configured servers, followed as resolv.conf changes. Used by the forwarder's thread alone."""

    def __init__(self, settings: Dns, own: Callable[[], frozenset[str]], resolv_conf: Path) -> None:
        """`own`: the addresses at which this node's server answers; they are never asked."""
        self._settings, self._own, self._path = settings, own, resolv_conf
        self._health: dict[NameServer, Health] = {}
        self._zones = zones_of(settings.zones, [endpoint_of(text) for text in settings.upstreams or ()])
        self._seen: tuple[int, ...] | None = None
        self._looked = float("-inf")

    def follow(self, now: float) -> bool:
        """Read resolv.conf again if it has changed, at most every `LOOK` seconds; whether the servers have changed."""
        if self._settings.upstreams is not None or now - self._looked < LOOK:
            return False
        self._looked = now
        seen = _identity(self._path)
        if seen == self._seen:
            return False
        self._seen = seen
        before = self._zones.rest
        try:
            rest = in_resolv_conf(self._path.read_text(errors="replace"))
        except OSError:
            rest = ()
        self._zones = Zones(self._zones.by_name, rest)
        return rest != before

    def servers(self, name: bytes) -> tuple[NameServer, ...]:
        """The servers for a name, without this node's own."""
        own = self._own()
        return tuple(each for each in self._zones.servers(name) if not self._is_own(each, own))

    def own_named(self) -> list[str]:
        """The servers that are this node's own, which would ask themselves."""
        own = self._own()
        named = {*self._zones.rest, *(each for servers in self._zones.by_name.values() for each in servers)}
        return sorted(str(each) for each in named if self._is_own(each, own))

    @property
    def refuses(self) -> bool:
        """Whether the settings say that other names are forwarded to no server."""
        return self._settings.upstreams is not None and not self._settings.upstreams

    def steps(self, servers: Sequence[NameServer]) -> list[Step]:
        """The attempts for one question to these servers."""
        return steps_of(servers, {server: self.health(server) for server in servers}, time.monotonic())

    def health(self, server: NameServer) -> Health:
        """What is known of a server."""
        known = self._health.pop(server, None) or Health()
        self._health[server] = known
        if len(self._health) > MOST_REMEMBERED:
            self._health.pop(next(iter(self._health)))
        return known

    def _is_own(self, server: NameServer, own: frozenset[str]) -> bool:
        return server.port == self._settings.port and server.address in own


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when the file does, or when its link leads to another one; empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
