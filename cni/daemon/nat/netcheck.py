"""`zlayer-cni netcheck`: what the networks between this node and the configured STUN servers do with its datagrams.

The mapping is that of WireGuard's own port. Filtering and hairpinning are properties of the NAT, and are found from
ports of their own: a server that WireGuard's port has spoken to is let in there anyway.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cni.addresses import Address
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model import nat_behaviour, stun
from cni.daemon.model.endpoints import is_name
from cni.daemon.model.nat_behaviour import Filtered, Mapped, Observation, Place
from cni.daemon.nat.rules import NatRules
from cni.daemon.nat.stun_exchange import Query, Reply, StunExchange
from cni.daemon.state.state import State
from cni.host import underlay
from cni.host.udp_port import UdpPort
from cni.host.wg_port import PortSocket

LOOKUP = 2.0  # seconds that the lookup of a server's name may take
HAIRPIN = 1.0  # seconds until a datagram to the own public address is back
STUN_ANSWERS = (((stun.COOKIE_AT, stun.MAGIC_COOKIE),),)
"""The datagrams that `PortSocket` receives for STUN."""


class _Port(Protocol):
    """`PortSocket` or `UdpPort`."""

    def sockets(self) -> list[socket.socket]: ...

    def send(self, to: Place, payload: bytes) -> bool: ...

    def received(self) -> Iterable[tuple[Place, bytes]]: ...


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """One server as it was named, at one of its addresses. `seconds`: until its answer, None without one; `fault`: why
    there is none."""

    name: str
    at: Place | None
    seconds: float | None = None
    mapped: Place | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class FamilySeen:
    """What was found out for one version of IP. `hairpin`: whether the NAT leads a datagram to its own public address
    back inside; None if that was not tried."""

    version: int
    own: tuple[Address, ...]
    public: tuple[Place, ...]
    mapped: Mapped
    filtered: Filtered
    kind: str
    port_kept: bool | None
    hairpin: bool | None


@dataclass(frozen=True, slots=True)
class Report:
    """The result. `udp`: whether any server answered; None if none was asked."""

    udp: bool | None
    port: int
    servers: tuple[ServerSeen, ...] = ()
    families: tuple[FamilySeen, ...] = ()
    notes: tuple[str, ...] = field(default=())


class NetCheck:
    """Checks the networks of one node. Each check opens sockets of its own, so any thread may run one."""

    def __init__(self, state: State, mesh: Mesh, rules: Callable[[], NatRules]) -> None:
        self._state, self._mesh, self._rules = state, mesh, rules

    def run(self) -> Report:
        """Ask every configured server, and name what the NAT does; takes at most eight seconds. Raises OSError without
        CAP_NET_RAW."""
        rules, device = self._rules(), self._mesh.device()
        port = device.port if device is not None else self._state.node.wg_port
        notes = [f"{server} is no STUN server: not host:port" for server in rules.unusable]
        if not rules.stun:
            notes.append("no STUN server is configured, so none was asked (nat.stun)")
        own = underlay.addresses(self._state.cidrs)
        named, servers = _looked_up(rules.stun)
        sock = PortSocket(port, STUN_ANSWERS, device.mark if device is not None else 0)
        try:
            replies = _asked(sock, [Query(place) for place in named])
            second = [Query(place) for place in _other_places(replies) if place not in named]
            extra = _asked(sock, second) if second else []
        finally:
            sock.close()
        seconds = {reply.query.server: reply for reply in replies}
        servers += [_server(name, place, seconds.get(place)) for place, name in named.items()]
        observed = _observations([*replies, *extra])
        families = [_family(version, own, port, observed, replies) for version in (4, 6)]
        udp = bool(replies) if named else None
        return Report(udp, port, tuple(servers), tuple(f for f in families if f.own or f.public), tuple(notes))


def _looked_up(servers: Iterable[tuple[str, int]]) -> tuple[dict[Place, str], list[ServerSeen]]:
    """The places of the servers with the text by which each was named, and those whose name leads nowhere."""
    named: dict[Place, str] = {}
    missing = []
    for host, port in servers:
        text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        addresses = [host] if not is_name(host) else _addresses_of(host)
        for address in addresses:
            named.setdefault((ipaddress.ip_address(address), port), text)
        if not addresses:
            missing.append(ServerSeen(text, None, fault="the name cannot be looked up"))
    return named, missing


def _addresses_of(name: str) -> list[str]:
    """The addresses of a name; none if the resolver does not answer within `LOOKUP` seconds."""
    found: list[str] = []

    def look() -> None:
        try:
            found.extend(str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM))
        except (OSError, UnicodeError):
            found.clear()

    thread = threading.Thread(target=look, name="stun-lookup", daemon=True)
    thread.start()
    thread.join(LOOKUP)
    return list(dict.fromkeys(found))


def _asked(port: _Port, queries: Sequence[Query]) -> list[Reply]:
    """Send the queries from the port, and wait for the answers."""
    exchange, replies = StunExchange(queries, time.monotonic()), []
    while not exchange.is_over(now := time.monotonic()):
        for server, request in exchange.due(now):
            port.send(server, request)
        select.select(port.sockets(), [], [], max(0.0, exchange.next_due() - now))
        for _, data in port.received():
            reply = exchange.take(data, time.monotonic())
            if reply is not None:
                replies.append(reply)
    return replies


def _other_places(replies: Iterable[Reply]) -> list[Place]:
    """Further places of servers that have a second address (RFC 5780): its two ports, and the first one's second."""
    places = []
    for reply in replies:
        if reply.answer.other is not None:
            address, port = reply.answer.other
            places += [(address, port), (reply.query.server[0], port), (address, reply.query.server[1])]
    return list(dict.fromkeys(places))


def _observations(replies: Iterable[Reply]) -> list[Observation]:
    return [Observation(reply.query.server, reply.answer.mapped) for reply in replies if reply.answer.mapped]


def _server(name: str, place: Place, reply: Reply | None) -> ServerSeen:
    if reply is None:
        return ServerSeen(name, place, fault="no answer")
    fault = f"error {reply.answer.error}" if reply.answer.error else ""
    return ServerSeen(name, place, reply.seconds, reply.answer.mapped, fault)


def _family(
    version: int, own: Sequence[Address], port: int, observed: Sequence[Observation], replies: Sequence[Reply]
) -> FamilySeen:
    local = tuple(address for address in own if address.version == version)
    seen = [observation for observation in observed if observation.server[0].version == version]
    places = tuple(dict.fromkeys(observation.mapped for observation in seen))
    mapped = nat_behaviour.mapping_of(local, port, seen)
    filtered: Filtered = "unknown"
    hairpin = None
    if seen:
        pair = next((r for r in replies if r.answer.other and r.query.server[0].version == version), None)
        filtered = _filtering(pair.query.server) if pair is not None else "unknown"
        hairpin = _hairpin(seen[0].server) if mapped != "none" else None
    kept = all(place[1] == port for place in places) if places else None
    kind = nat_behaviour.kind_of(mapped, filtered) if seen else ""
    return FamilySeen(version, local, places, mapped, filtered, kind, kept, hairpin)


def _filtering(server: Place) -> Filtered:
    """Ask a server with two addresses to answer from its other address and port, and from its other port."""
    other, other_port = stun.CHANGE_ADDRESS | stun.CHANGE_PORT, stun.CHANGE_PORT
    port = UdpPort()
    try:
        replies = _asked(port, [Query(server), Query(server, other), Query(server, other_port)])
    finally:
        port.close()
    answered = {reply.query.change for reply in replies}
    if 0 not in answered:
        return "unknown"
    return nat_behaviour.filtering_of(other in answered, other_port in answered)


def _hairpin(server: Place) -> bool:
    """Send a datagram from one port to the public address of another port of this node."""
    ear, mouth = UdpPort(), UdpPort()
    try:
        mapped = next((reply.answer.mapped for reply in _asked(ear, [Query(server)])), None)
        if mapped is None:
            return False
        token = stun.request(b"hairpin-test")
        mouth.send(mapped, token)
        end = time.monotonic() + HAIRPIN
        while (left := end - time.monotonic()) > 0:
            select.select(ear.sockets(), [], [], left)
            if any(data == token for _, data in ear.received()):
                return True
        return False
    finally:
        ear.close()
        mouth.close()
