"""The probes under way, and what arrives at WireGuard's port beside WireGuard's own datagrams."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

from cni.daemon.model import probe_message, stun
from cni.daemon.model.peer_paths import RELAYED, Place, Send
from cni.daemon.model.probe_message import Probe
from cni.daemon.nat.outside import Outside
from cni.daemon.nat.pair_keys import PairKeys
from cni.daemon.nat.pings import Pings
from cni.daemon.nat.published import Published
from cni.daemon.nat.relay_talk import Outcome, RelayTalk
from cni.daemon.nat.sought_peers import SoughtPeers
from cni.host.wg_port import BATCH, Pattern, PortSocket

REST = 0.02  # seconds of rest after a full batch: a flood gets at most a twentieth of a processor
FORGET = 10.0  # seconds after which a probe's answer is no longer waited for


@dataclass(frozen=True, slots=True)
class _Pending:
    key: str
    to: Place
    at: float


class Probing:
    """The datagrams of one node's search. For one thread, except `ask`."""

    def __init__(
        self, pair_keys: PairKeys, peers: SoughtPeers, relays: RelayTalk, outside: Outside, published: Published
    ) -> None:
        self._keys, self._peers, self._relays = pair_keys, peers, relays
        self._outside, self._published, self._pings = outside, published, Pings()
        self._pending: dict[bytes, _Pending] = {}

    def ask(self, key: str) -> threading.Event:
        """Have the path in use to a peer probed by the next `send`; the event is set with the answer. From any
        thread."""
        return self._pings.ask(key)

    # --- what arrives ------------------------------------------------------------------------------------------------

    def receive(self, sock: PortSocket) -> bool:
        """Take in what has arrived; returns whether this node may be seen from elsewhere than before."""
        count, is_news = 0, False
        for sender, message in sock.received():
            count += 1
            try:
                key = self._keys.peer_of(probe_message.sender_of(message))
            except ValueError:
                is_news = self._outside.take(message, time.monotonic()) or is_news
                continue
            if not key:
                continue
            try:
                probe = probe_message.decode(message, self._keys.by_peer[key])
            except ValueError:
                continue
            if probe.receiver == self._keys.own:
                is_news = self._take(sock, key, probe, sender) or is_news
        if count >= BATCH:
            time.sleep(REST)
        return is_news

    def _take(self, sock: PortSocket, key: str, probe: Probe, sender: Place) -> bool:
        """Take in an authenticated message of a peer; returns whether this node may be seen from elsewhere."""
        match probe.kind:
            case "ping":
                self._take_ping(sock, key, probe, sender)
            case "pong":
                return self._take_pong(key, probe, sender)
            case "call" if key in self._peers.paths:
                self._peers.paths[key].called(time.monotonic())
            case _:
                self._take_outcome(self._relays.take(sock, key, probe, sender), sender)
        return False

    def _take_ping(self, sock: PortSocket, key: str, probe: Probe, sender: Place) -> None:
        if self._peers.pinged(key, sender, time.monotonic()):
            pong = Probe("pong", probe.sender, self._keys.own, probe.transaction, sender)
            sock.send(sender, probe_message.encode(pong, self._keys.by_peer[key]))

    def _take_pong(self, key: str, probe: Probe, sender: Place) -> bool:
        """Only the answer to a probe that is under way counts: a repeated one moves nothing."""
        now = time.monotonic()
        pending = self._pending.get(probe.transaction)
        paths = self._peers.paths.get(key)
        if pending is None or pending.key != key or pending.to != sender or paths is None:
            return False
        del self._pending[probe.transaction]
        self._peers.answered(key, sender, now - pending.at, now)
        if self._pings.is_waited_for(key) and sender == paths.chosen:
            self._published.show_one(key)
            self._pings.answered(key)
        if probe.seen is None or paths.candidates[sender].kind in RELAYED:  # behind a relay, it sees the relay's port
            return False
        self._outside.note(sender, probe.seen, now)
        return True

    def _take_outcome(self, outcome: Outcome, sender: Place) -> None:
        """Use a relay's new port."""
        now = time.monotonic()
        if outcome.granted in self._peers.paths:
            self._peers.name(outcome.granted, now)
        if outcome.opened in self._peers.paths:
            self._peers.paths[outcome.opened].called_from(sender, now, "relay")

    # --- what is sent ------------------------------------------------------------------------------------------------

    def send(self, sock: PortSocket, now: float) -> None:
        """Send the probes and the requests to STUN servers that are due."""
        for transaction in [t for t, pending in self._pending.items() if now - pending.at > FORGET]:
            del self._pending[transaction]
        for server, request in self._outside.requests(now):
            sock.send(server, request)
        for key in self._pings.begin():
            if key in self._peers.paths:
                self._peers.paths[key].ask(now)
        for key in self._peers.probed(now):
            for send in self._peers.paths[key].advance(now):
                self._probe(sock, key, send, now)

    def _probe(self, sock: PortSocket, key: str, send: Send, now: float) -> None:
        self._relays.bind(sock, send.to)
        transaction = os.urandom(probe_message.TRANSACTION)
        kind: probe_message.Kind = "call" if send.is_call else "ping"
        probe = Probe(kind, self._relays.name_of(key), self._keys.own, transaction)
        sent = sock.send(send.to, probe_message.encode(probe, self._keys.by_peer[key]), send.hops)
        if sent and not send.is_call:
            self._pending[transaction] = _Pending(key, send.to, now)


def patterns(own: bytes) -> tuple[Pattern, ...]:
    """What is received at the port: probes for this node, whose name in probes is `own`, and answers of STUN
    servers."""
    receiver = tuple(
        (probe_message.RECEIVER_AT + at, int.from_bytes(own[at : at + 4], "big")) for at in range(0, len(own), 4)
    )
    return ((0, probe_message.MAGIC), *receiver), ((stun.COOKIE_AT, stun.MAGIC_COOKIE),)
