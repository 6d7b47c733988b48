"""The server of ZLayer's relay protocol: forwards datagrams in user space, for ZLayer's nodes and for ours.

`model/relay_sessions.py` decides what each message does. Nodes of one cluster of ours use the relay in the kernel
instead (`relay.py`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import random
import select
import threading
import time
from collections.abc import Callable, Collection

from cni.addresses import Network
from cni.daemon.model import nat_candidates, zlayer_relay
from cni.daemon.model.relay_sessions import Bucket, Sessions
from cni.daemon.model.zlayer_relay import Control, Place
from cni.daemon.nat.rules import ServerRules
from cni.daemon.problem_board import ProblemBoard
from cni.host.relay_port import RelayPort
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

TRIES = 64  # ports that are tried for one session
EXPIRE = 5.0  # seconds between two looks for sessions whose time is over


class ZlayerServer:
    """One server, with a thread of its own while it is configured. `configure`, `stop`: for one thread at a time."""

    def __init__(self, ranges: Callable[[], Collection[Network]], board: ProblemBoard, crew: Crew) -> None:
        """`ranges`: the overlay's, into which nothing is relayed."""
        self._ranges, self._board, self._crew = ranges, board, crew
        self._rules: ServerRules | None = None
        self._serving: _Serving | None = None

    def configure(self, rules: ServerRules | None) -> None:
        """Set the rules; None: nothing is served. A port that cannot be opened is a problem, and tried again."""
        if rules == self._rules and (rules is None) == (self._serving is None):
            return
        self.stop()
        self._rules = rules
        if rules is not None:
            with self._board.step("relay-unavailable", "server", f"UDP port {rules.listen} cannot be served"):
                self._serving = _Serving(rules, RelayPort(rules.listen), self._may_reach, self._crew)
                log.info("serving ZLayer's relay protocol at UDP port %d", rules.listen)
        else:
            self._board.clear("relay-unavailable", "server")

    def stop(self) -> None:
        """End the thread, and all sessions."""
        if self._serving is not None:
            self._serving.stop()
            self._serving = None

    def _may_reach(self, place: Place) -> bool:
        return not nat_candidates.refusal(place, self._ranges())


class _Serving:
    """The server at one port."""

    def __init__(self, rules: ServerRules, port: RelayPort, may_reach: Callable[[Place], bool], crew: Crew) -> None:
        self._rules, self._listen = rules, port
        self._key = zlayer_relay.key_of(rules.credential.reveal())
        self._external: Place = (ipaddress.ip_address(rules.external), 0)
        self._sessions = Sessions(rules.max_sessions, lambda: os.urandom(zlayer_relay.SESSION), may_reach)
        self._bucket = Bucket(time.monotonic())
        self._ports: dict[int, RelayPort] = {}
        self._locals: dict[Place, str] = {}  # by client: this node's address that it speaks to
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ended = threading.Event()
        self._worker = crew.worker("zlayer-relay", self._run)
        self._worker.start()

    def stop(self) -> None:
        self._worker.retire()
        self._ended.set()
        os.eventfd_write(self._wake, 1)
        self._worker.join(2.0)

    def _run(self) -> None:
        next_expiry = 0.0
        while not self._ended.is_set():
            beat(IDLE)
            ears: list[int | RelayPort] = [self._wake, self._listen, *self._ports.values()]
            readable, _, _ = select.select(ears, [], [], EXPIRE)
            now = time.monotonic()
            if self._listen in readable:
                self._take(now)
            for number, port in list(self._ports.items()):
                if port in readable:
                    self._deliver(number, port, now)
            if now >= next_expiry:
                next_expiry = now + EXPIRE
                self._sessions.expire(now)
                self._locals = {session.client: self._locals[session.client] for session in self._sessions}
            for number in self._ports.keys() - self._sessions.ports():
                self._ports.pop(number).close()
        for port in (self._listen, *self._ports.values()):
            port.close()

    def _take(self, now: float) -> None:
        """Take in what clients have sent."""
        for client, local, data in self._listen.received():
            with contextlib.suppress(ValueError):
                if data[:1] == bytes([zlayer_relay.DATA]):
                    to, payload = zlayer_relay.decode_data(data)
                    number = self._sessions.outwards(client, to, now)
                    if number in self._ports:
                        self._ports[number].send(to, local, payload)
                elif self._bucket.take(now):
                    answer = self._answer(client, zlayer_relay.decode(data, self._key), now)
                    self._locals.setdefault(client, local)
                    if answer is not None:
                        self._listen.send(client, local, zlayer_relay.encode(answer, self._key))

    def _answer(self, client: Place, message: Control, now: float) -> Control | None:
        if message.kind == "allocate":
            return self._sessions.allocated(client, self._open, self._external, now)
        return self._sessions.answer(client, message)

    def _deliver(self, number: int, port: RelayPort, now: float) -> None:
        """Take to its client what has arrived at a relay's port."""
        for sender, _, payload in port.received():
            client = self._sessions.inwards(number, sender, now)
            if client is not None:
                self._listen.send(client, self._locals[client], zlayer_relay.encode_data(sender, payload))

    def _open(self) -> int:
        """Open one of the ports for relaying, a random free one; 0 if there is none."""
        free = [number for number in self._rules.ports if number not in self._ports]
        for number in random.sample(free, min(len(free), TRIES)):
            with contextlib.suppress(OSError):
                self._ports[number] = RelayPort(number)
                return int(number)
        return 0
