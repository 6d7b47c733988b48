"""The parts of the daemon, each built from the parts below it: the first half of the composition root (`app.py`)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cni import defaults
from cni.daemon import operations
from cni.daemon.attachments.admission import Admission
from cni.daemon.attachments.attach import Attacher
from cni.daemon.attachments.overlay import DnsOffer, NodeOverlay
from cni.daemon.attachments.ports import Ports
from cni.daemon.attachments.segment_release import SegmentRelease
from cni.daemon.attachments.segments import Segments
from cni.daemon.attachments.slot_source import SlotSource
from cni.daemon.dns.book import NameBook
from cni.daemon.dns.forward.conditions import Conditions
from cni.daemon.dns.forward.forwarder import Forwarder
from cni.daemon.dns.forward.upstreams import Upstreams
from cni.daemon.dns.handler import Handler
from cni.daemon.dns.host_resolver import HostResolver
from cni.daemon.dns.inbox import Inbox
from cni.daemon.dns.intercept import Intercept
from cni.daemon.dns.node_names import NodeNames
from cni.daemon.dns.server import DnsServer
from cni.daemon.dns.service import DnsService, new_lookup
from cni.daemon.events import Events
from cni.daemon.fence.rule_comparison import has_bridge_names
from cni.daemon.mesh.devices import Devices
from cni.daemon.mesh.joined_peers import JoinedPeers
from cni.daemon.mesh.measured import Measurements
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.mesh.paths import PathPlanner
from cni.daemon.mesh.resolver import Resolver
from cni.daemon.mesh.sources import PeerSources, ProxyNeighbours
from cni.daemon.model.wireguard import network_of
from cni.daemon.nat import forwarder_words
from cni.daemon.nat.forwarder_client import ForwarderClient
from cni.daemon.nat.netcheck import NetCheck
from cni.daemon.nat.outside import Outside
from cni.daemon.nat.pair_keys import PairKeys
from cni.daemon.nat.probing import Probing
from cni.daemon.nat.published import Published
from cni.daemon.nat.relay import Relay
from cni.daemon.nat.relay_talk import RelayTalk
from cni.daemon.nat.rules import NatRules, in_effect
from cni.daemon.nat.server_round import ServerRound
from cni.daemon.nat.sought_peers import SoughtPeers
from cni.daemon.nat.traversal import Traversal
from cni.daemon.nat.user_relays import UserRelays
from cni.daemon.nat.zlayer_server import ZlayerServer
from cni.daemon.node.container_mtu import ContainerMtu
from cni.daemon.node.node_settings import NodeSettings
from cni.daemon.node.own_addresses import OwnAddresses
from cni.daemon.node.ranges import Ranges
from cni.daemon.parts_fence import Fence, build_fence
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.reconcile.conditions import NodeConditions
from cni.daemon.reconcile.data_path import DataPath
from cni.daemon.reconcile.network_list import NetworkListKeeper
from cni.daemon.settings import Kubernetes, Settings
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import State
from cni.daemon.state.store import Store
from cni.daemon.state.tables import Table, Tables
from cni.host import container
from cni.host.forwarder_process import ForwarderProcess
from cni.host.kernel import Kernel
from cni.host.own_networks import RESOLV_CONF
from cni.host.tunnels import Tunnels
from cni.host.worker import Crew
from cni.isolation import AUTO

if TYPE_CHECKING:  # they import http.client, for 30 ms
    from cni.daemon.api.connectivity_port import ConnectivityPort
    from cni.daemon.cluster.claims import Claims
    from cni.daemon.cluster.kubernetes.api_server import ApiServer
    from cni.daemon.cluster.name_records import NameRecords
    from cni.daemon.kubernetes.directory import ClusterDirectory
    from cni.daemon.kubernetes.follower import ResourceFollower
    from cni.daemon.kubernetes.objects import Resource

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Base:
    """What the other parts are built on. `alone`: whether no other zlayer-cni daemon works in this network
    namespace."""

    settings: Settings
    board: ProblemBoard
    events: Events
    crew: Crew
    state: State
    registry: Tables
    identity: Identity
    kernel: Kernel
    fence: Fence
    own: OwnAddresses
    ranges: Ranges
    node_settings: NodeSettings
    container_mtu: ContainerMtu
    alone: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class NodeParts:
    """The attachments and the data path of one node. `directory`: None outside a cluster of Kubernetes."""

    segments: Segments
    release: SegmentRelease
    attacher: Attacher
    admission: Admission
    overlay: NodeOverlay
    conditions: NodeConditions
    data_path: DataPath
    directory: ClusterDirectory | None
    network_list: NetworkListKeeper


@dataclass(frozen=True, kw_only=True)
class MeshParts:
    """The WireGuard devices of one node."""

    tunnels: Tunnels
    joined: JoinedPeers
    resolver: Resolver
    measurements: Measurements
    mesh: Mesh


def build_base(settings: Settings, store: Store, kernel: Kernel, crew: Crew, alone: Callable[[], bool]) -> Base:
    """The records, the fence, and the node's own addresses and ranges."""
    events = Events()
    board = ProblemBoard(events)
    state = State(store, settings, events)
    own = OwnAddresses(state, kernel, alone)
    ranges = Ranges(state, kernel, own, board)
    return Base(
        settings=settings,
        board=board,
        events=events,
        crew=crew,
        state=state,
        registry=Tables(store),
        identity=Identity(settings.data_dir),
        kernel=kernel,
        fence=build_fence(state, settings, has_bridge_names(), alone, ranges.networks),
        own=own,
        ranges=ranges,
        node_settings=NodeSettings(settings, state, kernel, own, board),
        container_mtu=ContainerMtu(state, kernel, settings.mtu),
        alone=alone,
    )


def _build_forwarder(base: Base) -> Forwarder | None:
    """What asks other DNS servers; None where the node serves no DNS."""
    settings, state = base.settings.dns, base.state
    if not settings.serve:
        return None
    upstreams = Upstreams(settings, lambda: frozenset(map(str, state.node_addresses())), RESOLV_CONF)
    return Forwarder(upstreams, Conditions(upstreams, base.board), base.crew)


def build_dns(base: Base, elsewhere: NameRecords | None) -> DnsService:
    """The names of the node, its DNS server, and the forwarding. `elsewhere`: the names of other nodes; None outside a
    cluster."""
    forwarding = _build_forwarder(base)
    settings, book = base.settings, NameBook(elsewhere)
    names = NodeNames(book, base.state, base.registry, settings.dns.zone, base.kernel.all_links)
    handler = Handler(new_lookup(settings, book, names, base.fence.status, base.registry), forwarding)
    inbox = Inbox(handler.note_dropped)
    server = DnsServer(
        handle=handler.handle,
        inbox=inbox,
        addresses=names.addresses,
        port=settings.dns.port,
        board=base.board,
        crew=base.crew,
    )
    return DnsService(
        settings=settings,
        fence=base.fence.status,
        registry=base.registry,
        book=book,
        names=names,
        handler=handler,
        server=server if settings.dns.serve else None,
        forwarding=forwarding,
        intercept=Intercept(
            handle=handler.handle,
            inbox=inbox,
            addresses=names.addresses,
            ranges=lambda: base.state.cidrs,
            run_dir=settings.run_dir,
            wanted=settings.dns.intercept,
            board=base.board,
            crew=base.crew,
        ),
        host=HostResolver(settings, names.zone, lambda: server.served, base.board),
    )


def _build_directory(base: Base) -> ClusterDirectory | None:
    """What is followed of a cluster of Kubernetes; None outside of one, and for a machine that is no Node: it has no
    Pods, and the policies of the cluster select Pods alone."""
    config = base.settings.cluster.kubernetes if base.settings.cluster is not None else None
    if config is None or config.external_node:
        return None
    from cni.daemon.kubernetes.directory import ClusterDirectory
    from cni.daemon.kubernetes.objects import NAMESPACES, NETWORK_POLICIES, PODS
    from cni.daemon.kubernetes.policies import ClusterPolicies

    tables = base.registry
    policies = ClusterPolicies(base.fence.members, tables, node_name(config), base.board, base.crew)
    return ClusterDirectory(
        _follow(base, config, NAMESPACES, tables.namespaces, policies.on_namespaces),
        _follow(base, config, PODS, tables.pods, policies.on_pods),
        _follow(base, config, NETWORK_POLICIES, tables.cluster_policies, policies.on_policies),
        policies,
    )


def _follow(
    base: Base,
    config: Kubernetes,
    resource: Resource[T],
    kept: Table[T],
    on_change: Callable[[Mapping[str, T | None]], None],
) -> ResourceFollower[T]:
    """A follower of one resource, with connections of its own."""
    from cni.daemon.kubernetes.follower import ResourceFollower

    server = api_server(base, config)
    return ResourceFollower(resource, server, board=base.board, crew=base.crew, kept=kept, on_change=on_change)


def api_server(base: Base, config: Kubernetes) -> ApiServer:
    """The connections to the cluster's API server."""
    from cni.daemon.cluster.kubernetes.api_server import ApiServer

    return ApiServer(config, lambda code, text: base.board.set(code, "", text))


def node_name(config: Kubernetes) -> str:
    """The name of this machine's Node, or of its ZLayerExternalNode."""
    return config.external_node or config.node_name or os.environ.get(container.IN_POD) or socket.gethostname()


def build_node(base: Base, claims: Claims | None, resolver: Callable[[], DnsOffer]) -> NodeParts:
    """Segments, attachments and the data path. `claims`: None outside a cluster; `resolver`: for results."""
    settings, state, kernel, fence, ranges = base.settings, base.state, base.kernel, base.fence, base.ranges
    segments = Segments(
        state=state,
        kernel=kernel,
        fence=fence.members,
        slots=SlotSource(state, claims),
        container_mtu=base.container_mtu,
        board=base.board,
        settings=settings,
        may_begin=ranges.refuse,
    )
    release = SegmentRelease(state, segments)
    attacher = Attacher(
        state=state,
        kernel=kernel,
        fence=fence.members,
        segments=segments,
        release=release,
        ports=Ports(state, kernel, fence.members),
        container_mtu=base.container_mtu,
        events=base.events,
    )
    admission = Admission(settings, state, attacher, release, ranges.refuse)
    directory = _build_directory(base)
    overlay = NodeOverlay(
        settings=settings,
        state=state,
        kernel=kernel,
        fence=fence.status,
        ranges=ranges,
        node_settings=base.node_settings,
        board=base.board,
        attacher=attacher,
        admission=admission,
        resolver=resolver,
        directory=directory,
    )
    conditions = NodeConditions(
        fence=fence.status,
        other_firewalls=fence.other_firewalls,
        ranges=ranges,
        node_settings=base.node_settings,
        board=base.board,
        alone=base.alone,
    )
    data_path = DataPath(
        state=state,
        kernel=kernel,
        fence=fence.enforcement,
        own=base.own,
        ranges=ranges,
        node_settings=base.node_settings,
        segments=segments,
        release=release,
        attacher=attacher,
        conditions=conditions,
    )
    return NodeParts(
        segments=segments,
        release=release,
        attacher=attacher,
        admission=admission,
        overlay=overlay,
        conditions=conditions,
        data_path=data_path,
        directory=directory,
        network_list=NetworkListKeeper(
            settings.network_list, lambda: overlay.ready(defaults.NETWORK, AUTO), base.board, base.crew
        ),
    )


def build_mesh(base: Base) -> MeshParts:
    """The WireGuard devices and where their peers come from."""
    settings, state, registry, board = base.settings, base.state, base.registry, base.board
    tunnels = Tunnels(settings.run_dir, settings.wireguard_engine, hosted=settings.engine_host)
    joined = JoinedPeers(settings.data_dir)
    resolver, measurements = Resolver(base.crew, board, base.events), Measurements()
    planner = PathPlanner(tunnels, lambda: state.cidrs, base.ranges.inside, resolver, measurements)
    mesh = Mesh(
        settings=settings,
        state=state,
        registry=registry,
        identity=base.identity,
        fence=base.fence.members,
        ranges=base.ranges,
        container_mtu=base.container_mtu,
        tunnels=tunnels,
        sources=PeerSources(settings, registry, joined, lambda: state.cidrs, board),
        planner=planner,
        measurements=measurements,
        devices=Devices(registry, tunnels, planner, board, base.events),
        proxy_neighbours=ProxyNeighbours(state, registry, tunnels),
        board=board,
        events=base.events,
    )
    return MeshParts(tunnels=tunnels, joined=joined, resolver=resolver, measurements=measurements, mesh=mesh)


def build_netcheck(base: Base, mesh: Mesh) -> NetCheck:
    """The check of the networks around this node."""
    return NetCheck(base.state, mesh, _nat_rules(base))


def _nat_rules(base: Base) -> Callable[[], NatRules]:
    return lambda: in_effect(base.settings.nat, base.registry.nat.get("nat"))


def build_tests(base: Base) -> ConnectivityPort:
    """The port for other nodes' connectivity tests."""
    from cni.daemon.api.connectivity_port import ConnectivityPort

    return ConnectivityPort(base.state, base.settings.run_dir, base.crew)


def build_traversal(base: Base, mesh: MeshParts) -> Traversal:
    """The search for paths to the peers."""
    pair_keys = PairKeys()
    forwarder = ForwarderClient(
        ForwarderProcess(f"{base.settings.run_dir}/{forwarder_words.NAME}", base.settings.run_dir),
        mesh.resolver.addresses,
        base.board,
    )
    server = ZlayerServer(lambda: tuple(network_of(cidr) for cidr in base.state.cidrs), base.board, base.crew)
    outside = Outside(ServerRound(mesh.resolver.addresses))
    relays = RelayTalk(Relay(base.registry, base.board), pair_keys)
    user_relays = UserRelays(forwarder, server)
    peers = SoughtPeers(mesh.mesh, pair_keys, relays, user_relays)
    published = Published(peers, relays, user_relays, outside, base.events)
    return Traversal(
        state=base.state,
        identity=base.identity,
        mesh=mesh.mesh,
        rules=_nat_rules(base),
        outside=outside,
        pair_keys=pair_keys,
        relays=relays,
        user_relays=user_relays,
        peers=peers,
        probing=Probing(pair_keys, peers, relays, outside, published),
        published=published,
        board=base.board,
        events=base.events,
        crew=base.crew,
    )


def build_operations(
    base: Base, node: NodeParts, mesh: Mesh, traversal: Traversal, resolver: Callable[[], DnsOffer]
) -> operations.OperationContext:
    """The context of the overlay socket's operations. `resolver`: for guests and edge peers."""
    return operations.OperationContext(
        settings=base.settings,
        state=base.state,
        kernel=base.kernel,
        fence=base.fence.status,
        ranges=base.ranges,
        data_path=node.data_path,
        segments=node.segments,
        release=node.release,
        attacher=node.attacher,
        admission=node.admission,
        registry=base.registry,
        identity=base.identity,
        events=base.events,
        mesh=mesh,
        traversal=traversal,
        resolver=resolver,
    )
