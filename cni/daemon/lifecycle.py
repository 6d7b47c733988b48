"""The order in which the parts of a daemon start and stop."""

from __future__ import annotations

from collections.abc import Callable

from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.cluster.sync import ClusterSync
from cni.daemon.fence.watch import Watch
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.reconcile.mac import MacWatcher
from cni.daemon.reconcile.node import Reconciler
from cni.host.worker import beat

STEP = 60.0  # seconds that one step of the start may take: a WireGuard engine and etcd have time-outs of their own


class Lifecycle:
    """Starts and stops the parts of one daemon; `RangeWatch` decides when `begin` is called."""

    def __init__(
        self,
        service: OverlayService,
        mesh: Mesh,
        cluster: ClusterSync | None,
        *,
        reconciler: Reconciler,
        mac_watcher: MacWatcher,
        fence_watch: Watch,
        drain: Callable[[], None],
    ) -> None:
        """`drain` carries out the deletions that plugins queued while no daemon ran."""
        self._service, self._mesh, self._cluster = service, mesh, cluster
        self._reconciler, self._mac_watcher, self._drain = reconciler, mac_watcher, drain
        self._fence_watch = fence_watch

    def begin(self) -> None:
        """Put the node into service. A step that fails becomes a problem, and the next steps run. Never raises."""
        for subject, work in (
            ("the cluster", self._cluster.prepare if self._cluster is not None else None),
            ("the tunnels' fence", self._mesh.prepare),
            ("the node", self._service.start),
            ("the state of an earlier daemon", self._reconciler.adopt),
            ("the mesh", self._mesh.start),
            ("the cluster's threads", self._cluster.start if self._cluster is not None else None),
            ("the queued deletions", self._drain),
            ("the reconciler", self._reconciler.start),
            ("the watch on the fence", self._fence_watch.start),
            ("the MAC watcher", self._mac_watcher.start),
        ):
            beat(STEP)
            if work is not None:
                with self._service.board.step("start-incomplete", subject, f"{subject} could not be set up"):
                    work()

    def remove_data_path(self) -> None:
        """Remove an earlier daemon's data path from the kernel: this node may not go into service."""
        self._mesh.withdraw()
        self._service.remove_data_path()

    def apply_ranges(self) -> None:
        """Adapt fence, subnets and peers to the host's networks, which may have changed."""
        if self._service.apply_ranges():
            self._mesh.sync()

    def stop(self) -> None:
        """Stop the threads that maintain the node; the data path stays."""
        self._fence_watch.stop()
        self._reconciler.stop()
        self._mac_watcher.stop()
        if self._cluster is not None:
            self._cluster.stop()
        self._mesh.stop()
