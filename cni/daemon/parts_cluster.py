"""The parts of a daemon in a cluster: its access to the store, and its part in the cluster. Imported only where the
settings name a cluster: these modules, with http.client, take a tenth of a daemon's start.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni.daemon.cluster.carrier import Carrier
from cni.daemon.cluster.claims import Claims
from cni.daemon.cluster.departed_nodes import DepartedNodes
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
from cni.daemon.mesh.probes import TunnelProbes
from cni.daemon.nat.traversal import Traversal
from cni.daemon.parts import Base, MeshParts, NodeParts, api_server, node_name
from cni.daemon.settings import Cluster, Etcd, Kubernetes


@dataclass(frozen=True, kw_only=True)
class StoreParts:
    """The access of one node to the store of its cluster."""

    lease: int  # the life of a lease, in seconds
    grace: int  # seconds for which a node without a document stays a peer
    store: ClusterStore
    view: ClusterView
    names: NameRecords
    claims: Claims


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
    from cni.daemon.cluster.kubernetes.objects import EXTERNAL_NODE, NODE

    config = cluster.kubernetes
    server = api_server(base, config)
    ring = LeaseRing(server, config.namespace)
    objects_prefix = f"/{base.settings.deployment}/"
    machine = EXTERNAL_NODE if config.external_node else NODE
    return config, objects_prefix, KubernetesStore(objects_prefix, machine, node_name(config), server, ring)


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


def build_departed(base: Base, access: StoreParts) -> DepartedNodes:
    """The nodes that have left the cluster."""
    return DepartedNodes(access.store, access.view, base.identity)
