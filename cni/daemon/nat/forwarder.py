"""The forwarder: a process that outlives the daemon, between WireGuard's port and relays that forward in user space.

For each place beyond a relay it has a UDP port of 127.0.0.1. What WireGuard sends there goes to that place through the
relay, and what comes from there arrives at WireGuard from that port: to the device, and to the daemon's probes, it is
an endpoint like any other. The command `relay-forwarder SOCKET` runs it; the daemon starts it when a relay is
configured.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Collection
from pathlib import Path

import msgspec

from cni.daemon.model.endpoints import split_endpoint
from cni.daemon.model.nat_behaviour import Place
from cni.daemon.model.relay_leg import Leg, TurnLeg, ZlayerLeg
from cni.daemon.nat.forwarder_words import LARGEST, Seen, SeenRelay, Wanted, WantedRelay
from cni.host.relay_stream import Link, open_link
from cni.host.wg_types import join_endpoint

log = logging.getLogger(__name__)

BATCH = 64  # datagrams that are read at once
LONGEST = 65536
MOST_LEARNED = 32  # places beyond one relay that have sent something and were not named
AGAIN = 5.0  # seconds until a relay that was lost is tried again
LOOPBACK = "127.0.0.1"


def main(argv: list[str]) -> int:
    """Run until the daemon says that no relay is wanted any more; returns the exit code."""
    if len(argv) != 1:
        sys.stderr.write("usage: zlayer-cni relay-forwarder SOCKET (the daemon starts it)\n")
        return 2
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    Forwarder(argv[0]).run()
    return 0


class Relayed:
    """One relay: its session, the connection to it, and the local ports."""

    def __init__(self, wanted: WantedRelay, mark: int) -> None:
        self.wanted, self._mark = wanted, mark
        self._leg: Leg = _leg(wanted)
        self._link: Link | None = None
        self._retry_at = 0.0
        self._fault = ""
        self._locals: dict[Place, socket.socket] = {}
        self._remotes: tuple[Place, ...] = ()
        self._learned: list[Place] = []  # oldest first
        self._port = 0

    def close(self) -> None:
        """Close all sockets."""
        for sock in self._locals.values():
            sock.close()
        if self._link is not None:
            self._link.close()

    def want(self, remotes: Collection[Place], port: int) -> None:
        """Set the places to be reached, and WireGuard's port. A place that is no longer named stays for some time: a
        path through it may be in use, which a daemon that has just started does not know."""
        before = [place for place in (*self._learned, *self._remotes) if place not in remotes]
        self._remotes, self._port = tuple(remotes), port
        self._learned = list(dict.fromkeys(before))[-MOST_LEARNED:]
        self._match_ports()

    def _match_ports(self) -> None:
        """Have one local port for each place."""
        places = [*self._remotes, *self._learned]
        self._leg.want(places)
        for gone in [place for place in self._locals if place not in places]:
            self._locals.pop(gone).close()
        for place in places:
            with contextlib.suppress(OSError):
                if place not in self._locals:
                    self._locals[place] = _local_port()
                self._locals[place].connect((LOOPBACK, self._port))

    def _learn(self, place: Place) -> None:
        """A symmetric NAT sends from a port that its node cannot name. The relay lets in only addresses that this node
        has named."""
        self._learned = [*self._learned, place][-MOST_LEARNED:]
        self._match_ports()

    def sockets(self) -> list[socket.socket]:
        """What becomes readable with a datagram."""
        return [*self._locals.values(), *(self._link.sockets() if self._link is not None else ())]

    def due(self) -> float:
        """When `work` has something to do next, of the monotonic clock."""
        return self._leg.due() if self._link is not None else self._retry_at

    def work(self, readable: Collection[object], now: float) -> None:
        """Forward what has arrived, and keep the session."""
        if self._link is None and now >= self._retry_at:
            self._open(now)
        if self._link is None:
            return
        try:
            if not self._link.is_ready():
                return
            for message in self._link.received():
                self._take(message, now)
            for place, sock in self._locals.items():
                if sock in readable:
                    self._send_from(place, sock)
            for message in self._leg.advance(now):
                self._link.send(message)
        except OSError as error:
            self._lose(f"the connection ended: {error}", now)
            return
        if self._leg.is_lost:
            self._lose(self._leg.fault, now)

    def seen(self) -> SeenRelay:
        """What there is."""
        leg = self._leg
        return SeenRelay(
            id=self.wanted.id,
            relayed=join_endpoint(*leg.relayed) if leg.relayed is not None else "",
            mapped=join_endpoint(*leg.mapped) if leg.mapped is not None else "",
            fault=self._fault or leg.fault,
            seconds=leg.seconds,
            channels={join_endpoint(*place): int(sock.getsockname()[1]) for place, sock in self._locals.items()},
        )

    def _open(self, now: float) -> None:
        wanted = self.wanted
        host, port = split_endpoint(wanted.place)
        try:
            self._link = open_link(wanted.transport, (host, port), wanted.host, wanted.ca_file, self._mark)
        except OSError as error:
            self._fault, self._retry_at = str(error), now + AGAIN

    def _lose(self, fault: str, now: float) -> None:
        """Begin anew, from another port."""
        log.info("%s: %s", self.wanted.id, fault)
        if self._link is not None:
            self._link.close()
        at_once = "already exists" in fault
        self._link, self._fault, self._retry_at = None, fault, now if at_once else now + AGAIN
        self._leg = _leg(self.wanted)
        self._leg.want([*self._remotes, *self._learned])

    def _take(self, message: bytes, now: float) -> None:
        try:
            arrived = self._leg.take(message, now)
        except ValueError:
            return
        if self._leg.relayed is not None:
            self._fault = ""
        if arrived is not None:
            if arrived[0] not in self._locals:
                self._learn(arrived[0])
            with contextlib.suppress(OSError, KeyError):  # WireGuard's port is closed for a moment; no port is free
                self._locals[arrived[0]].send(arrived[1])

    def _send_from(self, place: Place, sock: socket.socket) -> None:
        assert self._link is not None
        for _ in range(BATCH):
            try:
                payload = sock.recv(LONGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP message about an earlier datagram
            wrapped = self._leg.wrapped(place, payload)
            if wrapped is not None:
                self._link.send(wrapped)


class Forwarder:
    """The process: its relays, and the daemon's connection."""

    def __init__(self, path: str) -> None:
        """`path`: of the control socket. Raises OSError."""
        self._path = path
        self._relays: dict[str, Relayed] = {}
        self._wanted = Wanted()
        self._told = b""
        self._daemon: socket.socket | None = None
        self._listen = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        Path(path).unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._listen.bind(path)
        finally:
            os.umask(before)
        self._listen.listen(4)

    def run(self) -> None:
        """Forward until no relay is wanted any more."""
        while not self._wanted.end:
            ears: list[socket.socket] = [self._listen, *([self._daemon] if self._daemon is not None else [])]
            for relay in self._relays.values():
                ears += relay.sockets()
            due = min((relay.due() for relay in self._relays.values()), default=float("inf"))
            readable, _, _ = select.select(ears, [], [], min(max(due - time.monotonic(), 0.001), 10.0))
            self._hear(readable)
            now = time.monotonic()
            for relay in self._relays.values():
                relay.work(readable, now)
            self._tell()
        for relay in self._relays.values():
            relay.close()
        Path(self._path).unlink(missing_ok=True)

    def _hear(self, readable: Collection[object]) -> None:
        """Take in what the daemon wants; a new daemon replaces the earlier one's connection."""
        if self._listen in readable:
            with contextlib.suppress(OSError):
                connection, _ = self._listen.accept()
                connection.setblocking(False)
                if self._daemon is not None:
                    self._daemon.close()
                self._daemon, self._told = connection, b""
        if self._daemon is None or self._daemon not in readable:
            return
        try:
            data = self._daemon.recv(LARGEST)
            if data:
                self._want(msgspec.json.decode(data, type=Wanted))
                return
        except BlockingIOError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the daemon's message is of no use: %s", error)
        self._daemon.close()
        self._daemon = None

    def _want(self, wanted: Wanted) -> None:
        ids = {relay.id: relay for relay in wanted.relays}
        for gone in [name for name, relay in self._relays.items() if ids.get(name) != relay.wanted]:
            self._relays.pop(gone).close()
        self._wanted = wanted
        remotes = [_place(text) for text in wanted.remotes]
        for name, each in ids.items():
            if name not in self._relays:
                self._relays[name] = Relayed(each, wanted.mark)
            self._relays[name].want(remotes, wanted.port)
        self._told = b""

    def _tell(self) -> None:
        if self._daemon is None:
            return
        told = msgspec.json.encode(Seen(relays=tuple(relay.seen() for relay in self._relays.values())))
        if told != self._told:
            with contextlib.suppress(OSError):
                self._daemon.send(told)
                self._told = told


def _leg(wanted: WantedRelay) -> Leg:
    if wanted.kind == "zlayer":
        return ZlayerLeg(wanted.username, wanted.password)
    return TurnLeg(wanted.username, wanted.password, is_stream=wanted.transport != "udp")


def _local_port() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind((LOOPBACK, 0))
    return sock


def _place(text: str) -> Place:
    host, port = split_endpoint(text)
    return ipaddress.ip_address(host), port
