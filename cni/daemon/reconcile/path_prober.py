"""Measures the paths to the peers of the global device: echo requests through the tunnel, in a thread of its own.

`model/path_search.py` decides what is sent, and `probed_path.py` when. A path is checked when its peer is first heard,
when the kernel was told of another MTU of the path, when the peer's endpoint changes, and every few seconds while
traffic passes to the peer; a pair without traffic costs nothing. WireGuard authenticates the answers, so no other
machine can change a measurement. A peer that answers no echo is not measured: the kernel's knowledge of the path counts
for it, within bounds (`wireguard.believed`).
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Mapping

from cni.daemon.events import Events, PathsMeasured
from cni.daemon.mesh.measured import MeasuredPaths, Measurements, ProbedPeer
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model.wireguard import Address
from cni.daemon.reconcile.probed_path import ACTIVE, SILENT, ProbedPath, Sizes
from cni.host import echo
from cni.host.tunnels import Tunnels
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

TICK = 1.0  # seconds between two looks at the device's counter
READ = (2.0, 20)  # the device is read at most every 2 s, and for at most one 20th of the time
MOST_BEGUN = 50  # checks that begin in one tick
WIREGUARD = 32  # bytes that WireGuard counts for a packet besides the packet


class PathProber:
    """The prober of the global device. `note` and `stop` may be called from any thread."""

    def __init__(self, mesh: Mesh, tunnels: Tunnels, measurements: Measurements, events: Events, crew: Crew) -> None:
        self._mesh, self._tunnels, self._measurements, self._events = mesh, tunnels, measurements, events
        self._paths: dict[str, ProbedPath] = {}
        self._requests: dict[bytes, tuple[str, int, Address]] = {}  # under way: public key, size, address
        self._noted: dict[str, ProbedPeer] | None = None
        self._echo: echo.Echo | None = None
        self._index = 0
        self._own = self._sent_at_read = 0
        self._next_tick = self._next_read = self._next_open = 0.0
        self._ended = threading.Event()
        self._worker = crew.worker("path-prober", self._run)

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def stop(self) -> None:
        """End the thread."""
        self._worker.retire()
        self._ended.set()
        self._worker.join(2 * TICK)

    def note(self, peers: dict[str, ProbedPeer]) -> None:
        """Take in a reading of the device that was made for another purpose."""
        self._noted = peers

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended.is_set():
            beat(IDLE)
            self._wait()
            now, dirty = time.monotonic(), False
            for token, size in self._echo.answers() if self._echo is not None else ():
                dirty = self._take(token, size, now) or dirty
            for key, path in list(self._paths.items()):
                if now >= path.due:
                    self._send(key, path, path.advance(now))
                    dirty = True
            if now >= self._next_tick:
                self._next_tick = now + TICK
                dirty = self._tick(now) or dirty
            if dirty:
                self._publish()
        self._close()

    def _wait(self) -> None:
        """Wait for an answer, for the end of a wait for one, or for the next tick."""
        due = min((path.due for path in self._paths.values()), default=self._next_tick)
        seconds = min(max(min(due, self._next_tick) - time.monotonic(), 0.0), TICK)
        if self._echo is None:
            self._ended.wait(seconds)
        else:
            select.select(self._echo.sockets(), [], [], seconds)

    def _tick(self, now: float) -> bool:
        """Read the device if that is due, and begin checks; returns whether a measurement may have changed."""
        device = self._mesh.name()
        if not self._open(device, now):
            return False
        peers, self._noted = self._noted, None
        if peers is None and now >= self._next_read:
            grown = self._tunnels.sent(device) - self._sent_at_read - self._own
            is_new = not self._paths or any(path.is_new for path in self._paths.values())
            if grown >= (1 if is_new else ACTIVE):
                peers = self._mesh.probed_peers(fresh=True)
                self._next_read = now + max(READ[0], READ[1] * (time.monotonic() - now))
        if peers is None:
            return False
        self._sent_at_read, self._own = self._tunnels.sent(device), 0
        return self._look(peers, now)

    def _open(self, device: str, now: float) -> bool:
        """Whether there are sockets for the present device; they are opened again for a new one."""
        index = self._tunnels.link_index(device)
        if self._echo is not None and index == self._index:
            return True
        self._close()
        if index and now >= self._next_open:
            try:
                self._echo, self._index = echo.Echo(device), index
            except OSError as error:
                log.warning("paths to peers cannot be measured: %s", error)
                self._next_open = now + SILENT
        return self._echo is not None

    def _close(self) -> None:
        if self._echo is not None:
            self._echo.close()
        self._echo = None

    def _look(self, peers: Mapping[str, ProbedPeer], now: float) -> bool:
        """Take in a reading of the device, and begin the checks that are due; returns whether a path may be another one
        than before."""
        paths, begun = self._measurements.paths(), 0
        gone = self._paths.keys() - peers.keys()
        for key in gone:
            del self._paths[key]
        dirty = bool(gone)
        for key, peer in peers.items():
            path = self._paths.get(key)
            if path is None:
                earlier = paths.by_key.get(key)
                path = self._paths[key] = ProbedPath(peer, earlier.size if earlier is not None else 0)
            dirty = path.update(peer) or dirty
            if begun < MOST_BEGUN:
                sizes = path.begin(now, may_grow=not paths.too_narrow)
                self._send(key, path, sizes)
                begun += bool(sizes)
        return dirty or paths.too_narrow

    def _take(self, token: bytes, size: int, now: float) -> bool:
        """Take in an answer; returns whether a measurement may have changed."""
        key, sent_size, address = self._requests.pop(token, ("", 0, None))
        path = self._paths.get(key)
        if path is None or address is None or size != sent_size:
            return False
        self._send(key, path, path.take(size, address, now))
        return not path.is_under_way

    def _send(self, key: str, path: ProbedPath, sizes: Sizes) -> None:
        if not path.is_under_way:
            self._requests = {token: request for token, request in self._requests.items() if request[0] != key}
        for size in sizes if self._echo is not None else ():
            for address in path.addresses():
                token = os.urandom(echo.TOKEN)
                self._requests[token] = (key, size, address)
                if self._echo is not None and self._echo.send(address, size, token):
                    path.note_sent(size + WIREGUARD)
                    self._own += size

    def _publish(self) -> None:
        """Make the measurements known, and that a route must get another MTU."""
        before = self._measurements.paths()
        measured = {key: path.measured() for key, path in self._paths.items()}
        self._measurements.put(MeasuredPaths({key: path for key, path in measured.items() if path is not None}))
        changed = [key for key, path in self._paths.items() if path.has_changed(before.by_key.get(key))]
        for key in changed:
            path = measured[key]
            if path is not None:
                log.info("the tunnel to the peer %s carries packets of %d of %d bytes", key, path.size, path.full)
        if changed:
            self._events.publish(PathsMeasured())
