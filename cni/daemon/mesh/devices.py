"""The WireGuard devices of a node: each is made what it should be, and what it was last given is kept.

So a change costs what it changes, and a look compares with the device itself: what is right is not touched.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from cni.daemon.mesh.handshakes import SET_BACK, Handshakes
from cni.daemon.mesh.paths import PathPlanner, Routes
from cni.daemon.mesh.peer_events import PeerEvents
from cni.daemon.model import wireguard
from cni.daemon.model.wireguard import Address, Network, Peer, Target
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.state import boot_clock
from cni.daemon.state.tables import DeviceRecord, Tables
from cni.host.links import GONE
from cni.host.tunnels import Device, Tunnels
from cni.host.wg_types import DeviceSeen, PeerChange
from cni.host.worker import beat
from cni.overlay import wire

log = logging.getLogger(__name__)

SHOWN = 5  # endpoints or CIDRs that a problem names
SILENCES = 3  # looks, one after the other, at which an engine does not answer before another is started


@dataclass
class Applied:
    """What a device was last given, so that a change costs what it changes."""

    device: Device
    peers: dict[str, Peer]
    routes: Routes


class Devices:
    """Of one node. One thread at a time, but for `is_there`, `read` and `ages`."""

    def __init__(
        self,
        registry: Tables,
        tunnels: Tunnels,
        ways: PathPlanner,
        tell: Callable[[wire.AnyEvent], None],
        board: ProblemBoard,
    ) -> None:
        """`tell`: what becomes of peers is told there; it never waits."""
        self._registry, self._tunnels, self._ways, self._tell = registry, tunnels, ways, tell
        self._applied: dict[str, Applied] = {}
        self._silences: dict[str, int] = {}
        self._faults: dict[str, tuple[str, ...]] = {}  # what of a device could not be made right at the last look
        self._handshakes = Handshakes()
        self._news = PeerEvents()
        self._board = board

    def start(self) -> None:
        """What an earlier daemon of this boot has seen of the clocks is remembered."""
        for known in self._registry.devices.all().values():
            if known.ahead:
                self._handshakes.remember(known.ahead)

    def is_there(self, name: str) -> bool:
        """Whether the device was made so, and is there still."""
        return name in self._applied and bool(self._tunnels.link_index(name))

    def read(self, name: str) -> DeviceSeen | None:
        """The device as it is now; None if there is none."""
        if name not in self._applied:
            return None
        try:
            return self._tunnels.read(name)
        except OSError as error:
            log.warning("cannot read the WireGuard device %s: %s", name, error)
            return None

    def ages(self, device: DeviceSeen) -> dict[str, float]:
        """How many seconds ago each peer of a device was heard of, by the boot clock; infinite for never."""
        return self._handshakes.note(device.name, device.peers, time.time(), boot_clock())

    def failed(self, name: str, words: str) -> None:
        """The device could not be made so."""
        self._board.note("wireguard-device", name, words)
        self._applied.pop(name, None)

    def remove(self, name: str) -> None:
        """No such device. What keeps it there is a problem."""
        try:
            self._tunnels.remove(name)
        except OSError as error:
            self._board.note("wireguard-device", name, f"the WireGuard device {name} cannot be removed: {error}")
            return
        self._applied.pop(name, None)
        self._board.clear("wireguard-device", name)
        for code in ("route-conflict", "endpoint-refused", "route-circular"):
            self._board.clear(code, name)
        self._news.forget(name)
        self._registry.devices.drop(name)

    def ensure(
        self,
        device: Device,
        targets: Mapping[str, Target],
        sources: Mapping[int, Address],
        thoroughly: bool,
        complete: bool,
    ) -> None:
        """The device is so, with these peers and routes to what is behind them.

        `sources`: the node's address of each family; `thoroughly`: compare with the device itself; `complete`: nobody
        is missing in `targets`, else nobody is taken away. Raises NoEngine, OSError.
        """
        name = device.name
        applied = self._applied.get(name)
        peers = self._ways.peers(name, targets)
        if applied is None or applied.device != device or thoroughly:
            applied = None
            self._compare(device, peers, complete)
        else:
            self._change(name, wireguard.delta(applied.peers, peers))
        routes = self._ways.routes(name, targets, peers, device.mtu, sources)
        if applied is None:
            refused = self._tunnels.ensure_routes(name, routes)
        else:
            gone = [route for dst, route in applied.routes.items() if routes.get(dst) != route]
            fresh = [route for dst, route in routes.items() if applied.routes.get(dst) != route]
            refused = self._tunnels.change_routes(name, gone, fresh)
        self._note_refused(name, refused)
        self._note_ways(name, targets, peers)
        done = {dst: route for dst, route in routes.items() if dst not in refused} if refused else routes
        self._applied[name] = Applied(device, peers, done)
        faults = "; ".join((*self._faults.get(name, ()), *_failed_routes(refused)))
        said = f"the WireGuard device {name} is not as it should be: {faults}" if faults else ""
        self._board.set("wireguard-device", name, said)
        endpoints = {key: peer.endpoint for key, peer in peers.items() if peer.endpoint}
        noted, ahead = self._registry.devices.get(name) or DeviceRecord({}), time.time() - boot_clock()
        if noted.endpoints != endpoints or abs(noted.ahead - ahead) > SET_BACK:
            self._registry.devices.put(name, DeviceRecord(endpoints, ahead))

    def _compare(self, device: Device, peers: Mapping[str, Peer], complete: bool) -> None:
        """Look at the device, and change what is not as it should be."""
        name = device.name
        known = self._registry.devices.get(name) or DeviceRecord({})
        if self._registry.devices.get(name) is None:
            self._registry.devices.put(name, known)  # before there is one: it is ours to remove
        seen = self._answering(device)
        if name not in self._applied:
            log.info("WireGuard device %s (%s), port %d", name, seen.engine, seen.port)
        ages, forgotten = self.ages(seen), self._handshakes.refused(name, boot_clock())
        if forgotten:
            log.warning("the clock was set back: forgetting the handshakes of %s on %s", ", ".join(forgotten), name)
        changes = wireguard.renewed(seen.peers, peers, known.endpoints, ages, forgotten)
        if not complete:
            changes = [change for change in changes if not change.remove or change.public_key in forgotten]
        for event in self._news.update(name, seen.peers, ages):
            self._tell(event)
        self._change(name, changes)

    def _answering(self, device: Device) -> DeviceSeen:
        """The device, made so. An engine that hangs carries nothing, and never ends by itself: another takes its place.
        Raises TimeoutError as long as it is given time, NoEngine, OSError."""
        name = device.name
        try:
            seen = self._tunnels.ensure(device)
        except TimeoutError:
            self._silences[name] = self._silences.get(name, 0) + 1
            if self._silences[name] < SILENCES:
                raise
            log.error("the engine of %s has not answered for %d looks: starting another", name, SILENCES)
            self._tunnels.kill_engine(name)
            seen = self._tunnels.ensure(device)
        self._silences.pop(name, None)
        self._faults[name] = seen.faults
        return seen

    def _change(self, name: str, changes: list[PeerChange]) -> None:
        """All changes at once; where the device refuses them so, one by one, and what it refuses of these is told."""
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
        self._news.configured(name, changes)

    def _note_ways(self, name: str, targets: Mapping[str, Target], peers: Mapping[str, Peer]) -> None:
        refused, circles = self._ways.refused(name), self._ways.circles(name, targets, peers)
        which = ", ".join(f"{endpoint} of {peer}" for endpoint, peer in sorted(refused.items())[:SHOWN])
        said = f"peers of {name} are not called at {which}{_and_more(refused)}: no address of theirs on the underlay"
        self._board.set("endpoint-refused", name, said if refused else "")
        said = (
            f"no route leads to {', '.join(circles[:SHOWN])}{_and_more(circles)}: a peer of {name} is called in there"
        )
        self._board.set("route-circular", name, said if circles else "")

    def _note_refused(self, name: str, refused: Mapping[Network, int]) -> None:
        taken = [str(dst) for dst, code in refused.items() if code == errno.EEXIST]
        said = f"this node has routes of its own for what is behind {name}: {', '.join(taken)}"
        self._board.set("route-conflict", name, said if taken else "")


def _and_more(what: Collection[object]) -> str:
    return f" and {len(what) - SHOWN} more" if len(what) > SHOWN else ""


def _failed_routes(refused: Mapping[Network, int]) -> list[str]:
    return [f"route to {dst}: {os.strerror(code)}" for dst, code in refused.items() if code != errno.EEXIST]
