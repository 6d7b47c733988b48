"""Finds the paths to this node's peers: probes beside WireGuard, from WireGuard's port, in a thread of its own.

`model/peer_paths.py` decides what is sent and which path is used; the mesh sets the device's endpoint to it. The device
itself is never used for a try: a path is used only when a probe to it was just answered. Where probes cannot be sent,
or a peer answers none, the mesh calls the peer's endpoints in turn, as without NAT traversal.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import msgspec

from cni.addresses import Address, Network
from cni.daemon.events import Event, Events, NodeFactsChanged, PeerChanged
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model import nat_candidates, probe_message, stun
from cni.daemon.model.cluster_records import NatWord
from cni.daemon.model.nat_words import PathView, RelayView
from cni.daemon.model.peer_paths import RELAYED, Kind, PeerPaths, Place, Send
from cni.daemon.model.probe_message import Probe
from cni.daemon.model.wireguard import Target, network_of
from cni.daemon.nat import pings
from cni.daemon.nat.outside import Outside
from cni.daemon.nat.pair_keys import PairKeys
from cni.daemon.nat.pings import Pings
from cni.daemon.nat.relay_talk import Outcome, RelayTalk
from cni.daemon.nat.rules import NatRules
from cni.daemon.nat.user_relays import UserRelays
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import State
from cni.host import underlay
from cni.host.relay_port import RelayPort
from cni.host.wg_port import BATCH, PortSocket
from cni.host.wg_types import DeviceSeen, join_endpoint, split_endpoint
from cni.host.worker import IDLE, Crew, beat
from cni.overlay import wire

log = logging.getLogger(__name__)

LOOK = 30.0  # seconds between two looks at peers and own addresses, if nothing is known to have changed
COUNT, IDLE_COUNT = 1.0, 3.0  # seconds between two looks at the device's counter, while traffic passes or not
HOLD = 15.0  # seconds for which a peer that answers probes is not called elsewhere, while no path is found
SEARCHING = 0.5  # seconds between two looks at a peer without a path: when a relay is asked, when it is called in turn
RELAY_AFTER = 1.0  # seconds without a direct path until a relay is asked
TRIES = 20.0  # seconds for which a peer is probed of which it is not known whether it answers probes
REST = 0.02  # seconds of rest after a full batch: a flood gets at most a twentieth of a processor
FORGET = 10.0  # seconds after which a probe's answer is no longer waited for


@dataclass(frozen=True, slots=True)
class _Pending:
    key: str
    to: Place
    at: float


class Traversal:
    """The paths of the global device's peers. All public methods may be called from any thread."""

    def __init__(
        self,
        *,
        state: State,
        identity: Identity,
        mesh: Mesh,
        rules: Callable[[], NatRules],
        outside: Outside,
        pair_keys: PairKeys,
        relays: RelayTalk,
        user_relays: UserRelays,
        board: ProblemBoard,
        events: Events,
        crew: Crew,
    ) -> None:
        self._state, self._identity, self._mesh, self._rules = state, identity, mesh, rules
        self._outside, self._board, self._events = outside, board, events
        self._keys, self._pings = pair_keys, Pings()
        self._relays, self._user_relays = relays, user_relays
        self._peers: dict[str, PeerPaths] = {}
        self._targets: dict[str, Target] = {}
        self._answers: set[str] = set()  # peers that have answered a probe
        self._pending: dict[bytes, _Pending] = {}
        self._sock: PortSocket | None = None
        self._opened: tuple[int, int, bytes] | None = None  # port, mark, own name
        self._own: tuple[Address, ...] = ()
        self._ranges: tuple[Network, ...] = ()
        self._word: NatWord | None = None
        self._views: Mapping[str, PathView] = {}
        self._applied: tuple[Mapping[str, str], frozenset[str]] = ({}, frozenset())
        self._next_look = self._next_count = self._due = 0.0
        self._sent = 0
        self._noted: DeviceSeen | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._changed = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._runs = False
        self._worker = crew.worker("nat", self._run)

    # --- from outside ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread if NAT traversal is on. Without it, no socket is opened and no thread runs."""
        with self._lock:
            if not self._runs and not self._ended.is_set() and self._rules().enabled:
                self._runs = True
                self._worker.start()

    def stop(self) -> None:
        """End the thread. The device keeps the endpoints that it has."""
        self._worker.retire()
        self._ended.set()
        self.wake()
        self._worker.join(2 * COUNT)

    def tear_down(self) -> None:
        """End the thread, and remove what relays for others, for `uninstall`."""
        self.stop()
        self._relays.remove()
        self._user_relays.remove()
        self._outside.remove()

    def wake(self) -> None:
        """Look at peers, rules and addresses again now. Never waits."""
        self._changed.set()
        os.eventfd_write(self._wake, 1)

    def on_change(self, _: Event) -> None:
        """Look again: peers or this node's addresses may have changed."""
        self.wake()

    def word(self) -> NatWord | None:
        """What this node publishes; None while NAT traversal is off, or no probe can be sent."""
        return self._word

    def views(self) -> Mapping[str, PathView]:
        """The path to each peer, by public key."""
        return self._views

    def port_mapping(self) -> str:
        """What is known of the router's mapping of WireGuard's port, for people."""
        return self._outside.mapping

    def relay_obstacles(self) -> list[str]:
        """Why this node, which should relay for others, is not offered as a relay, as sentences."""
        return self._relays.obstacles

    def relays(self) -> list[RelayView]:
        """The relays that this node may use."""
        views = [
            RelayView(seen.id, seen.relayed, seen.seconds if seen.relayed else None, seen.fault)
            for seen in self._user_relays.seen()
        ]
        for key, target in list(self._targets.items()):
            if target.nat is not None and target.nat.relay:
                view = self._views.get(key)
                fault = "" if view is not None and view.kind else "there is no path to this node"
                views.append(RelayView(target.name or key, "", view.seconds if view is not None else None, fault))
        return views

    def ping(self, key: str) -> PathView | None:
        """Probe the path in use to a peer, and wait `pings.PATIENCE` for the answer; the path, whose `seconds` are
        None without an answer. None for a peer that is not probed."""
        if key not in self._views:
            return None
        answered = self._pings.ask(key)
        os.eventfd_write(self._wake, 1)
        is_answered = answered.wait(pings.PATIENCE)
        view = self._views.get(key)
        return view if view is None or is_answered else replace(view, seconds=None)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended.is_set():
            beat(IDLE)
            is_called = self._wait()
            now = time.monotonic()
            if self._changed.is_set() or now >= self._next_look:
                self._changed.clear()
                self._next_look, self._due = now + LOOK, now
                with self._board.step("nat-unavailable", "", "paths through NATs cannot be looked for"):
                    self._look(now)
            if self._sock is None:
                continue
            self._count(now)
            if is_called or now >= self._due:
                self._work(self._sock)
        self._close_ports()
        self._user_relays.stop()

    def _work(self, sock: PortSocket) -> None:
        self._receive(sock)
        now = time.monotonic()
        self._relays.serve(now)
        self._ask_relays(sock, now)
        self._forward(now)
        self._send(sock, now)
        self._apply(now)
        self._due = self._next_due(now)

    def _wait(self) -> bool:
        """Wait until something is due; returns whether something has arrived, or another thread has called."""
        now = time.monotonic()
        sockets: list[socket.socket | RelayPort | int] = [self._wake, *self._relays.ports()]
        if self._sock is not None:
            sockets += [*self._sock.sockets(), *self._user_relays.sockets(), *self._outside.sockets()]
        due = self._next_look if self._sock is None else min(self._next_look, self._due, self._next_count)
        readable, _, _ = select.select(sockets, [], [], min(max(due - now, 0.0), IDLE))
        if self._wake in readable:
            os.eventfd_read(self._wake)
        return bool(readable)

    def _next_due(self, now: float) -> float:
        """When something is to be sent or decided next, unless something arrives. Computed once for each time that the
        thread has worked: an idle node looks only at the device's counter."""
        times = [self._outside.due(), self._user_relays.due()]
        for key, paths in self._peers.items():
            if self._is_probed(key, now):
                times.append(paths.due())
                if paths.chosen is None:
                    times.append(now + SEARCHING)
        return min(times)

    def _look(self, now: float) -> None:
        """Take in rules, own addresses and peers. Raises OSError if no probe can be sent."""
        rules, device = self._rules(), self._mesh.last_reading()
        if not rules.enabled or device is None or self._mesh.interface() is None:
            if self._sock is not None and not rules.enabled:
                self._user_relays.remove()
                self._outside.remove()
            self._close()
            if rules.enabled:
                self._next_look = now + COUNT
            return
        pair = self._identity.own()
        targets = {key: target for key, target in self._mesh.targets().items() if not target.owner}
        self._keys.update(pair.private_key, targets)
        self._open(device.port, device.mark)
        self._ranges = tuple(network_of(cidr) for cidr in self._state.cidrs)
        own = tuple(underlay.addresses(self._state.cidrs))
        is_new, self._own = own != self._own, own
        for paths in self._peers.values() if is_new else ():
            paths.begin(now)
        self._outside.configure(rules, own, device.port, is_new, now)
        self._next_look = min(self._next_look, max(now + COUNT, self._outside.next_round(rules)))
        self._targets = targets
        self._relays.configure(rules, targets, own, now)
        self._user_relays.configure(rules, own, self._ranges, device.port, device.mark)
        for gone in self._peers.keys() - targets.keys():
            del self._peers[gone]
        for key, target in targets.items():
            self._name(key, target, rules, now)
        self._publish()

    def _name(self, key: str, target: Target, rules: NatRules, now: float) -> None:
        outside = [_place(text) for text in target.nat.outside] if target.nat is not None else []
        called = self._mesh.called_at(target)
        named = [_place(text) for text in called]
        paths = self._peers.get(key)
        if paths is None:
            paths = self._peers[key] = PeerPaths(now, target.relay)
            if (heard := self._heard_at(key)) is not None:
                paths.called_from(heard, now)
        own = [place for place in named if place not in outside]
        places = nat_candidates.places_of(own, outside, self._own, self._ranges, rules.most_candidates)
        relayed: dict[Place, Kind] = dict.fromkeys(self._relays.places(key), "relay")
        paths.name({**places, **relayed, **dict.fromkeys(self._user_relays.places(target, called), "turn")}, now)

    def _heard_at(self, key: str) -> Place | None:
        """Where the device has heard a peer that is not searched for yet: an earlier daemon may have found that path,
        and a peer with a path sends no probes. A relay's port is none: the relay is asked for it again."""
        device = self._mesh.last_reading()
        seen = device.peers.get(key) if device is not None else None
        if seen is None or not seen.endpoint or not seen.last_handshake:
            return None
        place = _place(seen.endpoint)
        return None if self._relays.is_relay(place[0], key) or nat_candidates.refusal(place, self._ranges) else place

    def _open(self, port: int, mark: int) -> None:
        wanted = (port, mark, self._keys.own)
        if self._opened == wanted:
            return
        self._close()
        name = self._keys.own
        receiver = tuple(
            (probe_message.RECEIVER_AT + at, int.from_bytes(name[at : at + 4], "big")) for at in range(0, len(name), 4)
        )
        patterns = (((0, probe_message.MAGIC), *receiver), ((stun.COOKIE_AT, stun.MAGIC_COOKIE),))
        self._sock, self._opened = PortSocket(port, patterns, mark), wanted
        log.info("probing paths to peers from port %d", port)

    def _close_ports(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._relays.close()
            self._user_relays.close()
            self._outside.close()

    def _close(self) -> None:
        """End the search: the peers are called as without NAT traversal. The end of the daemon is none: the device
        keeps the paths in use."""
        if self._sock is None:
            return
        self._close_ports()
        self._sock, self._opened, self._word, self._views = None, None, None, {}
        self._peers, self._own = {}, ()
        self._mesh.set_proven({}, frozenset())
        self._applied = ({}, frozenset())
        self._events.publish(NodeFactsChanged())

    # --- datagrams ---------------------------------------------------------------------------------------------------

    def _receive(self, sock: PortSocket) -> None:
        count = 0
        for sender, message in sock.received():
            count += 1
            try:
                key = self._keys.peer_of(probe_message.sender_of(message))
            except ValueError:
                if self._outside.take(message, time.monotonic()):
                    self._publish()
                continue
            if not key:
                continue
            try:
                probe = probe_message.decode(message, self._keys.by_peer[key])
            except ValueError:
                continue
            if probe.receiver == self._keys.own:
                self._take(sock, key, probe, sender)
        if count >= BATCH:
            time.sleep(REST)

    def _take(self, sock: PortSocket, key: str, probe: Probe, sender: Place) -> None:
        """Take in an authenticated message of a peer."""
        match probe.kind:
            case "ping":
                self._take_ping(sock, key, probe, sender)
            case "pong":
                self._take_pong(key, probe, sender)
            case "call" if key in self._peers:
                self._peers[key].called(time.monotonic())
            case _:
                self._take_outcome(self._relays.take(sock, key, probe, sender), sender)

    def _take_outcome(self, outcome: Outcome, sender: Place) -> None:
        """Use a relay's new port."""
        now = time.monotonic()
        if outcome.granted in self._peers:
            self._name(outcome.granted, self._targets[outcome.granted], self._rules(), now)
        if outcome.opened in self._peers:
            self._peers[outcome.opened].called_from(sender, now, "relay")

    def _ask_relays(self, sock: PortSocket, now: float) -> None:
        """Ask relays for ports towards the peers that have no direct path."""
        for key, paths in self._peers.items():
            is_late = paths.searched_for(now) >= (0.0 if self._targets[key].relay == "only" else RELAY_AFTER)
            searches = paths.chosen is None and is_late and self._is_probed(key, now)
            if paths.may_use("relay") and (searches or paths.kind == "relay"):
                self._relays.ask(sock, key, lambda relay: self._peers[relay].chosen, now)

    def _forward(self, now: float) -> None:
        """Have relays in user space lead to the peers that have no better path."""
        wanted = [
            key
            for key, paths in self._peers.items()
            if paths.may_use("turn")
            and (paths.kind == "turn" or (paths.chosen is None and paths.searched_for(now) >= RELAY_AFTER))
        ]
        reached = {*wanted, *self._user_relays.reached()} & self._targets.keys()
        called = {key: self._mesh.called_at(self._targets[key]) for key in reached}
        changed = self._user_relays.reach(wanted, self._targets, called, now)
        if changed is not None:
            self._publish()
            for key in changed:
                self._name(key, self._targets[key], self._rules(), now)
        if self._outside.ask_router(now):
            self._publish()

    def _kind_of(self, key: str, place: Place) -> Kind:
        """What a place is from which a peer has sent."""
        if self._relays.relay_at(place):
            return "relay"
        return "turn" if self._user_relays.is_beyond(place, self._targets[key]) else "outside"

    def _take_ping(self, sock: PortSocket, key: str, probe: Probe, sender: Place) -> None:
        """Answer, unless the peer may not use that path: an answer would make it one."""
        paths = self._peers.get(key)
        kind: Kind = self._kind_of(key, sender) if key in self._targets else "outside"
        if paths is not None and not paths.may_use(kind):
            return
        pong = Probe("pong", probe.sender, self._keys.own, probe.transaction, sender)
        sock.send(sender, probe_message.encode(pong, self._keys.by_peer[key]))
        self._answers.add(key)
        if paths is not None and (kind == "turn" or not nat_candidates.refusal(sender, self._ranges)):
            paths.called_from(sender, time.monotonic(), kind)

    def _take_pong(self, key: str, probe: Probe, sender: Place) -> None:
        """Only the answer to a probe that is under way counts: a repeated one moves nothing."""
        now = time.monotonic()
        pending = self._pending.get(probe.transaction)
        paths = self._peers.get(key)
        if pending is None or pending.key != key or pending.to != sender or paths is None:
            return
        del self._pending[probe.transaction]
        self._answers.add(key)
        paths.answered(sender, now - pending.at, now)
        if self._pings.is_waited_for(key) and sender == paths.chosen:
            self._views = {**self._views, key: self._view(key, paths)}
            self._pings.answered(key)
        if probe.seen is not None and paths.candidates[sender].kind not in RELAYED:  # it sees the relay's port
            self._outside.note(sender, probe.seen, now)
            self._publish()

    def _send(self, sock: PortSocket, now: float) -> None:
        for transaction in [t for t, pending in self._pending.items() if now - pending.at > FORGET]:
            del self._pending[transaction]
        for server, request in self._outside.requests(now):
            sock.send(server, request)
        for key in self._pings.begin():
            if key in self._peers:
                self._peers[key].ask(now)
        for key, paths in self._peers.items():
            if not self._is_probed(key, now):
                continue
            for send in paths.advance(now):
                self._probe(sock, key, send, now)

    def _probe(self, sock: PortSocket, key: str, send: Send, now: float) -> None:
        self._relays.bind(sock, send.to)
        transaction = os.urandom(probe_message.TRANSACTION)
        kind: probe_message.Kind = "call" if send.is_call else "ping"
        probe = Probe(kind, self._relays.name_of(key), self._keys.own, transaction)
        sent = sock.send(send.to, probe_message.encode(probe, self._keys.by_peer[key]), send.hops)
        if sent and not send.is_call:
            self._pending[transaction] = _Pending(key, send.to, now)

    def _is_probed(self, key: str, now: float) -> bool:
        """Whether probes are sent to a peer."""
        speaks = self._speaks(key, self._targets[key]) or self._peers[key].searched_for(now) < TRIES
        return speaks and key in self._keys.by_peer

    def _speaks(self, key: str, target: Target) -> bool:
        """Whether a peer is known to answer probes."""
        return target.nat is not None or key in self._answers

    # --- what follows ------------------------------------------------------------------------------------------------

    def _count(self, now: float) -> None:
        """Look which peers answer what is sent to them: the device is read only while traffic passes, else its state in
        the mesh's last pass counts."""
        if now < self._next_count:
            return
        sent = self._mesh.sent()
        self._next_count = now + (COUNT if sent != self._sent else IDLE_COUNT)
        device = self._mesh.device() if sent != self._sent else self._mesh.last_reading()
        self._sent = sent
        if device is None or device is self._noted:
            return
        self._noted, self._due = device, now
        for key, seen in device.peers.items():
            if key in self._peers:
                self._peers[key].note_traffic(seen.sent, seen.received, now)

    def _apply(self, now: float) -> None:
        """Have the mesh call the peers where they answer."""
        proven = {key: join_endpoint(*paths.chosen) for key, paths in self._peers.items() if paths.chosen is not None}
        held = frozenset(
            key
            for key, paths in self._peers.items()
            if self._speaks(key, self._targets[key]) and paths.chosen is None and paths.searched_for(now) < HOLD
        )
        if (proven, held) == self._applied:
            return
        before = self._applied[0]
        if before.keys() - proven.keys():
            self._changed.set()  # a path is lost: this node may have moved
        for key, endpoint in proven.items():
            if endpoint != before.get(key):
                log.info("the peer %s is reached at %s", self._targets[key].name or key, endpoint)
                self._events.publish(PeerChanged(wire.NatEndpointChanged(key, endpoint)))
        self._applied = (proven, held)
        self._mesh.set_proven(proven, held)
        self._show()

    def _publish(self) -> None:
        """Tell the cluster if this node is seen from elsewhere than before."""
        assert self._opened is not None
        word = self._outside.word(self._own, self._opened[0], self._ranges)
        word = msgspec.structs.replace(word, relay=self._relays.address, relayed=self._user_relays.published())
        if word != self._word:
            log.info(
                "this node is seen from %s; mapping: %s", ", ".join(word.outside) or "no other place", word.mapping
            )
            self._word = word
            self._events.publish(NodeFactsChanged())

    def _show(self) -> None:
        self._views = {key: self._view(key, paths) for key, paths in self._peers.items()}

    def _view(self, key: str, paths: PeerPaths) -> PathView:
        chosen, nat = paths.chosen, self._targets[key].nat
        return PathView(
            kind=paths.kind or "",
            endpoint=join_endpoint(*chosen) if chosen is not None else "",
            seconds=paths.candidates[chosen].seconds if chosen is not None else None,
            tried=tuple(join_endpoint(*place) for place, seen in paths.candidates.items() if seen.kind not in RELAYED),
            own=self._word.mapping if self._word is not None else "",
            theirs=nat.mapping if nat is not None else "",
            relay=self._relay_name(chosen) if chosen is not None else "",
            use=self._targets[key].relay,
        )

    def _relay_name(self, place: Place) -> str:
        """Who relays at a place, for people."""
        relay = self._relays.relay_at(place)
        return self._targets[relay].name if relay in self._targets else self._user_relays.name_at(place)


def _place(endpoint: str) -> Place:
    address, port = split_endpoint(endpoint)
    return ipaddress.ip_address(str(address)), port
