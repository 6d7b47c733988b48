"""This node's part in the cluster: its claims, its node document, and the records of the other nodes.

Five threads: one watches etcd, one checks that the watched endpoint answers, one renews the lease, one publishes and
claims, one applies changes to the mesh. No thread waits for another: the lease is renewed even when etcd refuses what
is published. While etcd is down the node works with what it holds; only a service that needs a new subnet must take one
that was claimed in advance. A node is removed from a device only when all three hold: it is missing after a full read,
it stays missing for the grace period, and its tunnel does not answer.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from collections.abc import Callable

from cni.daemon import settings as settings_module
from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.cluster.carrier import Carrier
from cni.daemon.cluster.claims import Claims
from cni.daemon.cluster.departed_nodes import DepartedNode, DepartedNodes
from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.etcd_protocol import Compacted, EtcdError, Event, NotEtcd, Unreachable
from cni.daemon.cluster.etcd_transport import PATIENCE, QUIET
from cni.daemon.cluster.membership import Membership
from cni.daemon.cluster.node_document import NodeDocumentBuilder
from cni.daemon.cluster.publisher import Publisher
from cni.daemon.cluster.reading import as_records, everything
from cni.daemon.cluster.store_records import NodeDocument
from cni.daemon.cluster.trust import Trust
from cni.daemon.cluster.view import ClusterView
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.state.identity import Identity
from cni.daemon.state.tables import Tables
from cni.errors import CniError
from cni.host.worker import Worker, beat

log = logging.getLogger(__name__)

GATHER = 0.03  # seconds in which changes are collected before they are published or applied
BACKOFF = (0.5, 5.0)  # seconds between two attempts to reach etcd: first and largest pause
FIRST = 10.0  # seconds for which the start waits for etcd when the node has no id yet
HOUSEKEEPING = 10.0  # seconds between two checks of this node's claims
PROBE = 2.0  # seconds between two checks that the watched endpoint answers
RETRY = 1.0  # seconds until a failed renewal is tried again; a lease lives for at least 5
STEPS = {
    "watch": "following the cluster's store",
    "probe": "checking the endpoint of the cluster's store",
    "lease": "keeping this node's lease",
    "publish": "publishing this node's document and claims",
    "carry": "applying the cluster's changes to the mesh",
}


class ClusterSync:
    """Keeps this node in step with its cluster. Constructed only if the YAML configures a cluster."""

    def __init__(
        self,
        service: OverlayService,
        identity: Identity,
        registry: Tables,
        mesh: Mesh,
        where: settings_module.Etcd,
        *,
        accept_unsigned: bool = True,
    ) -> None:
        """`where`: how etcd is reached; `accept_unsigned`: unsigned records of earlier versions are accepted."""
        self._service, self._identity, self._registry, self._mesh = service, identity, registry, mesh
        self._where = where
        base = f"{where.prefix.rstrip('/')}/{service.settings.deployment}/"
        own, signer = identity.member().identity, identity.signer()
        trust = Trust(accept_unsigned, own, signer.name)
        self._view = ClusterView(base, own, where.grace, trust)
        self._etcd = EtcdClient(where, self._note)
        self._lock = threading.RLock()  # guards the view
        self.claims = Claims(self._etcd, self._view.keys, registry, identity.member(), signer)
        self._membership = Membership(
            service, identity, self.claims, etcd=self._etcd, view=self._view, lock=self._lock, note=self._note
        )
        self._document_builder = NodeDocumentBuilder(service, identity, registry, self._etcd, self.claims)
        self._publisher = Publisher(self._etcd, self._view.keys.node(own), where.lease, identity)
        self._revision = 0  # of the store, at the last read or watch event
        self._carrier = Carrier(service, identity, registry, mesh, view=self._view, lock=self._lock, grace=where.grace)
        self._synced = False
        # Apply nothing until this node's key claim and document are committed in etcd: if two machines use the same
        # WireGuard key, each document update redirects the other's traffic.
        self._admitted = False
        self._stop = threading.Event()
        self._dirty = threading.Event()  # there may be a change to publish
        self._pending = threading.Event()  # there may be a change of the view to apply to the mesh
        self._workers: list[Worker] = []
        mesh.cluster = self

    # --- from outside ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Determine the node's id and slices before the node is set up: from the records, or from etcd if it answers
        within `FIRST` seconds."""
        self._restore()
        self._membership.restore()
        end = time.monotonic() + FIRST
        while not self._membership.joined.is_set() and time.monotonic() < end:
            try:
                self._membership.join()
            except (EtcdError, CniError) as error:
                self._note("not-joined", f"this node has not joined its cluster yet: {error}")
                time.sleep(BACKOFF[0])
            except Exception as error:
                log.exception("unexpected error while this node joined its cluster")
                self._note("not-joined", f"this node has not joined its cluster yet: {type(error).__name__}: {error}")
                return

    def start(self) -> None:
        """Start the threads."""
        self._service.state.changed = self._dirty.set
        for name, work, code in (
            ("watch", self._watch_store, "store-unreachable"),
            ("probe", self._probe, "store-unreachable"),
            ("lease", self._renew_lease, "store-unreachable"),
            ("publish", self._publish_and_claim, "store-writes-refused"),
            ("carry", self._apply_pending, "store-unreachable"),
        ):
            run = functools.partial(self._forever, name, work, code)
            self._workers.append(self._service.crew.worker(f"cluster-{name}", run))
        self._membership.running = True
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        """Stop the threads. The lease stays for the next daemon, so the node does not count as gone."""
        for worker in self._workers:
            worker.retire()
        self._stop.set()
        self._dirty.set()
        self._pending.set()

    def leave(self) -> None:
        """Withdraw this node's document and release its claims, for `uninstall`."""
        self.stop()
        try:
            self._publisher.revoke()
            self._membership.release()
        except EtcdError as error:
            log.warning("cannot withdraw this node's records from etcd: %s", error)

    def nodes(self) -> list[tuple[NodeDocument, float | None]]:
        """The other nodes, each with the seconds since its document disappeared; None while the document exists."""
        with self._lock:
            now = time.monotonic()
            return [
                (doc, now - self._view.lost[identity] if identity in self._view.lost else None)
                for identity, doc in self._view.nodes.items()
                if identity != self.claims.member.identity
            ]

    def departed(self) -> list[DepartedNode]:
        """The nodes that hold claims in etcd and publish no document. Raises TryAgainLater."""
        return self._departures().all()[0]

    def forget(self, word: str) -> DepartedNode:
        """Delete the claims of the departed node that `word` names. Raises InvalidConfig if it is no departed node or
        has just returned; TryAgainLater if etcd does not answer."""
        return self._departures().forget(word)

    def _departures(self) -> DepartedNodes:
        with self._lock:
            names = {identity: doc.name for identity, doc in self._view.nodes.items()}
        return DepartedNodes(self._etcd, self._view.keys, self.claims.member.identity, names)

    def _note(self, code: str, text: str) -> None:
        self._service.board.set(code, "", text)

    # --- joining -----------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Load the nodes that the last daemon recorded, so that an unreachable etcd removes no peer."""
        documents = self._registry.fleet.all()
        if documents:
            with self._lock:
                self._view.restore(documents.values())
            self._admitted = True
            self._carrier.carry(self._synced)

    # --- the threads -------------------------------------------------------------------------------------------------

    def _forever(self, name: str, work: Callable[[], None], refused: str) -> None:
        """Repeat `work` until `stop`, with a pause after an error. `refused`: the problem's code when etcd answers with
        a refusal."""
        pause = BACKOFF[0]
        while not self._stop.is_set():
            beat()
            try:
                work()
                self._clear_step(name)
                pause = BACKOFF[0]
            except EtcdError as error:
                self._note_store(error, refused)
                self._stop.wait(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, BACKOFF[1])
            except CniError as error:
                self._note("not-joined", f"this node has not joined its cluster: {error}")
                self._stop.wait(BACKOFF[1])
            except Exception as error:
                text = f"{STEPS[name]} failed, and is tried again: {type(error).__name__}: {error}"
                log.exception("unexpected error in the thread cluster-%s", name)
                self._service.board.note("cluster-step", STEPS[name], text)
                self._stop.wait(BACKOFF[1])

    def _note_store(self, error: EtcdError, refused: str) -> None:
        """Note why the store cannot be used. `refused`: the problem's code when etcd answers with a refusal."""
        if isinstance(error, NotEtcd):
            code, other = "store-not-etcd", "store-unreachable"
        else:
            code, other = ("store-unreachable" if isinstance(error, Unreachable) else refused), "store-not-etcd"
        what = "refuses this node's writes" if code == "store-writes-refused" else "cannot be asked"
        self._note(code, f"etcd {what}, and the node goes on with what it holds: {error}")
        self._note(other, "")

    def _note_reached(self) -> None:
        for code in ("store-unreachable", "store-not-etcd"):
            self._note(code, "")

    def _clear_step(self, name: str) -> None:
        self._service.board.clear("cluster-step", STEPS[name])

    def _watch_store(self) -> None:
        """Read all records, then watch. Returns only when all records must be read again."""
        if not self._membership.joined.is_set():
            self._membership.join()
        items, revision = everything(self._etcd, self._view.keys.base)
        with self._lock:
            self._view.load(as_records(items), time.monotonic(), again=revision >= self._revision)
        self._revision = revision
        self._synced = True
        self._note_reached()
        self._clear_step("watch")
        self._pending.set()
        self._dirty.set()
        while not self._stop.is_set():
            try:
                began = time.monotonic()
                beat(QUIET + PATIENCE)
                for now, events in self._etcd.watch(self._view.keys.base, revision + 1):
                    if now < revision:
                        log.info("reading all cluster records again: etcd was restored to an earlier revision")
                        return
                    self._apply_events(events)
                    self._revision = revision = max(revision, now) if events else revision
                    self._note_reached()
                    beat(QUIET + PATIENCE)
                    if self._stop.is_set():
                        return
            except Compacted as error:
                log.info("reading all cluster records again: %s", error)
                return
            except EtcdError as error:
                self._synced = False
                if isinstance(error, Unreachable) and time.monotonic() - began > PATIENCE:
                    log.warning("reading all cluster records again: %s", error)
                    return  # another endpoint may answer at once
                raise

    def _probe(self) -> None:
        """Check the endpoint of the watch: an etcd that hangs leaves the connection open and reports no change."""
        beat(PROBE)
        if not self._stop.wait(PROBE):
            self._etcd.check(self._view.keys.base)
            self._clear_step("probe")

    def _apply_events(self, events: list[Event]) -> None:
        own = self._view.keys.node(self.claims.member.identity)
        with self._lock:
            for event in events:
                item = event.item
                if event.gone:
                    self._view.gone(item.key, time.monotonic())
                else:
                    self._view.put(item.key, None if item.cut else item.value, item.created)
                if item.key == own:
                    self._dirty.set()
            self._view.settle(time.monotonic())
            if self._view.overwritten(self.claims.member.identity):
                self._dirty.set()
        if events:
            self._pending.set()

    def _apply_pending(self) -> None:
        """Apply the changes of the view to the mesh, those of `GATHER` seconds together."""
        self._pending.wait(1.0)
        if self._pending.is_set():
            self._stop.wait(GATHER)
            self._pending.clear()
        elif not self._view.is_waiting():
            return
        if self._admitted and not self._stop.is_set():
            self._carrier.carry(self._synced)

    # --- publishing --------------------------------------------------------------------------------------------------

    def _renew_lease(self) -> None:
        """Renew the lease every third of its life, independently of the other threads."""
        alive = time.monotonic()
        beat(self._where.lease)
        while not self._stop.wait(max(0.1, alive + self._where.lease / 3 - time.monotonic())):
            try:
                self._publisher.renew()
            except EtcdError as error:
                self._note("lease-not-renewed", f"this node's lease in etcd cannot be renewed: {error}")
                self._stop.wait(RETRY)
                continue
            self._note("lease-not-renewed", "")
            self._clear_step("lease")
            alive = time.monotonic()
            beat(self._where.lease)

    def _publish_and_claim(self) -> None:
        """Publish this node's document and reconcile its claims."""
        self._membership.joined.wait(1.0)
        if not self._membership.joined.is_set():
            return
        last = -HOUSEKEEPING
        while not self._stop.is_set():
            self._membership.repair()
            if not self._membership.has_claimed_its_key():
                self._membership.claim_key()
            elif self._synced and not self._membership.is_complete():
                log.warning("this node's claims are missing in etcd: claiming again")
                self._membership.join()
                last = -HOUSEKEEPING
            self._membership.note_losses()
            failed = None
            if self._synced and time.monotonic() - last > HOUSEKEEPING:
                try:
                    self._membership.reconcile()  # before the document: other nodes believe only what is claimed
                    last = time.monotonic()
                except EtcdError as error:
                    failed = error
            self._publish()
            if failed is not None:
                raise failed
            self._note("store-writes-refused", "")
            if self._synced:
                self._note_reached()
            self._clear_step("publish")
            beat(HOUSEKEEPING)
            if self._dirty.wait(HOUSEKEEPING):
                self._stop.wait(GATHER)
                self._dirty.clear()

    def _publish(self) -> None:
        """Bring this node's document in etcd up to date. Raises EtcdError."""
        doc, left_out = self._document_builder.document()
        text = (
            "the other nodes would refuse this node's whole document, "
            f"so the document leaves out {', '.join(left_out[:5])}"
        )
        self._note("word-too-long", text if left_out else "")
        with self._lock:
            watched = self._view.own_record
        if self._publisher.is_current(doc, watched):
            return
        other = self._publisher.publish(doc)
        if other is None:
            self._admitted = True
            self._note("identity-in-use", "")
            self._pending.set()  # this node's dedicated devices decide which peers it has
            return
        # An earlier daemon of this node, whose lease will end, or a machine with a copy of its data directory.
        self._note(
            "identity-in-use",
            f"{other} speaks as this node: its lease is not over yet, or one data directory is a copy of the other's; "
            "if it stays so, remove identity.json on one of them",
        )
        self._stop.wait(1.0)
        self._dirty.set()
