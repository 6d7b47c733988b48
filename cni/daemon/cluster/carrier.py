"""Applies the view of the cluster's store to this node's devices, fence, records and problems."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from cni import __version__
from cni.daemon.cluster.belief import believe
from cni.daemon.cluster.name_records import NameRecords
from cni.daemon.cluster.versions import Versions
from cni.daemon.cluster.view import ClusterView
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.mesh.probes import TunnelProbes
from cni.daemon.model.cluster_records import NodeDocument
from cni.daemon.model.fleet import GLOBAL, Fleet
from cni.daemon.model.wireguard import network_of
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import State
from cni.daemon.state.tables import Tables

log = logging.getLogger(__name__)

MOST_REFUSED = 20  # unused records that `status` lists with a sentence each


class Carrier:
    """Applies the view of one node. For one thread at a time."""

    def __init__(
        self,
        *,
        state: State,
        identity: Identity,
        registry: Tables,
        mesh: Mesh,
        probes: TunnelProbes,
        view: ClusterView,
        names: NameRecords,
        board: ProblemBoard,
        grace: float,
    ) -> None:
        """`grace`: seconds for which a node without a document stays a peer."""
        self._state, self._identity, self._registry, self._mesh = state, identity, registry, mesh
        self._probes, self._view, self._board, self._grace = probes, view, board, grace
        self._names = names
        self._versions = Versions(__version__)
        self._own = identity.member().identity

    def carry(self, synced: bool) -> None:
        """Apply the view once. `synced`: all records have been read and the watch runs; otherwise no node counts as
        missing."""
        now = time.monotonic()
        with self._view.lock:
            lost = [self._view.nodes[identity] for identity in self._view.lost] if synced else []
        probes = {doc.public_key: str(network_of(doc.slices[0])[1]) for doc in lost if doc.slices}
        answering = self._probes.answering(probes) if probes else set()
        if synced:
            silent = {doc.identity for doc in lost if doc.public_key not in answering}
            self._names.settle({doc.identity for doc in lost}, silent)
        with self._view.lock:
            kept = self._prune(now, answering) if synced else {}
            self._view.settle(now)
            ranges = tuple(self._state.cidrs)
            belief = believe(self._view, self._own, self._own_keys(), self._dedicated(), ranges)
            foreign = self._view.foreign(self._own)
            behind = self._view.is_behind()
            refused, forged = self._view.refused(MOST_REFUSED), self._view.strangers.texts()
        board = self._board
        if not behind:
            board.clear("store-went-back")
        board.set_all("node-unheard", kept)
        board.set_all("record-refused", refused)
        board.set_all("record-not-its-own", forged)
        board.set_all("peer-key-conflict", dict(belief.conflicts))
        board.set_all("claim-missing", dict(belief.unclaimed))
        board.set_all("range-differs", dict(belief.ranges))
        board.set_all("version-differs", self._versions.differing(belief.docs.values(), now))
        with board.step("cluster-step", "foreign", "the other nodes' subnets could not be set apart"):
            self._state.set_foreign(foreign)
        with board.step("cluster-step", "fleet", "the other nodes could not be made peers"):
            self._mesh.set_fleet(belief.fleet)
        if synced:
            with board.step("cluster-step", "records", "the other nodes could not be written down"):
                self._record(belief.docs)

    def withdraw(self) -> None:
        """Remove every peer of the cluster: another machine goes on under this node's identity."""
        with self._board.step("cluster-step", "fleet", "the other nodes could not be removed from the devices"):
            self._mesh.set_fleet(Fleet({GLOBAL: ()}, {}))
        self._record({})  # or the next daemon would make them peers again

    def _record(self, docs: Mapping[str, NodeDocument]) -> None:
        """Record the nodes that the next daemon of this boot must know."""
        before = self._registry.fleet.all()
        gone: dict[str, NodeDocument | None] = dict.fromkeys(before.keys() - docs.keys())
        changes = gone | {i: doc for i, doc in docs.items() if before.get(i) != doc}
        if changes:
            self._registry.fleet.apply(changes)

    def _prune(self, now: float, answering: set[str]) -> dict[str, str]:
        """Remove the nodes that have had no document for the grace period, except those whose tunnel answers. Returns
        the latter by identity, with a sentence each."""
        kept = {}
        for doc in self._view.overdue(now, self._grace):
            if doc.public_key in answering:
                node = f"{doc.name} (node {doc.node_id}, {doc.identity})"
                kept[doc.identity] = f"{node} is not heard of in etcd, but its tunnel answers: it stays a peer"
                continue
            log.warning("node %s (%d) is gone: removing its tunnels", doc.name, doc.node_id)
            self._view.drop(doc.identity)
        return kept

    def _own_keys(self) -> set[str]:
        """The public keys of this node's devices."""
        dedicated = (self._identity.dedicated(service).public_key for service in self._dedicated())
        return {self._identity.public_key(), *dedicated}

    def _dedicated(self) -> list[str]:
        return [s.name for s in self._state.services.values() if s.mode == "dedicated"]
