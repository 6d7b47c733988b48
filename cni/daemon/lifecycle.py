"""The order in which the parts of a daemon start, stop, and are torn down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cni.daemon import operations
from cni.daemon.dns.forward.forwarder import Forwarder
from cni.daemon.dns.host_resolver import HostResolver
from cni.daemon.dns.intercept import Intercept
from cni.daemon.dns.server import DnsServer
from cni.daemon.fence.watch import Watch
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.nat.traversal import Traversal
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.reconcile.data_path import DataPath
from cni.daemon.reconcile.mac import MacWatcher
from cni.daemon.reconcile.mesh import MeshReconciler
from cni.daemon.reconcile.network_list import NetworkListKeeper
from cni.daemon.reconcile.node import Reconciler
from cni.daemon.reconcile.policy_files import PolicyFiles
from cni.host.worker import beat

if TYPE_CHECKING:
    from cni.daemon.api.connectivity_port import ConnectivityPort
    from cni.daemon.cluster.sync import ClusterSync
    from cni.daemon.kubernetes.directory import ClusterDirectory  # it imports http.client, for 30 ms

STEP = 60.0  # seconds that one step of the start may take: a WireGuard engine and etcd have time-outs of their own


class Lifecycle:
    """Starts and stops the parts of one daemon; `RangeWatch` decides when `begin` is called."""

    def __init__(
        self,
        *,
        data_path: DataPath,
        mesh: Mesh,
        cluster: ClusterSync | None,
        directory: ClusterDirectory | None,
        network_list: NetworkListKeeper,
        operation_context: operations.OperationContext,
        reconciler: Reconciler,
        mesh_reconciler: MeshReconciler,
        traversal: Traversal,
        mac_watcher: MacWatcher,
        policy_files: PolicyFiles,
        fence_watch: Watch,
        forwarder: Forwarder | None,
        host_resolver: HostResolver,
        intercept: Intercept,
        dns_server: DnsServer | None,
        take_in_names: Callable[[], None],
        drain: Callable[[], None],
        tests: ConnectivityPort | None,
        board: ProblemBoard,
    ) -> None:
        """`drain` carries out the deletions that plugins queued while no daemon ran. `tests`: None unless the settings
        allow other nodes' tests."""
        self._data_path, self._mesh, self._cluster = data_path, mesh, cluster
        self._directory, self._network_list = directory, network_list
        self._operation_context, self._drain, self._board = operation_context, drain, board
        self._reconciler, self._mesh_reconciler, self._traversal = reconciler, mesh_reconciler, traversal
        self._mac_watcher, self._fence_watch = mac_watcher, fence_watch
        self._forwarder, self._dns_server, self._host_resolver = forwarder, dns_server, host_resolver
        self._take_in_names, self._policy_files = take_in_names, policy_files
        self._intercept, self._tests = intercept, tests

    def begin(self) -> None:
        """Put the node into service. A step that fails becomes a problem, and the next steps run. Never raises."""
        for subject, work in (
            # First: where an earlier daemon left the node's addresses, questions wait for nothing else.
            ("DNS forwarding", self._forwarder.start if self._forwarder is not None else None),
            ("the names", self._take_in_names),
            ("the earlier DNS server", self._dns_server.resume if self._dns_server is not None else None),
            ("Pods and Namespaces", self._directory.start if self._directory is not None else None),
            ("the cluster", self._cluster.prepare if self._cluster is not None else None),
            ("the network policies", self._policy_files.take_in),
            ("the tunnels' fence", self._mesh.prepare),
            ("the node", self._data_path.start),
            ("the DNS server", self._dns_server.start if self._dns_server is not None else None),
            ("DNS interception", self._intercept.start),
            ("the host's resolver", self._host_resolver.repair),
            ("the state of an earlier daemon", self._reconciler.adopt),
            ("the mesh", self._mesh_reconciler.start),
            ("the paths through NATs", self._traversal.start),
            ("the cluster's threads", self._cluster.start if self._cluster is not None else None),
            ("the queued deletions", self._drain),
            ("the reconciler", self._reconciler.start),
            ("the watch on the fence", self._fence_watch.start),
            ("the watch on policies", self._policy_files.start),
            ("the MAC watcher", self._mac_watcher.start),
            ("the port of connectivity tests", self._tests.start if self._tests is not None else None),
            ("the network list", self._network_list.start),
        ):
            beat(STEP)
            if work is not None:
                with self._board.step("start-incomplete", subject, f"{subject} could not be set up"):
                    work()

    def remove_data_path(self) -> None:
        """Remove an earlier daemon's data path from the kernel: this node may not go into service."""
        self._mesh.withdraw()
        self._data_path.remove()

    def apply_ranges(self) -> None:
        """Adapt fence, subnets and peers to the host's networks, which may have changed."""
        if self._data_path.apply_ranges():
            self._mesh.sync()

    def stop(self) -> None:
        """Stop the threads that maintain the node; the data path stays."""
        if self._tests is not None:
            self._tests.stop()
        self._network_list.stop()
        self._intercept.stop()
        self._policy_files.stop()
        self._fence_watch.stop()
        self._reconciler.stop()
        self._mac_watcher.stop()
        if self._cluster is not None:
            self._cluster.stop()
        if self._directory is not None:
            self._directory.stop()
        self._traversal.stop()
        self._mesh_reconciler.stop()
        if self._dns_server is not None:  # last: the next daemon serves as soon as it can
            self._dns_server.stop()
        if self._forwarder is not None:
            self._forwarder.stop()

    def tear_down(self) -> None:
        """Remove everything that the daemon made: guests, edge peers, devices, this node's records in the store, and
        the data path. Only `uninstall` calls it."""
        self._network_list.stop()
        self._host_resolver.remove()
        self._intercept.stop()
        self._intercept.remove()
        operations.tear_down(self._operation_context)
        self._mesh.tear_down()
        self._traversal.tear_down()
        if self._cluster is not None:
            self._cluster.leave()
        self._data_path.tear_down()
