"""This node's part in the cluster: it claims what it needs, says what it is, and follows what the others say.

Four threads: one watches etcd, one renews the lease, one publishes and claims, one carries what was heard to the mesh.
None waits for another: a store that refuses what is published still has its lease renewed. While etcd is down the node
goes on with what it holds, and only a service that needs a new subnet must take one of those held in advance. A node is
taken off a device only when it is missing after everything has been read, stays away for the grace period, and does not
answer by its tunnel either.
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
from cni.daemon.cluster.etcd_client import QUIET, EtcdClient
from cni.daemon.cluster.etcd_protocol import Compacted, EtcdError, Event, Unreachable
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

GATHER = 0.03  # seconds in which changes are put together before they are published, or carried on
BACKOFF = (0.5, 5.0)  # seconds between two tries to reach etcd, growing
FIRST = 10.0  # seconds that the start waits for etcd, where the node has no id yet
HOUSEKEEPING = 10.0  # seconds between two looks at our own claims
RETRY = 1.0  # seconds until a renewal that failed is tried again: a lease lives for 5 at least
STEPS = {
    "watch": "following the cluster's store",
    "lease": "keeping this node's lease",
    "publish": "keeping this node's word and claims",
    "carry": "carrying the cluster's news to the mesh",
}


class ClusterSync:
    """The node in its cluster. Made only where the YAML has one."""

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
        """`accept_unsigned`: nodes of versions that do not sign are believed as they were."""
        self._service, self._identity, self._registry, self._mesh = service, identity, registry, mesh
        self._where = where
        base = f"{where.prefix.rstrip('/')}/{service.settings.deployment}/"
        own, signer = identity.member().identity, identity.signer()
        trust = Trust(accept_unsigned, own, signer.name)
        self._view = ClusterView(base, own, where.grace, trust)
        self._etcd = EtcdClient(where)
        self._lock = threading.RLock()  # of the view
        self.claims = Claims(self._etcd, self._view.keys, registry, identity.member(), signer)
        self._membership = Membership(
            service, identity, self.claims, etcd=self._etcd, view=self._view, lock=self._lock, note=self._note
        )
        self._own_word = NodeDocumentBuilder(service, identity, registry, self._etcd, self.claims)
        self._publisher = Publisher(self._etcd, self._view.keys.node(own), where.lease, identity)
        self._revision = 0  # of the store, when it was last read or heard
        self._carrier = Carrier(service, identity, registry, mesh, view=self._view, lock=self._lock, grace=where.grace)
        self._synced = False
        # Two machines with one key would draw each other's traffic to themselves with every word they say, so this one
        # is silent until its claim and its word stand in etcd.
        self._admitted = False
        self._stop = threading.Event()
        self._dirty = threading.Event()  # there may be something to publish
        self._news = threading.Event()  # there may be something to carry on
        self._workers: list[Worker] = []
        mesh.cluster = self

    # --- from outside ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Before the node is made: know its id and slices, from the last time or from etcd, if that answers."""
        self._restore()
        self._membership.restore()
        end = time.monotonic() + FIRST
        while not self._membership.joined.is_set() and time.monotonic() < end:
            try:
                self._membership.join()
            except (EtcdError, CniError) as error:
                self._note("not-joined", f"this node has no part in the cluster yet: {error}")
                time.sleep(BACKOFF[0])
            except Exception as error:
                log.exception("unexpected error while this node joined its cluster")
                self._note("not-joined", f"this node has no part in the cluster yet: {type(error).__name__}: {error}")
                return

    def start(self) -> None:
        """Follow the cluster from now on."""
        self._service.state.changed = self._dirty.set
        for name, work, code in (
            ("watch", self._watching, "store-unreachable"),
            ("lease", self._renewing, "store-unreachable"),
            ("publish", self._publishing, "store-writes-refused"),
            ("carry", self._carrying, "store-unreachable"),
        ):
            run = functools.partial(self._forever, name, work, code)
            self._workers.append(self._service.crew.worker(f"cluster-{name}", run))
        self._membership.running = True
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        """Follow it no more. The lease is left to the next daemon: this node is not gone."""
        for worker in self._workers:
            worker.retire()
        self._stop.set()
        self._dirty.set()
        self._news.set()

    def leave(self) -> None:
        """This node is gone: its word and its claims are taken back, for `uninstall`."""
        self.stop()
        try:
            self._publisher.revoke()
            self._membership.give_back()
        except EtcdError as error:
            log.warning("etcd could not be told that this node leaves: %s", error)

    def nodes(self) -> list[tuple[NodeDocument, float | None]]:
        """The other nodes, with the seconds for which one was not heard of."""
        with self._lock:
            now = time.monotonic()
            return [
                (doc, now - self._view.lost[identity] if identity in self._view.lost else None)
                for identity, doc in self._view.nodes.items()
                if identity != self.claims.member.identity
            ]

    def departed(self) -> list[DepartedNode]:
        """The nodes that hold something in etcd and are not heard of. Raises TryAgainLater."""
        return self._departures().all()[0]

    def forget(self, word: str) -> DepartedNode:
        """What a departed node holds is nobody's any more. Raises InvalidConfig if it is not one, or has just come
        back; TryAgainLater."""
        return self._departures().forget(word)

    def _departures(self) -> DepartedNodes:
        with self._lock:
            names = {identity: doc.name for identity, doc in self._view.nodes.items()}
        return DepartedNodes(self._etcd, self._view.keys, self.claims.member.identity, names)

    def _note(self, code: str, words: str) -> None:
        self._service.board.set(code, "", words)

    # --- joining -----------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Whom the last daemon knew, so that nobody is forgotten because etcd is down just now."""
        known = self._registry.fleet.all()
        if known:
            with self._lock:
                self._view.restore(known.values())
            self._admitted = True
            self._carrier.carry(self._synced)

    # --- the threads -------------------------------------------------------------------------------------------------

    def _forever(self, name: str, work: Callable[[], None], refused: str) -> None:
        """`refused`: the code of the problem when etcd answers, and says no."""
        pause = BACKOFF[0]
        while not self._stop.is_set():
            beat()
            try:
                work()
                self._well(name)
                pause = BACKOFF[0]
            except EtcdError as error:
                code = "store-unreachable" if isinstance(error, Unreachable) else refused
                what = "takes nothing from this node" if code == "store-writes-refused" else "cannot be asked"
                self._note(code, f"etcd {what}, and the node goes on with what it holds: {error}")
                self._stop.wait(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, BACKOFF[1])
            except CniError as error:
                self._note("not-joined", f"this node has no part in the cluster: {error}")
                self._stop.wait(BACKOFF[1])
            except Exception as error:
                said = f"{STEPS[name]} failed, and is tried again: {type(error).__name__}: {error}"
                log.exception("the thread cluster-%s met an unexpected error", name)
                self._service.board.note("cluster-step", STEPS[name], said)
                self._stop.wait(BACKOFF[1])

    def _well(self, name: str) -> None:
        self._service.board.clear("cluster-step", STEPS[name])

    def _watching(self) -> None:
        """Read everything, then follow. Comes back only to read everything again."""
        if not self._membership.joined.is_set():
            self._membership.join()
        items, revision = everything(self._etcd, self._view.keys.base)
        with self._lock:
            self._view.load(as_records(items), time.monotonic(), again=revision >= self._revision)
        self._revision = revision
        self._synced = True
        self._note("store-unreachable", "")
        self._well("watch")
        self._news.set()
        self._dirty.set()
        while not self._stop.is_set():
            try:
                beat(QUIET)
                for now, events in self._etcd.watch(self._view.keys.base, revision + 1):
                    if now < revision:
                        log.info("reading the cluster anew: etcd was put back to an earlier time")
                        return
                    self._heard(events)
                    self._revision = revision = max(revision, now) if events else revision
                    self._note("store-unreachable", "")
                    beat(QUIET)
                    if self._stop.is_set():
                        return
            except Compacted as error:
                log.info("reading the cluster anew: %s", error)
                return
            except EtcdError:
                self._synced = False
                raise

    def _heard(self, events: list[Event]) -> None:
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
            self._news.set()

    def _carrying(self) -> None:
        """Bring what was heard to the mesh, much of it at once."""
        self._news.wait(1.0)
        if self._news.is_set():
            self._stop.wait(GATHER)
            self._news.clear()
        elif not self._view.is_waiting():
            return
        if self._admitted and not self._stop.is_set():
            self._carrier.carry(self._synced)

    # --- publishing --------------------------------------------------------------------------------------------------

    def _renewing(self) -> None:
        """Renew the lease by a clock of its own, whatever becomes of the rest."""
        alive = time.monotonic()
        beat(self._where.lease)
        while not self._stop.wait(max(0.1, alive + self._where.lease / 3 - time.monotonic())):
            try:
                self._publisher.keep()
            except EtcdError as error:
                self._note("lease-not-renewed", f"this node's lease in etcd cannot be renewed: {error}")
                self._stop.wait(RETRY)
                continue
            self._note("lease-not-renewed", "")
            self._well("lease")
            alive = time.monotonic()
            beat(self._where.lease)

    def _publishing(self) -> None:
        """Say what this node is, look after its claims."""
        self._membership.joined.wait(1.0)
        if not self._membership.joined.is_set():
            return
        last = -HOUSEKEEPING
        while not self._stop.is_set():
            self._membership.repair()
            if not self._membership.has_claimed_its_key():
                self._membership.claim_key()
            elif self._synced and not self._membership.is_complete():
                log.warning("etcd does not know this node's claims: making them again")
                self._membership.join()
                last = -HOUSEKEEPING
            self._membership.heed_losses()
            failed = None
            if self._synced and time.monotonic() - last > HOUSEKEEPING:
                try:
                    self._membership.reconcile()  # before the word: the others believe what is claimed
                    last = time.monotonic()
                except EtcdError as error:
                    failed = error
            self._publish()
            if failed is not None:
                raise failed
            self._note("store-writes-refused", "")
            if self._synced:
                self._note("store-unreachable", "")
            self._well("publish")
            beat(HOUSEKEEPING)
            if self._dirty.wait(HOUSEKEEPING):
                self._stop.wait(GATHER)
                self._dirty.clear()

    def _publish(self) -> None:
        """What this node is stands in etcd. Raises EtcdError."""
        doc, left = self._own_word.document()
        said = f"the other nodes would refuse all that this node says of itself, so it leaves out {', '.join(left[:5])}"
        self._note("word-too-long", said if left else "")
        with self._lock:
            shown = self._view.own_word
        if self._publisher.stands(doc, shown):
            return
        other = self._publisher.say(doc)
        if other is None:
            self._admitted = True
            self._note("identity-in-use", "")
            self._news.set()  # our dedicated devices decide which peers we have
            return
        # Its own past, which will be over with its lease, or a copy of it.
        self._note(
            "identity-in-use",
            f"{other} speaks as this node: its lease is not over yet, or one data directory is a copy of the other's; "
            "if it stays so, remove identity.json on one of them",
        )
        self._stop.wait(1.0)
        self._dirty.set()
