"""The WireGuard devices of a node: each is brought into its wanted state, and the state last applied is kept.

A change therefore costs only the difference to the state last applied. A thorough pass compares with the device itself
and changes only what differs.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import msgspec

from cni.daemon.events import Events, PeerChanged
from cni.daemon.mesh.handshakes import SET_BACK, Handshakes
from cni.daemon.mesh.paths import PathPlanner, Routes
from cni.daemon.mesh.peer_events import PeerEvents
from cni.daemon.mesh.silence import Silence
from cni.daemon.model import wireguard
from cni.daemon.model.wireguard import Address, Network, Peer, Target
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.state import boot_clock
from cni.daemon.state.tables import DeviceRecord, Tables
from cni.host.links import GONE
from cni.host.tunnels import KERNEL, Device, Tunnels
from cni.host.wg_types import DeviceSeen, PeerChange
from cni.host.worker import beat

log = logging.getLogger(__name__)

SHOWN = 5  # endpoints or CIDRs that a problem names
SILENCES = 3  # consecutive passes in which an engine does not answer before it is replaced


@dataclass
class Applied:
    """The state last applied to a device."""

    device: Device
    peers: dict[str, Peer]
    routes: Routes


class Devices:
    """The devices of one node. For one thread at a time, except `is_there`, `read` and `ages`."""

    def __init__(
        self,
        registry: Tables,
        tunnels: Tunnels,
        planner: PathPlanner,
        board: ProblemBoard,
        events: Events,
    ) -> None:
        self._registry, self._tunnels, self._planner, self._events = registry, tunnels, planner, events
        self._applied: dict[str, Applied] = {}
        self._readings: dict[str, DeviceSeen] = {}
        self._silence = Silence()
        self._silences: dict[str, int] = {}
        self._faults: dict[str, tuple[str, ...]] = {}  # by device: what could not be repaired in the last pass
        self._learned: dict[str, dict[str, str]] = {}  # by device and key: see `DeviceRecord`
        self._handshakes = Handshakes()
        self._peer_events = PeerEvents()
        self._board = board

    def start(self) -> None:
        """Load the clock difference that an earlier daemon of this boot has recorded."""
        for record in self._registry.devices.all().values():
            if record.ahead:
                self._handshakes.remember(record.ahead)

    def sizes(self, name: str) -> dict[str, int]:
        """The sizes that an earlier daemon of this boot has measured for the device's peers."""
        record = self._registry.devices.get(name)
        return record.sizes if record is not None else {}

    def last_reading(self, name: str) -> DeviceSeen | None:
        """The device as read in the last thorough pass; None if it was not."""
        return self._readings.get(name)

    def silent(self, name: str) -> Mapping[str, Target]:
        """The peers of a device that do not answer, by public key."""
        return self._silence.of(name)

    def is_there(self, name: str) -> bool:
        """Whether the device was set up and still exists."""
        return name in self._applied and bool(self._tunnels.link_index(name))

    def read(self, name: str) -> DeviceSeen | None:
        """The present state of the device; None if it does not exist or cannot be read."""
        if name not in self._applied:
            return None
        try:
            return self._tunnels.read(name)
        except OSError as error:
            log.warning("cannot read the WireGuard device %s: %s", name, error)
            return None

    def ages(self, device: DeviceSeen) -> dict[str, float]:
        """Seconds since the last handshake of each peer of a device, by the boot clock; infinite for none."""
        return self._handshakes.note(device.name, device.peers, time.time(), boot_clock())

    def failed(self, name: str, text: str) -> None:
        """Note that the device could not be set up, with the reason `text`."""
        self._board.note("wireguard-device", name, text)
        self._applied.pop(name, None)

    def remove(self, name: str) -> None:
        """Remove the device. A failure is noted as a problem."""
        try:
            self._tunnels.remove(name)
        except OSError as error:
            self._board.note("wireguard-device", name, f"the WireGuard device {name} cannot be removed: {error}")
            return
        self._applied.pop(name, None)
        self._readings.pop(name, None)
        self._board.clear("wireguard-device", name)
        self._silence.forget(name)
        for code in ("route-conflict", "endpoint-refused", "route-circular", "peer-silent"):
            self._board.clear(code, name)
        self._peer_events.forget(name)
        self._learned.pop(name, None)
        self._registry.devices.drop(name)

    def ensure(
        self,
        device: Device,
        targets: Mapping[str, Target],
        sources: Mapping[int, Address],
        thoroughly: bool,
        complete: bool,
    ) -> None:
        """Bring the device, its peers and the routes to the CIDRs behind them into the wanted state.

        `sources`: the node's address of each family; `thoroughly`: compare with the device itself; `complete`:
        `targets` has every peer; otherwise no peer is removed. Raises NoEngine, OSError.
        """
        name = device.name
        applied = self._applied.get(name)
        if applied is None or applied.device != device or thoroughly:
            applied = None
            peers = self._compare(device, targets, complete)
        else:
            peers = self._planner.peers(name, targets)
            self._change(name, wireguard.delta(applied.peers, peers))
        routes = self._planner.routes(name, targets, peers, device.mtu, sources)
        if applied is None:
            refused = self._tunnels.ensure_routes(name, routes)
        else:
            removed = [route for dst, route in applied.routes.items() if routes.get(dst) != route]
            added = [route for dst, route in routes.items() if applied.routes.get(dst) != route]
            refused = self._tunnels.change_routes(name, removed, added)
        self._note_refused(name, refused)
        self._note_paths(name, targets, peers)
        if applied is None:
            self._note_silence(name, peers)
        done = {dst: route for dst, route in routes.items() if dst not in refused} if refused else routes
        self._applied[name] = Applied(device, peers, done)
        faults = "; ".join((*self._faults.get(name, ()), *_failed_routes(refused)))
        text = f"the WireGuard device {name} is not as it should be: {faults}" if faults else ""
        self._board.set("wireguard-device", name, text)
        endpoints = {key: peer.endpoint for key, peer in peers.items() if peer.endpoint}
        before, ahead = self._registry.devices.get(name) or DeviceRecord({}), time.time() - boot_clock()
        record = DeviceRecord(
            endpoints,
            ahead,
            self._planner.sizes(targets),
            self._learned.get(name, before.learned),
            self._planner.firsts(name),
            self._planner.proven(name),
        )
        if msgspec.structs.replace(record, ahead=before.ahead) != before or abs(before.ahead - ahead) > SET_BACK:
            self._registry.devices.put(name, record)

    def call_now(self, name: str, keys: Collection[str]) -> None:
        """Have those of the peers call that have no session and were just given an endpoint. A peer is removed and
        added for it: WireGuard repeats a handshake that had nowhere to go only after 5 s (REKEY_TIMEOUT)."""
        applied, device = self._applied.get(name), self.read(name)
        if applied is None or device is None:
            return
        ages = self.ages(device)
        idle = [key for key in keys if key in applied.peers and ages.get(key, math.inf) >= wireguard.DEAD]
        changes = wireguard.renewed(device.peers, applied.peers, {}, ages, learned={}, forgotten=idle)
        renewed = [change for change in changes if change.public_key in idle]
        self._change(name, [replace(c, endpoint=applied.peers[c.public_key].endpoint) for c in renewed])

    def _compare(self, device: Device, targets: Mapping[str, Target], complete: bool) -> dict[str, Peer]:
        """Read the device, and change what differs from the wanted state; returns the wanted peers."""
        name = device.name
        record = self._registry.devices.get(name) or DeviceRecord({})
        if self._registry.devices.get(name) is None:
            # Recorded before the device exists, so that a daemon that starts later removes it.
            self._registry.devices.put(name, record)
        seen = self._ensure_answering(device)
        self._readings[name] = seen
        self._planner.note_engine(seen.engine == KERNEL)
        if name not in self._applied:
            log.info("WireGuard device %s (%s), port %d", name, seen.engine, seen.port)
        ages, forgotten = self.ages(seen), self._handshakes.refused(name, boot_clock())
        self._silence.note(name, targets, seen.peers, ages, boot_clock())
        self._planner.restore(name, record.firsts, record.endpoints, record.proven)
        alive_at = {key: peer.endpoint for key, peer in seen.peers.items() if ages[key] < wireguard.DEAD}
        peers = self._planner.peers(name, targets, alive_at)
        if forgotten:
            log.warning("the clock was set back: adding the peers %s of %s again", ", ".join(forgotten), name)
        changes = wireguard.renewed(
            seen.peers, peers, record.endpoints, ages, learned=record.learned, forgotten=forgotten
        )
        if complete:
            learned = wireguard.learned_endpoints(seen.peers, peers, ages, record.learned)
            self._learned[name] = learned
        if not complete:
            changes = [change for change in changes if not change.remove or change.public_key in forgotten]
        for message in self._peer_events.update(name, seen.peers, ages):
            self._events.publish(PeerChanged(message))
        self._change(name, changes)
        return peers

    def _ensure_answering(self, device: Device) -> DeviceSeen:
        """Set the device up and return its state. An engine that hangs forwards no packet and does not exit, so it is
        replaced after `SILENCES` passes without an answer. Raises TimeoutError before that, NoEngine, OSError."""
        name = device.name
        try:
            seen = self._tunnels.ensure(device)
        except TimeoutError:
            self._silences[name] = self._silences.get(name, 0) + 1
            if self._silences[name] < SILENCES:
                raise
            log.error("the engine of %s has not answered in %d passes: replacing it", name, SILENCES)
            self._tunnels.kill_engine(name)
            seen = self._tunnels.ensure(device)
        self._silences.pop(name, None)
        self._faults[name] = seen.faults
        return seen

    def _change(self, name: str, changes: list[PeerChange]) -> None:
        """Apply all changes in one request. If the device refuses it, apply them one by one, and note those that it
        refuses as problems."""
        refused, done = set(), set()
        try:
            self._tunnels.change(name, changes)
        except OSError as error:
            if isinstance(error, TimeoutError | ConnectionError | FileNotFoundError) or error.errno in GONE:
                raise
            for change in changes:
                beat()
                subject, what = f"{name} {change.public_key}", f"the device {name} refuses the peer {change.public_key}"
                with self._board.step("wireguard-device", subject, what):
                    self._tunnels.change(name, [change])
                    done.add(subject)
                refused.add(subject)
        for subject in self._board.subjects("wireguard-device"):
            if subject.startswith(f"{name} ") and subject not in refused - done:
                self._board.clear("wireguard-device", subject)
        self._peer_events.configured(name, changes)

    def _note_paths(self, name: str, targets: Mapping[str, Target], peers: Mapping[str, Peer]) -> None:
        refused, circles = self._planner.refused(name), self._planner.circles(name, targets, peers)
        endpoints = ", ".join(f"{endpoint} of {peer}" for endpoint, peer in sorted(refused.items())[:SHOWN])
        text = (
            f"peers of {name} are not called at {endpoints}{_and_rest(refused)}: no address of theirs on the underlay"
        )
        self._board.set("endpoint-refused", name, text if refused else "")
        text = (
            f"no route leads to {', '.join(circles[:SHOWN])}{_and_rest(circles)}: a peer of {name} is called in there"
        )
        self._board.set("route-circular", name, text if circles else "")

    def _note_silence(self, name: str, peers: Mapping[str, Peer]) -> None:
        silent = self._silence.of(name)
        last = {key: seen.last_handshake for key, seen in self._readings[name].peers.items()} if silent else {}
        texts = [
            f"{target.name or key} ({_called(peers.get(key))}{_heard(last.get(key, 0))})"
            for key, target in sorted(silent.items(), key=lambda item: (item[1].name, item[0]))
        ]
        text = f"peers of {name} do not answer: {', '.join(texts[:SHOWN])}{_and_rest(silent)}"
        self._board.set("peer-silent", name, text if silent else "")

    def _note_refused(self, name: str, refused: Mapping[Network, int]) -> None:
        taken = [str(dst) for dst, code in refused.items() if code == errno.EEXIST]
        text = f"this node has routes of its own for what is behind {name}: {', '.join(taken)}"
        self._board.set("route-conflict", name, text if taken else "")


def _called(peer: Peer | None) -> str:
    return f"called at {peer.endpoint}, " if peer is not None and peer.endpoint else "called nowhere, "


def _heard(last_handshake: int) -> str:
    """When a peer was last heard: `last_handshake` is in Unix seconds, 0 for never."""
    if not last_handshake:
        return "never heard"
    return f"last handshake {time.strftime('%Y-%m-%d %H:%M', time.gmtime(last_handshake))} UTC"


def _and_rest(items: Collection[object]) -> str:
    return f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""


def _failed_routes(refused: Mapping[Network, int]) -> list[str]:
    return [f"route to {dst}: {os.strerror(code)}" for dst, code in refused.items() if code != errno.EEXIST]
