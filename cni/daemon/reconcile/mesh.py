"""Compares the WireGuard devices with their wanted state: every ten seconds, and soon after a link or a peer's name
changed."""

from __future__ import annotations

import threading
import time

from cni.daemon.events import KernelChanged, PathsMeasured, PeerNamesResolved
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.mesh.resolver import Resolver
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.reconcile.mtu import MtuFollower
from cni.daemon.reconcile.path_prober import PathProber
from cni.host.tunnels import Tunnels
from cni.host.worker import Crew, beat

PASS_INTERVAL = 10.0  # seconds between two passes
HASTE = 6.5  # seconds between two passes while the endpoints of a silent peer are tried; more than `TRY` of one
SETTLE = 0.05  # seconds between a link event and the pass it causes


class MeshReconciler:
    """Reconciles the devices of one node, and the MTU of its containers, in a thread of its own."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        tunnels: Tunnels,
        resolver: Resolver,
        mtu_follower: MtuFollower,
        path_prober: PathProber,
        board: ProblemBoard,
        crew: Crew,
    ) -> None:
        self._mesh, self._tunnels, self._resolver, self._mtu_follower = mesh, tunnels, resolver, mtu_follower
        self._path_prober, self._board, self._crew = path_prober, board, crew
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._worker = crew.worker("mesh", self._run)

    def start(self) -> None:
        """Set the devices up, and start the periodic pass."""
        self._mesh.start()
        self._path_prober.start()
        self._follow_mtu()
        self._wake.clear()  # what was announced so far, the first pass has seen
        self._worker.start()

    def stop(self) -> None:
        """Stop the periodic pass; a running one is waited for. Devices, engines and traffic are not affected."""
        self._worker.retire()
        self._ended.set()
        self._mesh.stop()
        self._wake.set()
        self._path_prober.stop()
        self._resolver.stop()
        self._worker.join(PASS_INTERVAL)
        self._tunnels.close()

    def on_names_resolved(self, _: PeerNamesResolved) -> None:
        """Start a pass: peers may have to be called at other addresses."""
        self._wake.set()

    def on_paths_measured(self, _: PathsMeasured) -> None:
        """Start a pass: routes get another MTU."""
        self._wake.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            interval = HASTE if self._mesh.is_in_haste() else PASS_INTERVAL
            beat(interval)
            woken = self._wake.wait(interval)
            beat()
            if woken:
                time.sleep(SETTLE)
            self._wake.clear()
            if not self._ended.is_set():
                self._mesh.sync(thoroughly=True)
                self._note_peers()
                self._follow_mtu()

    def _note_peers(self) -> None:
        peers = self._mesh.probed_peers(fresh=False)
        if peers is not None:
            self._path_prober.note(peers)

    def _follow_mtu(self) -> None:
        with self._board.step("look-incomplete", "sizes", "the containers could not follow the underlay's MTU"):
            self._mtu_follower.follow(self._mesh.mtu())  # without the mesh's lock: it takes the locks of attachments

    def on_kernel_changed(self, change: KernelChanged) -> None:
        """Start a pass if a WireGuard device of this node is gone, or a link of the underlay changed, perhaps its
        MTU."""
        ours = change.link.startswith(("zl-", "veth", "link "))  # an address is no link
        if change.link.endswith(("-g", "-d")) if change.is_loss else change.link and not ours:
            self._wake.set()
