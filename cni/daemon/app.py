"""The composition root: builds every object of the daemon once, whole, by its constructor, and subscribes to events.

`parts.py` builds the parts from the ground up, this module the threads and sockets on top of them, so the graph of
constructions has no cycle (tests/unit/test_wiring.py). Nothing else in the daemon connects two objects.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni import log_files, tempdir_sweeper
from cni.daemon import operations
from cni.daemon.api import delete_queue
from cni.daemon.api.event_stream import EventStream
from cni.daemon.api.plugin_calls import PluginCalls
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.call_times import CallTimes
from cni.daemon.dns.service import DnsService
from cni.daemon.events import (
    AttachmentCollected,
    AttachmentGone,
    AttachmentLeaves,
    AttachmentLive,
    CallFailed,
    Events,
    GuestsChanged,
    KernelChanged,
    NamesRegistered,
    NodeFactsChanged,
    PathsMeasured,
    PeerChanged,
    PeerNamesResolved,
    PeersChanged,
    ProblemBegan,
    ProblemEnded,
    Reconciled,
)
from cni.daemon.fence.drop_watch import DropWatch
from cni.daemon.fence.watch import Watch
from cni.daemon.lifecycle import Lifecycle
from cni.daemon.metrics.counters import Counters
from cni.daemon.metrics.endpoint import MetricsEndpoint
from cni.daemon.metrics.reading import Reader
from cni.daemon.parts import (
    Base,
    MeshParts,
    NodeParts,
    build_base,
    build_dns,
    build_mesh,
    build_netcheck,
    build_node,
    build_operations,
    build_tests,
    build_traversal,
)
from cni.daemon.precheck import STORE_NAME
from cni.daemon.reconcile.health import NodeHealth
from cni.daemon.reconcile.mac import MacWatcher
from cni.daemon.reconcile.mesh import MeshReconciler
from cni.daemon.reconcile.mtu import MtuFollower
from cni.daemon.reconcile.node import Reconciler
from cni.daemon.reconcile.path_prober import PathProber
from cni.daemon.reconcile.policy_files import PolicyFiles
from cni.daemon.reconcile.range_watch import RangeWatch
from cni.daemon.run_dir import RunDirLock
from cni.daemon.server import Server
from cni.daemon.settings import Settings
from cni.daemon.settings_file import SettingsFile
from cni.daemon.state.store import Store
from cni.daemon.supervisor import Supervisor
from cni.host import netns, process
from cni.host.kernel import Kernel
from cni.host.monitor import Monitor
from cni.host.process_exit import ExitWatcher
from cni.host.worker import Crew

if TYPE_CHECKING:
    from cni.daemon.cluster.departed_nodes import DepartedNodes
    from cni.daemon.cluster.sync import ClusterSync
    from cni.daemon.nat.traversal import Traversal
    from cni.daemon.parts_cluster import StoreParts


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """One daemon, built and not started."""

    server: Server
    _supervisor: Supervisor
    _monitor: Monitor
    _range_watch: RangeWatch
    _drops: DropWatch
    _lifecycle: Lifecycle
    _exit_watcher: ExitWatcher
    _presence: netns.Presence
    _kernel: Kernel
    _store: Store

    def start(self) -> None:
        """Put the node into service if its ranges allow that, and start the threads. The sockets are still closed."""
        self._monitor.start()
        self._range_watch.start()
        self._supervisor.start()

    def stop(self) -> None:
        """Stop the threads, and close what is open. The data path stays."""
        self._exit_watcher.close()
        self._drops.close()
        self._supervisor.stop()
        self._monitor.close()
        self._range_watch.stop()
        self._lifecycle.stop()
        self._presence.close()
        self._kernel.close()
        self._store.close()


def build(
    settings_file: SettingsFile, settings: Settings, run_dir_lock: RunDirLock, alive: Callable[[], None]
) -> Daemon:
    """Build one daemon. `settings`: as read from `settings_file`. `alive` is called at every check at which no thread
    hangs. Raises CniError, OSError."""
    store, crew = Store(run_dir_lock.run_dir / STORE_NAME), Crew()
    kernel, presence = Kernel(crew), netns.Presence()
    base = build_base(settings, store, kernel, crew, presence.alone)
    board, events, state = base.board, base.events, base.state
    store_parts = _store_access(base)
    dns = build_dns(base, store_parts.names if store_parts is not None else None)
    node = build_node(base, store_parts.claims if store_parts is not None else None, dns.offer)
    mesh_parts = build_mesh(base)
    traversal = build_traversal(base, mesh_parts)
    cluster, departed = _cluster(base, store_parts, node, mesh_parts, traversal)
    context = build_operations(base, node, mesh_parts.mesh, traversal, dns.offer)
    health = NodeHealth(settings=settings, settings_file=settings_file, state=state, mesh=mesh_parts.mesh, board=board)
    exit_watcher = ExitWatcher(crew)
    call_times, counters, event_stream = CallTimes(), Counters(), EventStream()
    plugin_calls = PluginCalls(node.overlay, kernel.own, exit_watcher, call_times, events)
    inherited = process.children()

    def drain() -> None:
        process.reap(inherited)
        delete_queue.drain(settings.run_dir, state, plugin_calls.answer)
        tempdir_sweeper.sweep()
        log_files.bound_all(settings.run_dir)
        operations.sweep(context)
        process.trim_memory()

    def after_comparison() -> None:
        drain()
        dns.host.repair()
        health.look()

    reconciler = Reconciler(
        state=state,
        kernel=kernel,
        fence=base.fence.enforcement,
        segments=node.segments,
        release=node.release,
        attacher=node.attacher,
        conditions=node.conditions,
        board=board,
        events=events,
        crew=crew,
        alone=presence.alone,
        also=after_comparison,
    )
    mesh_reconciler = MeshReconciler(
        mesh=mesh_parts.mesh,
        tunnels=mesh_parts.tunnels,
        resolver=mesh_parts.resolver,
        mtu_follower=MtuFollower(state, kernel, node.attacher),
        path_prober=PathProber(mesh_parts.mesh, mesh_parts.tunnels, mesh_parts.measurements, events, crew),
        board=board,
        crew=crew,
    )
    mac_watcher = MacWatcher(state, kernel, base.fence.members, node.attacher, crew)
    fence_watch = Watch(
        base.fence.enforcement,
        base.fence.members,
        base.fence.other_firewalls,
        forward=node.conditions.look_for_obstacles,
        settings=base.node_settings.repair_forwarding,
        told=node.conditions.note_repairs,
        versions=state.versions,
        crew=crew,
    )
    lifecycle = Lifecycle(
        data_path=node.data_path,
        mesh=mesh_parts.mesh,
        cluster=cluster,
        directory=node.directory,
        network_list=node.network_list,
        operation_context=context,
        reconciler=reconciler,
        mesh_reconciler=mesh_reconciler,
        traversal=traversal,
        mac_watcher=mac_watcher,
        policy_files=PolicyFiles(settings.policies, base.fence.members, base.registry.policy_files, board, crew),
        fence_watch=fence_watch,
        forwarder=dns.forwarding,
        host_resolver=dns.host,
        intercept=dns.intercept,
        dns_server=dns.server,
        take_in_names=dns.names.take_in,
        drain=drain,
        tests=build_tests(base) if settings.connectivity == "allow" else None,
        board=board,
    )
    range_watch = RangeWatch(
        base.ranges, lifecycle.begin, lifecycle.remove_data_path, lifecycle.apply_ranges, board=board, crew=crew
    )
    drops = DropWatch(base.fence.drop_rules)
    tool_context = ToolContext(
        settings=settings,
        state=state,
        kernel=kernel,
        fence=base.fence.status,
        other_firewalls=base.fence.other_firewalls,
        drops=drops,
        attacher=node.attacher,
        container_mtu=base.container_mtu,
        conditions=node.conditions,
        health=health,
        registry=base.registry,
        joined=mesh_parts.joined,
        mesh=mesh_parts.mesh,
        netcheck=build_netcheck(base, mesh_parts.mesh),
        departed=departed,
        dns=dns,
        traversal=traversal,
        rotate=functools.partial(cluster.rotate, mesh_parts.mesh.use_key)
        if cluster is not None
        else mesh_parts.mesh.rotate,
        calls=plugin_calls.counts,
        tear_down=lifecycle.tear_down,
    )
    supervisor = Supervisor(crew, board, run_dir_lock.replace_daemon, alive)
    metrics = MetricsEndpoint(
        Reader(tool_context, call_times, counters, cluster), board, settings.run_dir, settings.metrics.listen
    )
    server = Server(
        settings=settings,
        metrics=metrics,
        plugin_calls=plugin_calls,
        tool_context=tool_context,
        event_stream=event_stream,
        operation_context=context,
        lock=run_dir_lock,
        store=store,
        supervisor=supervisor,
        board=board,
        crew=crew,
    )
    _subscribe_watchers(events, range_watch, reconciler, mesh_reconciler)
    events.subscribe(AttachmentLive, mac_watcher.on_attached)
    events.subscribe(AttachmentGone, mac_watcher.on_detached)
    _subscribe_names(events, dns)
    events.subscribe(PeerChanged, server.on_peer_changed)
    _subscribe_traversal(events, traversal)
    _subscribe_readers(events, event_stream, counters)
    if cluster is not None:
        _subscribe_cluster(events, cluster)
    return Daemon(
        server=server,
        _supervisor=supervisor,
        _monitor=Monitor(lambda change: events.publish(KernelChanged(*change)), crew),
        _range_watch=range_watch,
        _drops=drops,
        _lifecycle=lifecycle,
        _exit_watcher=exit_watcher,
        _presence=presence,
        _kernel=kernel,
        _store=store,
    )


def _store_access(base: Base) -> StoreParts | None:
    """The access to the store of the node's cluster; None outside a cluster."""
    if base.settings.cluster is None:
        return None
    from cni.daemon import parts_cluster

    return parts_cluster.build_store_access(base, base.settings.cluster)


def _cluster(
    base: Base, access: StoreParts | None, node: NodeParts, mesh: MeshParts, traversal: Traversal
) -> tuple[ClusterSync | None, DepartedNodes | None]:
    """The node's part in its cluster, and the nodes that have left it; nothing outside a cluster."""
    if access is None:
        return None, None
    from cni.daemon import parts_cluster

    return (
        parts_cluster.build_cluster(base, access, node, mesh, traversal),
        parts_cluster.build_departed(base, access),
    )


def _subscribe_watchers(events: Events, ranges: RangeWatch, node: Reconciler, mesh: MeshReconciler) -> None:
    """Those that compare again when something outside the daemon has changed."""
    events.subscribe(KernelChanged, ranges.on_kernel_changed)
    events.subscribe(KernelChanged, node.on_kernel_changed)
    events.subscribe(KernelChanged, mesh.on_kernel_changed)
    events.subscribe(PeerNamesResolved, mesh.on_names_resolved)
    events.subscribe(PathsMeasured, mesh.on_paths_measured)


def _subscribe_traversal(events: Events, traversal: Traversal) -> None:
    """What may lead to other paths between nodes."""
    events.subscribe(PeersChanged, traversal.on_change)
    events.subscribe(KernelChanged, traversal.on_kernel_changed)


def _subscribe_cluster(events: Events, cluster: ClusterSync) -> None:
    """What this node publishes in its cluster."""
    events.subscribe(KernelChanged, cluster.on_kernel_changed)
    events.subscribe(NodeFactsChanged, cluster.on_node_facts_changed)
    events.subscribe(GuestsChanged, cluster.on_node_facts_changed)
    events.subscribe(NamesRegistered, cluster.on_node_facts_changed)


def _subscribe_names(events: Events, dns: DnsService) -> None:
    """What changes the names that the DNS server answers."""
    events.subscribe(AttachmentLive, dns.book.on_attached)
    events.subscribe(AttachmentLeaves, dns.book.on_leaving)
    events.subscribe(GuestsChanged, dns.names.on_guests_changed)
    events.subscribe(NamesRegistered, dns.names.on_names_registered)


def _subscribe_readers(events: Events, event_stream: EventStream, counters: Counters) -> None:
    """Those that only tell what happens: the stream for readers outside, and the counters of the metrics."""
    events.subscribe(AttachmentLive, event_stream.on_event)
    events.subscribe(AttachmentGone, event_stream.on_event)
    events.subscribe(AttachmentCollected, event_stream.on_event)
    events.subscribe(CallFailed, event_stream.on_event)
    events.subscribe(PeerChanged, event_stream.on_event)
    events.subscribe(PathsMeasured, event_stream.on_event)
    events.subscribe(ProblemBegan, event_stream.on_event)
    events.subscribe(ProblemEnded, event_stream.on_event)
    events.subscribe(AttachmentCollected, counters.on_collected)
    events.subscribe(Reconciled, counters.on_reconciled)
    events.subscribe(ProblemBegan, counters.on_problem)
    events.subscribe(PeerChanged, counters.on_peer)
    events.subscribe(PathsMeasured, counters.on_paths)
