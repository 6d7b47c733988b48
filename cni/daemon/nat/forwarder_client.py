"""The daemon's end of the forwarder: which relays in user space are used, and which local ports lead through them."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable

import msgspec

from cni.daemon.model.endpoints import is_name
from cni.daemon.model.nat_behaviour import Place
from cni.daemon.nat.forwarder_words import LARGEST, Seen, SeenRelay, Wanted, WantedRelay
from cni.daemon.nat.rules import UserRelay, password_of
from cni.daemon.problem_board import ProblemBoard
from cni.host.forwarder_process import ForwarderProcess
from cni.host.wg_types import join_endpoint, split_endpoint

log = logging.getLogger(__name__)

LOOPBACK = ipaddress.ip_address("127.0.0.1")
AGAIN = 0.2  # seconds until a forwarder that was started is connected to again
MOST_REMOTES = 64


class ForwarderClient:
    """The relays in user space that this node uses. Times in seconds on the monotonic clock. For one thread."""

    def __init__(
        self, process: ForwarderProcess, addresses_of: Callable[[str], tuple[str, ...]], board: ProblemBoard
    ) -> None:
        """`addresses_of`: the addresses of a name as of the last lookup."""
        self._process, self._addresses_of, self._board = process, addresses_of, board
        self._sock: socket.socket | None = None
        self._wanted, self._said = Wanted(), Wanted()
        self._seen = Seen()
        self._retry_at = float("inf")
        self._remotes: dict[Place, None] = {}

    # --- what is wanted ----------------------------------------------------------------------------------------------

    def configure(self, relays: Iterable[UserRelay], port: int, mark: int) -> None:
        """Set the relays, WireGuard's port and its firewall mark. Without relays no forwarder runs."""
        wanted = tuple(found for relay in relays if (found := self._relay(relay)) is not None)
        self._wanted = msgspec.structs.replace(self._wanted, relays=wanted, port=port, mark=mark, end=not wanted)

    def _relay(self, relay: UserRelay) -> WantedRelay | None:
        addresses = self._addresses_of(relay.host) if is_name(relay.host) else (relay.host,)
        if not addresses:
            return None
        place = (ipaddress.ip_address(addresses[0]), relay.port)
        return WantedRelay(
            id=relay.name,
            kind=relay.kind,
            transport=relay.transport,
            place=join_endpoint(*place),
            host=relay.host,
            username=relay.username,
            password=password_of(relay).reveal(),
            ca_file=relay.ca_file,
        )

    def reach(self, remotes: Iterable[Place]) -> None:
        """Set the places that are to be reached through every relay."""
        wanted = tuple(dict.fromkeys(join_endpoint(*place) for place in remotes))[:MOST_REMOTES]
        self._wanted = msgspec.structs.replace(self._wanted, remotes=wanted)

    def work(self, now: float) -> bool:
        """Tell the forwarder what is wanted, and take in what there is; returns whether that has changed."""
        if self._sock is None and self._wanted.relays:
            self._connect(now)
        if self._sock is None and self._wanted.end and self._said != self._wanted:
            self._sock = self._process.connect()  # one that an earlier daemon left
            self._said = self._wanted if self._sock is None else self._said
        if self._sock is None:
            return False
        try:
            if self._said != self._wanted:
                self._sock.send(msgspec.json.encode(self._wanted))
                self._said = self._wanted
            return self._receive(self._sock)
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the forwarder is gone: %s", error)
            self._disconnect(now)
            return True

    def _connect(self, now: float) -> None:
        self._process.reap()
        self._sock, self._said = self._process.connect(), Wanted()
        self._retry_at = float("inf") if self._sock is not None else now + AGAIN
        if self._sock is None:
            with self._board.step("relay-unavailable", "forwarder", "relays in user space cannot be used"):
                self._process.start()

    def _disconnect(self, now: float) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock, self._seen, self._retry_at = None, Seen(), now

    def _receive(self, sock: socket.socket) -> bool:
        before = self._seen
        while True:
            try:
                data = sock.recv(LARGEST)
            except BlockingIOError:
                break
            if not data:
                raise OSError("it has ended")
            self._seen = msgspec.json.decode(data, type=Seen)
        if self._seen == before:
            return False
        faults = {f"relay {seen.id}": f"the relay {seen.id} cannot be used: {seen.fault}" for seen in self._faulty()}
        for subject in [text for text in self._board.subjects("relay-unavailable") if text.startswith("relay ")]:
            if subject not in faults:
                self._board.clear("relay-unavailable", subject)
        for subject, text in faults.items():
            self._board.note("relay-unavailable", subject, text)
        return True

    def _faulty(self) -> list[SeenRelay]:
        return [seen for seen in self._seen.relays if seen.fault and not seen.relayed]

    def close(self) -> None:
        """Leave the forwarder, which works on."""
        if self._sock is not None:
            self._sock.close()
        self._sock, self._said, self._seen, self._retry_at = None, Wanted(), Seen(), float("inf")

    def remove(self) -> None:
        """End the forwarder, for `uninstall`. Never raises."""
        self._wanted, self._said = Wanted(end=True), Wanted()
        self.work(0.0)
        self.close()

    def sockets(self) -> list[socket.socket]:
        """What becomes readable with news."""
        return [self._sock] if self._sock is not None else []

    def due(self) -> float:
        """When `work` has something to do next."""
        return self._retry_at if self._sock is None and self._wanted.relays else float("inf")

    # --- what there is -----------------------------------------------------------------------------------------------

    def relays(self) -> tuple[SeenRelay, ...]:
        """Every relay in use."""
        return self._seen.relays

    def relayed(self) -> list[str]:
        """This node's addresses at the relays."""
        return [seen.relayed for seen in self._seen.relays if seen.relayed]

    def places(self, remotes: Iterable[Place]) -> list[Place]:
        """The local ports that lead to these places."""
        named = {join_endpoint(*place) for place in remotes}
        return [
            (LOOPBACK, port)
            for seen in self._seen.relays
            if seen.relayed
            for remote, port in seen.channels.items()
            if remote in named
        ]

    def behind(self, place: Place) -> tuple[str, str] | None:
        """The relay and the place that a local port leads to; None if it is none of the forwarder's."""
        if place[0] != LOOPBACK:
            return None
        for seen in self._seen.relays:
            for remote, port in seen.channels.items():
                if port == place[1]:
                    return seen.id, remote
        return None


def place_of(text: str) -> Place:
    """An address with its port. Raises ValueError."""
    host, port = split_endpoint(text)
    return ipaddress.ip_address(str(host)), port
