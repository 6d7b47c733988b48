"""The parts of the daemon, each built from the parts below it: the first half of the composition root (`app.py`)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cni.daemon import operations
from cni.daemon.attachments.admission import Admission
from cni.daemon.attachments.attach import Attacher
from cni.daemon.attachments.overlay import DnsOffer, NodeOverlay
from cni.daemon.attachments.ports import Ports
from cni.daemon.attachments.segment_release import SegmentRelease
from cni.daemon.attachments.segments import Segments
from cni.daemon.attachments.slot_source import SlotSource
from cni.daemon.cluster.carrier import Carrier
from cni.daemon.cluster.claims import Claims
from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.membership import Membership
from cni.daemon.cluster.name_publication import NamePublication
from cni.daemon.cluster.name_records import NameRecords
from cni.daemon.cluster.node_document import NodeDocumentBuilder
from cni.daemon.cluster.publication import Publication
from cni.daemon.cluster.publisher import Publisher
from cni.daemon.cluster.store import ClusterStore
from cni.daemon.cluster.store_watch import Signals, StoreWatch
from cni.daemon.cluster.sync import ClusterSync
from cni.daemon.cluster.trust import Trust
from cni.daemon.cluster.view import ClusterView
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
from cni.daemon.fence.controller import FenceController
from cni.daemon.fence.inventory import Inventory
from cni.daemon.fence.rule_comparison import has_bridge_names
from cni.daemon.mesh.devices import Devices
from cni.daemon.mesh.joined_peers import JoinedPeers
from cni.daemon.mesh.measured import Measurements
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.mesh.paths import PathPlanner
from cni.daemon.mesh.probes import TunnelProbes
from cni.daemon.mesh.resolver import Resolver
from cni.daemon.mesh.sources import PeerSources, ProxyNeighbours
from cni.daemon.model.wireguard import network_of
from cni.daemon.nat import forwarder_words
from cni.daemon.nat.forwarder_client import ForwarderClient
from cni.daemon.nat.netcheck import NetCheck
from cni.daemon.nat.pair_keys import PairKeys
from cni.daemon.nat.relay import Relay
from cni.daemon.nat.relay_talk import RelayTalk
from cni.daemon.nat.rules import NatRules, in_effect
from cni.daemon.nat.server_round import ServerRound
from cni.daemon.nat.traversal import Traversal
from cni.daemon.nat.zlayer_server import ZlayerServer
from cni.daemon.node.container_mtu import ContainerMtu
from cni.daemon.node.node_settings import NodeSettings
from cni.daemon.node.own_addresses import OwnAddresses
from cni.daemon.node.ranges import Ranges
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.reconcile.conditions import NodeConditions
from cni.daemon.reconcile.data_path import DataPath
from cni.daemon.settings import Cluster, Etcd, Kubernetes, Settings
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import State
from cni.daemon.state.store import Store
from cni.daemon.state.tables import Table, Tables
from cni.host.forwarder_process import ForwarderProcess
from cni.host.kernel import Kernel
from cni.host.own_networks import RESOLV_CONF
from cni.host.tunnels import Tunnels
from cni.host.worker import Crew

if TYPE_CHECKING:  # they import http.client, for 30 ms
    from cni.daemon.cluster.kubernetes.api_server import ApiServer
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
    fence: FenceController
    own: OwnAddresses
    ranges: Ranges
    node_settings: NodeSettings
    container_mtu: ContainerMtu
    alone: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class StoreParts:
    """The access of one node to the store of its cluster."""

    lease: int  # the life of a lease, in seconds
    grace: int  # seconds for which a node without a document stays a peer
    store: ClusterStore
    view: ClusterView
    names: NameRecords
    claims: Claims


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
        fence=FenceController(state, Inventory(state, settings, has_bridge_names()), alone, ranges.networks),
        own=own,
        ranges=ranges,
        node_settings=NodeSettings(settings, state, kernel, own, board),
        container_mtu=ContainerMtu(state, kernel, settings.mtu),
        alone=alone,
    )


def build_store_access(base: Base, cluster: Cluster) -> StoreParts:
    """The client of the cluster's store, this node's view of the store, and this node's claims in it."""
    own, signer = base.identity.member().identity, base.identity.signer()
    trust = Trust(cluster.unsigned_nodes == "accept", own, signer.name)

    config, keys_base, store = _build_store(base, cluster)
    view = ClusterView(keys_base, own, config.grace, trust)
    claims = Claims(store, view.keys, base.registry, base.identity.member, signer)
    return StoreParts(
        lease=config.lease, grace=config.grace, store=store, view=view, names=NameRecords(view, own), claims=claims
    )


def _build_store(base: Base, cluster: Cluster) -> tuple[Etcd | Kubernetes, str, ClusterStore]:
    """The settings of the cluster's store, the prefix of its keys, and its client."""

    def note(code: str, text: str) -> None:
        base.board.set(code, "", text)

    if cluster.kubernetes is None:
        assert cluster.etcd is not None, "the settings have one of the two"
        prefix = f"{cluster.etcd.prefix.rstrip('/')}/{base.settings.deployment}/"
        return cluster.etcd, prefix, EtcdClient(cluster.etcd, note)
    from cni.daemon.cluster.kubernetes.api_store import KubernetesStore
    from cni.daemon.cluster.kubernetes.lease_ring import LeaseRing

    config = cluster.kubernetes
    server = _api_server(base, config)
    ring = LeaseRing(server, config.namespace)
    objects_prefix = f"/{base.settings.deployment}/"
    return config, objects_prefix, KubernetesStore(objects_prefix, _node_name(config), server, ring)


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
    handler = Handler(new_lookup(settings, book, names, base.fence, base.registry), forwarding)
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
        fence=base.fence,
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
    """What is followed of a cluster of Kubernetes; None outside of one."""
    config = base.settings.cluster.kubernetes if base.settings.cluster is not None else None
    if config is None:
        return None
    from cni.daemon.kubernetes.directory import ClusterDirectory
    from cni.daemon.kubernetes.objects import NAMESPACES, pods_of

    namespaces = _follow(base, config, NAMESPACES, base.registry.namespaces)
    return ClusterDirectory(namespaces, _follow(base, config, pods_of(_node_name(config))))


def _follow(base: Base, config: Kubernetes, resource: Resource[T], kept: Table[T] | None = None) -> ResourceFollower[T]:
    """A follower of one resource, with connections of its own."""
    from cni.daemon.kubernetes.follower import ResourceFollower

    server = _api_server(base, config)
    return ResourceFollower(resource, server, board=base.board, crew=base.crew, kept=kept)


def _api_server(base: Base, config: Kubernetes) -> ApiServer:
    from cni.daemon.cluster.kubernetes.api_server import ApiServer

    return ApiServer(config, lambda code, text: base.board.set(code, "", text))


def _node_name(config: Kubernetes) -> str:
    return config.node_name or os.environ.get("ZLAYER_NODE_NAME") or socket.gethostname()


def build_node(base: Base, claims: Claims | None, resolver: Callable[[], DnsOffer]) -> NodeParts:
    """Segments, attachments and the data path. `claims`: None outside a cluster; `resolver`: for results."""
    settings, state, kernel, fence, ranges = base.settings, base.state, base.kernel, base.fence, base.ranges
    segments = Segments(
        state=state,
        kernel=kernel,
        fence=fence,
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
        fence=fence,
        segments=segments,
        release=release,
        ports=Ports(state, kernel, fence),
        container_mtu=base.container_mtu,
        events=base.events,
    )
    admission = Admission(settings, state, attacher, release, ranges.refuse)
    directory = _build_directory(base)
    overlay = NodeOverlay(
        settings=settings,
        state=state,
        kernel=kernel,
        fence=fence,
        ranges=ranges,
        node_settings=base.node_settings,
        board=base.board,
        attacher=attacher,
        admission=admission,
        resolver=resolver,
        directory=directory,
    )
    conditions = NodeConditions(
        fence=fence, ranges=ranges, node_settings=base.node_settings, board=base.board, alone=base.alone
    )
    data_path = DataPath(
        state=state,
        kernel=kernel,
        fence=fence,
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
    )


def build_mesh(base: Base) -> MeshParts:
    """The WireGuard devices and where their peers come from."""
    settings, state, registry, board = base.settings, base.state, base.registry, base.board
    tunnels, joined = Tunnels(settings.run_dir, settings.wireguard_engine), JoinedPeers(settings.data_dir)
    resolver, measurements = Resolver(base.crew, board, base.events), Measurements()
    planner = PathPlanner(tunnels, lambda: state.cidrs, base.ranges.inside, resolver, measurements)
    mesh = Mesh(
        settings=settings,
        state=state,
        registry=registry,
        identity=base.identity,
        fence=base.fence,
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


def build_traversal(base: Base, mesh: MeshParts) -> Traversal:
    """The search for paths to the peers."""
    pair_keys = PairKeys()
    return Traversal(
        state=base.state,
        identity=base.identity,
        mesh=mesh.mesh,
        rules=_nat_rules(base),
        servers=ServerRound(mesh.resolver.addresses),
        pair_keys=pair_keys,
        relays=RelayTalk(Relay(base.registry, base.board), pair_keys),
        forwarder=ForwarderClient(
            ForwarderProcess(f"{base.settings.run_dir}/{forwarder_words.NAME}", base.settings.run_dir),
            mesh.resolver.addresses,
            base.board,
        ),
        server=ZlayerServer(lambda: tuple(network_of(cidr) for cidr in base.state.cidrs), base.board, base.crew),
        board=base.board,
        events=base.events,
        crew=base.crew,
    )


def build_cluster(
    base: Base, access: StoreParts, node: NodeParts, mesh: MeshParts, traversal: Traversal
) -> ClusterSync:
    """This node's part in its cluster."""
    store, view, identity = access.store, access.view, base.identity
    signals = Signals()
    publisher = Publisher(store, view.keys.node(identity.member().identity), access.lease, identity)
    builder = NodeDocumentBuilder(
        settings=base.settings,
        state=base.state,
        identity=identity,
        registry=base.registry,
        store=store,
        nat_word=traversal.word,
    )
    return ClusterSync(
        lease=access.lease,
        view=view,
        registry=base.registry,
        membership=Membership(
            settings=base.settings,
            state=base.state,
            identity=identity,
            claims=access.claims,
            store=store,
            view=view,
            board=base.board,
            change_node=node.data_path.change_node,
        ),
        publisher=publisher,
        publication=Publication(builder, publisher, view, base.board, signals),
        names=NamePublication(base.state, base.registry, identity, store, access.names),
        carrier=Carrier(
            state=base.state,
            identity=identity,
            registry=base.registry,
            mesh=mesh.mesh,
            probes=TunnelProbes(mesh.mesh, mesh.tunnels),
            view=view,
            names=access.names,
            board=base.board,
            grace=access.grace,
        ),
        watch=StoreWatch(
            store=store, view=view, names=access.names, identity=identity, board=base.board, signals=signals
        ),
        signals=signals,
        board=base.board,
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
        fence=base.fence,
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
