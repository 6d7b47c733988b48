"""Finds the paths to this node's peers: probes beside WireGuard, from WireGuard's port, in a thread of its own.

`model/peer_paths.py` decides what is sent and which path is used; the mesh sets the device's endpoint to it. The device
itself is never used for a try: a path is used only when a probe to it was just answered. Where probes cannot be sent,
or a peer answers none, the mesh calls the peer's endpoints in turn, as without NAT traversal.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from cni.addresses import Address, Network
from cni.daemon.events import Event, Events, KernelChanged, NodeFactsChanged, PeerChanged
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model.cluster_records import NatWord
from cni.daemon.model.nat_words import PathView, RelayView
from cni.daemon.model.wireguard import network_of
from cni.daemon.nat import pings
from cni.daemon.nat.outside import Outside
from cni.daemon.nat.pair_keys import PairKeys
from cni.daemon.nat.probing import Probing, patterns
from cni.daemon.nat.published import Published
from cni.daemon.nat.relay_talk import RelayTalk
from cni.daemon.nat.rules import NatRules
from cni.daemon.nat.sought_peers import SoughtPeers
from cni.daemon.nat.user_relays import UserRelays
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import State
from cni.host import underlay
from cni.host.monitor import is_of_the_host
from cni.host.relay_port import RelayPort
from cni.host.wg_port import PortSocket
from cni.host.wg_types import DeviceSeen
from cni.host.worker import IDLE, Crew, beat
from cni.overlay import wire

log = logging.getLogger(__name__)

LOOK = 30.0  # seconds between two looks at peers and own addresses, if nothing is known to have changed
READ = 300.0  # seconds for which own addresses are kept while the kernel tells of no change: to read them is costly
SETTLE = 0.2  # seconds from a change of the host's addresses or routes to the look: changes seldom come alone
COUNT, IDLE_COUNT = 1.0, 3.0  # seconds between two looks at the device's counter, while traffic passes or not


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
        peers: SoughtPeers,
        probing: Probing,
        published: Published,
        board: ProblemBoard,
        events: Events,
        crew: Crew,
    ) -> None:
        self._state, self._identity, self._mesh, self._rules = state, identity, mesh, rules
        self._outside, self._board, self._events = outside, board, events
        self._keys, self._relays, self._user_relays = pair_keys, relays, user_relays
        self._peers, self._probing, self._published = peers, probing, published
        self._sock: PortSocket | None = None
        self._opened: tuple[int, int, bytes] | None = None  # port, mark, own name
        self._own: tuple[Address, ...] = ()
        self._read_at = float("-inf")  # when own addresses were read
        self._read_for: tuple[Network, ...] = ()  # beside which ranges they were
        self._ranges: tuple[Network, ...] = ()
        self._applied: tuple[Mapping[str, str], frozenset[str]] = ({}, frozenset())
        self._next_look = self._next_count = self._due = 0.0
        self._kernel_look = float("inf")  # when to look because of a change of the host's
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

    def on_kernel_changed(self, change: KernelChanged) -> None:
        """Look at this node's addresses soon: they may be others, or lead elsewhere."""
        if self._runs and is_of_the_host(change.link) and self._kernel_look == float("inf"):
            self._kernel_look = time.monotonic() + SETTLE
            os.eventfd_write(self._wake, 1)

    def is_on(self) -> bool:
        """Whether paths are searched for by the configuration, also while the search has not begun or cannot."""
        return self._rules().enabled

    def word(self) -> NatWord | None:
        """What this node publishes; None while NAT traversal is off, or no probe can be sent."""
        return self._published.word

    def views(self) -> Mapping[str, PathView]:
        """The path to each peer, by public key."""
        return self._published.views

    def port_mapping(self) -> str:
        """What is known of the router's mapping of WireGuard's port, for people."""
        return self._outside.mapping

    def relay_obstacles(self) -> list[str]:
        """Why this node, which should relay for others, is not offered as a relay, as sentences."""
        return self._relays.obstacles

    def relays(self) -> list[RelayView]:
        """The relays that this node may use."""
        return self._published.relays()

    def ping(self, key: str) -> PathView | None:
        """Probe the path in use to a peer, and wait `pings.PATIENCE` for the answer; the path, whose `seconds` are
        None without an answer. None for a peer that is not probed."""
        if key not in self._published.views:
            return None
        answered = self._probing.ask(key)
        os.eventfd_write(self._wake, 1)
        is_answered = answered.wait(pings.PATIENCE)
        view = self._published.views.get(key)
        return view if view is None or is_answered else replace(view, seconds=None)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended.is_set():
            beat(IDLE)
            is_called = self._wait()
            now = time.monotonic()
            if self._changed.is_set() or now >= min(self._next_look, self._kernel_look):
                self._changed.clear()
                if now >= self._kernel_look:
                    self._kernel_look, self._read_at = float("inf"), float("-inf")
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
        if self._probing.receive(sock):
            self._publish()
        now = time.monotonic()
        self._relays.serve(now)
        for key in self._peers.ask_relays_for(now):
            self._relays.ask(sock, key, self._peers.chosen, now)
        self._forward(now)
        self._probing.send(sock, now)
        self._apply(now)
        # Computed only when the thread has worked: an idle node looks only at the device's counter.
        self._due = min(self._outside.due(), self._user_relays.due(), self._peers.due(now))

    def _wait(self) -> bool:
        """Wait until something is due; returns whether something has arrived, or another thread has called."""
        now = time.monotonic()
        sockets: list[socket.socket | RelayPort | int] = [self._wake, *self._relays.ports()]
        if self._sock is not None:
            sockets += [*self._sock.sockets(), *self._user_relays.sockets(), *self._outside.sockets()]
        due = min(self._next_look, self._kernel_look)
        due = due if self._sock is None else min(due, self._due, self._next_count)
        readable, _, _ = select.select(sockets, [], [], min(max(due - now, 0.0), IDLE))
        if self._wake in readable:
            os.eventfd_read(self._wake)
        return bool(readable)

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
        is_new, own = self._read_own(now), self._own
        if is_new:
            self._peers.begin(now)
            self._events.publish(NodeFactsChanged())
        self._outside.configure(rules, own, device.port, is_new, now)
        self._next_look = min(self._next_look, max(now + COUNT, self._outside.next_round(rules)))
        self._relays.configure(rules, targets, own, now)
        self._user_relays.configure(rules, own, self._ranges, device.port, device.mark)
        self._peers.update(targets, own, self._ranges, rules.most_candidates, now)
        self._publish()

    def _read_own(self, now: float) -> bool:
        """Read this node's own addresses if they may be others; returns whether they are. Raises OSError."""
        if now < self._read_at + READ and self._read_for == self._ranges:
            return False
        before, self._own = self._own, tuple(underlay.addresses(self._state.cidrs))
        self._read_at, self._read_for = now, self._ranges
        return before != self._own

    def _open(self, port: int, mark: int) -> None:
        wanted = (port, mark, self._keys.own)
        if self._opened == wanted:
            return
        self._close()
        self._sock, self._opened = PortSocket(port, patterns(self._keys.own), mark), wanted
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
        self._sock, self._opened, self._own, self._read_at = None, None, (), float("-inf")
        self._published.withdraw()
        self._peers.clear()
        self._mesh.set_proven({}, frozenset())
        self._applied = ({}, frozenset())
        self._events.publish(NodeFactsChanged())

    # --- what follows ------------------------------------------------------------------------------------------------

    def _forward(self, now: float) -> None:
        """Have relays in user space lead to the peers that have no better path."""
        wanted, targets = self._peers.forward_to(now), self._peers.targets
        reached = {*wanted, *self._user_relays.reached()} & targets.keys()
        called = {key: self._mesh.called_at(targets[key]) for key in reached}
        changed = self._user_relays.reach(wanted, targets, called, now)
        if changed is not None:
            self._publish()
            for key in changed:
                self._peers.name(key, now)
        if self._outside.ask_router(now):
            self._publish()

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
        if self._peers.note_traffic(device, now):
            self._outside.ask_anew(self._rules(), now)

    def _apply(self, now: float) -> None:
        """Have the mesh call the peers where they answer."""
        proven, held = self._peers.proven(), self._peers.held(now)
        if (proven, held) == self._applied:
            return
        before = self._applied[0]
        if before.keys() - proven.keys():
            # A path is lost: this node may have moved, or its router has another address since the last round.
            self._outside.ask_anew(self._rules(), now)
            self._read_at = float("-inf")
            self._changed.set()
        for key, endpoint in proven.items():
            if endpoint != before.get(key):
                log.info("the peer %s is reached at %s", self._peers.targets[key].name or key, endpoint)
                self._events.publish(PeerChanged(wire.NatEndpointChanged(key, endpoint)))
        self._applied = (proven, held)
        self._mesh.set_proven(proven, held)
        self._published.show()

    def _publish(self) -> None:
        """Tell the cluster if this node is seen from elsewhere than before."""
        assert self._opened is not None
        self._published.update(self._own, self._opened[0], self._ranges)
