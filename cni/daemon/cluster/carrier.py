"""What was heard in the cluster's store, brought to this node's devices, fence, records and problems."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.cluster.belief import believe
from cni.daemon.cluster.store_records import NodeDocument
from cni.daemon.cluster.view import ClusterView
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model.wireguard import network_of
from cni.daemon.state.identity import Identity
from cni.daemon.state.tables import Tables

log = logging.getLogger(__name__)

MOST_REFUSED = 20  # records that are not used of which `status` has a sentence each


class Carrier:
    """Of one node. One thread at a time."""

    def __init__(
        self,
        service: OverlayService,
        identity: Identity,
        registry: Tables,
        mesh: Mesh,
        *,
        view: ClusterView,
        lock: threading.RLock,
        grace: float,
    ) -> None:
        """`lock`: of the view; `grace`: seconds for which a node that is not heard of stays a peer."""
        self._service, self._identity, self._registry, self._mesh = service, identity, registry, mesh
        self._view, self._lock, self._grace = view, lock, grace
        self._own = identity.member().identity

    def carry(self, synced: bool) -> None:
        """Once. `synced`: everything has been read, and is followed; else none is missing."""
        now = time.monotonic()
        with self._lock:
            lost = [self._view.nodes[identity] for identity in self._view.lost] if synced else []
        probes = {doc.public_key: str(network_of(doc.slices[0])[1]) for doc in lost if doc.slices}
        answering = self._mesh.answering(probes) if probes else set()
        with self._lock:
            kept = self._prune(now, answering) if synced else {}
            self._view.settle(now)
            ranges = tuple(self._service.state.cidrs)
            belief = believe(self._view, self._own, self._own_keys(), self._dedicated(), ranges)
            foreign = self._view.foreign(self._own)
            refused, strange = self._view.refused(MOST_REFUSED), self._view.strangers.texts()
        board = self._service.board
        board.set_all("node-unheard", kept)
        board.set_all("record-refused", refused)
        board.set_all("record-not-its-own", strange)
        board.set_all("peer-key-conflict", dict(belief.conflicts))
        board.set_all("claim-missing", dict(belief.unclaimed))
        with board.step("cluster-step", "foreign", "the other nodes' subnets could not be set apart"):
            self._service.state.set_foreign(foreign)
        with board.step("cluster-step", "fleet", "the other nodes could not be made peers"):
            self._mesh.set_fleet(belief.fleet)
        if synced:
            with board.step("cluster-step", "records", "the other nodes could not be written down"):
                self._remember(belief.docs)

    def _remember(self, docs: Mapping[str, NodeDocument]) -> None:
        """Write down whom the next daemon of this boot must know."""
        before = self._registry.fleet.all()
        gone: dict[str, NodeDocument | None] = dict.fromkeys(before.keys() - docs.keys())
        changes = gone | {i: doc for i, doc in docs.items() if before.get(i) != doc}
        if changes:
            self._registry.fleet.apply(changes)

    def _prune(self, now: float, answering: set[str]) -> dict[str, str]:
        """Forget who is not heard of for the grace period, unless its tunnel answers: those, with a sentence each."""
        kept = {}
        for doc in self._view.overdue(now, self._grace):
            if doc.public_key in answering:
                who = f"{doc.name} (node {doc.node_id}, {doc.identity})"
                kept[doc.identity] = f"{who} is not heard of in etcd, but its tunnel answers: it stays a peer"
                continue
            log.warning("node %s (%d) is gone: its tunnels are taken down", doc.name, doc.node_id)
            self._view.drop(doc.identity)
        return kept

    def _own_keys(self) -> set[str]:
        """The public keys of this node's devices."""
        return {self._identity.public_key(), *(self._identity.dedicated(each).public_key for each in self._dedicated())}

    def _dedicated(self) -> list[str]:
        return [s.name for s in list(self._service.state.services.values()) if s.mode == "dedicated"]
