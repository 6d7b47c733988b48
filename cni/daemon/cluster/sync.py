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

from cni.daemon.cluster.carrier import Carrier
from cni.daemon.cluster.membership import Membership
from cni.daemon.cluster.name_publication import NamePublication
from cni.daemon.cluster.publication import Publication
from cni.daemon.cluster.publisher import Publisher
from cni.daemon.cluster.store import PATIENCE, REFUSED, StoreError, Unreachable, WrongServer
from cni.daemon.cluster.store_watch import STEP, Signals, StoreWatch
from cni.daemon.cluster.view import ClusterView
from cni.daemon.events import Event, KernelChanged
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.identity import KeyPair
from cni.daemon.state.tables import Tables
from cni.errors import CniError, TryAgainLater
from cni.host.monitor import is_of_the_host
from cni.host.worker import Crew, Worker, beat

log = logging.getLogger(__name__)

GATHER = 0.03  # seconds in which changes are collected before they are published or applied
BACKOFF = (0.5, 5.0)  # seconds between two attempts to reach etcd: first and largest pause
FIRST = 10.0  # seconds for which the start waits for etcd when the node has no id yet
HOUSEKEEPING = 10.0  # seconds between two checks of this node's claims
PROBE = 2.0  # seconds between two checks that the watched endpoint answers
RETRY = 1.0  # seconds until a failed renewal is tried again; a lease lives for at least 5
STEPS = {
    "watch": STEP,
    "probe": "checking the endpoint of the cluster's store",
    "lease": "keeping this node's lease",
    "publish": "publishing this node's document and claims",
    "carry": "applying the cluster's changes to the mesh",
}


class ClusterSync:
    """Keeps this node in step with its cluster. Constructed only if the YAML configures a cluster."""

    def __init__(
        self,
        *,
        lease: int,
        view: ClusterView,
        registry: Tables,
        membership: Membership,
        publisher: Publisher,
        publication: Publication,
        names: NamePublication,
        carrier: Carrier,
        watch: StoreWatch,
        signals: Signals,
        board: ProblemBoard,
        crew: Crew,
    ) -> None:
        """`lease`: the life of this node's lease, in seconds."""
        self._lease, self._view, self._registry, self._membership = lease, view, registry, membership
        self._publisher, self._publication, self._carrier = publisher, publication, carrier
        self._names = names
        self._watch, self._signals, self._board, self._crew = watch, signals, board, crew
        self._publishing = threading.Lock()  # held while claims and document are written
        self._workers: list[Worker] = []

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
            except (StoreError, CniError) as error:
                self._board.set("not-joined", "", f"this node has not joined its cluster yet: {error}")
                time.sleep(BACKOFF[0])
            except Exception as error:
                log.exception("unexpected error while this node joined its cluster")
                text = f"this node has not joined its cluster yet: {type(error).__name__}: {error}"
                self._board.set("not-joined", "", text)
                return

    def start(self) -> None:
        """Start the threads."""
        for name, work, code in (
            ("watch", self._follow_store, "store-unreachable"),
            ("probe", self._probe, "store-unreachable"),
            ("lease", self._renew_lease, "store-unreachable"),
            ("publish", self._publish_and_claim, "store-writes-refused"),
            ("carry", self._apply_pending, "store-unreachable"),
        ):
            run = functools.partial(self._forever, name, work, code)
            self._workers.append(self._crew.worker(f"cluster-{name}", run))
        for worker in self._workers:
            worker.start()

    def on_node_facts_changed(self, _: Event) -> None:
        """Publish this node's document and names again if they differ."""
        self._signals.dirty.set()

    def on_kernel_changed(self, change: KernelChanged) -> None:
        """Have the next document name this node's addresses as they are then."""
        if is_of_the_host(change.link):
            self._publication.forget_addresses()

    @property
    def lag(self) -> int | None:
        """How many revisions the store is ahead of what it has told this node; None if that is unknown."""
        return self._watch.lag

    def stop(self) -> None:
        """Stop the threads. The lease stays for the next daemon, so the node does not count as gone."""
        for worker in self._workers:
            worker.retire()
        self._signals.end()

    def leave(self) -> None:
        """Withdraw this node's document and release its claims, for `uninstall`."""
        self.stop()
        try:
            self._publisher.revoke()
            self._membership.release()
        except StoreError as error:
            log.warning("cannot withdraw this node's records from etcd: %s", error)

    def rotate(self, use: Callable[[KeyPair], None]) -> str:
        """Replace this node's key: claim a new one, publish it, and then have the device `use` it. Returns the public
        key.

        If etcd is lost on the way, the node keeps its key; if the other nodes have the new one by then, they follow
        back when etcd returns. Raises TryAgainLater, and what `use` raises.
        """
        pair = KeyPair.fresh()
        with self._publishing:
            try:
                self._membership.claim_next_key(pair.public_key)
                if self._membership.has_claimed_its_key():  # else no other node has a key of this node
                    other = self._publication.publish_key(pair.public_key)
                    if other is not None:
                        raise TryAgainLater(f"the key was not replaced: {other} publishes under this node's identity")
                use(pair)
            except StoreError as error:
                text = "the key was not replaced: the other nodes cannot be told while the store cannot be asked"
                raise TryAgainLater(text, str(error)) from error
            finally:
                self._signals.dirty.set()  # the publisher writes the document with the key that is in use now
        return pair.public_key

    # --- joining -----------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Load the nodes that the last daemon recorded, so that an unreachable etcd removes no peer."""
        documents = self._registry.fleet.all()
        if documents:
            with self._view.lock:
                self._view.restore(documents.values())
            self._publication.admit()
            self._carrier.carry(self._watch.synced)

    # --- the threads -------------------------------------------------------------------------------------------------

    def _forever(self, name: str, work: Callable[[], None], refused: str) -> None:
        """Repeat `work` until `stop`, with a pause after an error. `refused`: the problem's code when etcd answers with
        a refusal."""
        pause = BACKOFF[0]
        while not self._signals.stop.is_set():
            beat()
            try:
                work()
                self._clear_step(name)
                pause = BACKOFF[0]
            except StoreError as error:
                self._note_store(error, refused)
                self._signals.stop.wait(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, BACKOFF[1])
            except CniError as error:
                self._board.set("not-joined", "", f"this node has not joined its cluster: {error}")
                self._signals.stop.wait(BACKOFF[1])
            except Exception as error:
                text = f"{STEPS[name]} failed, and is tried again: {type(error).__name__}: {error}"
                log.exception("unexpected error in the thread cluster-%s", name)
                self._board.note("cluster-step", STEPS[name], text)
                self._signals.stop.wait(BACKOFF[1])

    def _note_store(self, error: StoreError, refused: str) -> None:
        """Note why the store cannot be used. `refused`: the problem's code when etcd answers with a refusal."""
        if isinstance(error, WrongServer):
            code, other = "store-not-etcd", "store-unreachable"
        else:
            code, other = ("store-unreachable" if isinstance(error, Unreachable) else refused), "store-not-etcd"
        what = "refuses this node's writes" if code == "store-writes-refused" else "cannot be asked"
        self._board.note(code, "", f"{self._watch.store_name} {what}, and the node goes on with what it holds: {error}")
        self._board.clear(other)

    def _clear_step(self, name: str) -> None:
        self._board.clear("cluster-step", STEPS[name])

    def _follow_store(self) -> None:
        """Read all records, then watch. Returns only when all records must be read again."""
        if not self._membership.joined.is_set():
            self._membership.join()
        self._watch.follow()

    def _probe(self) -> None:
        """Check the endpoint of the watch: an etcd that hangs leaves the connection open and reports no change."""
        beat(PROBE)
        if not self._signals.stop.wait(PROBE):
            self._watch.check()
            self._clear_step("probe")

    def _apply_pending(self) -> None:
        """Apply the changes of the view to the mesh, those of `GATHER` seconds together."""
        self._signals.pending.wait(1.0)
        if self._signals.pending.is_set():
            self._signals.stop.wait(GATHER)
            self._signals.pending.clear()
        elif not self._view.is_waiting():
            return
        if self._signals.stop.is_set():
            return
        if self._publication.admitted:
            self._carrier.carry(self._watch.synced)
        elif self._publication.other is not None and self._publication.other.cloned:
            self._carrier.withdraw()

    # --- publishing --------------------------------------------------------------------------------------------------

    def _renew_lease(self) -> None:
        """Renew the lease every third of its life, independently of the other threads."""
        alive = time.monotonic()
        beat(self._lease)
        while not self._signals.stop.wait(max(0.1, alive + self._lease / 3 - time.monotonic())):
            try:
                self._publisher.renew()
            except StoreError as error:
                self._board.set(
                    "lease-not-renewed", "", f"this node's lease in {self._watch.store_name} cannot be renewed: {error}"
                )
                self._signals.stop.wait(RETRY)
                continue
            self._board.clear("lease-not-renewed")
            self._clear_step("lease")
            alive = time.monotonic()
            beat(self._lease)

    def _publish_and_claim(self) -> None:
        """Publish this node's document and reconcile its claims."""
        self._membership.joined.wait(1.0)
        if not self._membership.joined.is_set():
            return
        last = -HOUSEKEEPING
        while not self._signals.stop.is_set():
            beat(4 * PATIENCE)  # `rotate` may have the lock
            with self._publishing:
                last = self._publish_once(last)
            beat(HOUSEKEEPING)
            if self._signals.dirty.wait(HOUSEKEEPING):
                self._signals.stop.wait(GATHER)
                self._signals.dirty.clear()

    def _publish_names(self) -> None:
        """Publish this node's names. A role of an earlier version permits all records but these: the rest goes on.
        Raises StoreError."""
        try:
            self._names.publish(self._publisher.key, self._publisher.lease)
        except StoreError as error:
            if error.code != REFUSED:
                raise
            text = f"{self._watch.store_name} refuses the records of this node's names: {error}"
            self._board.note("names-not-shared", "", text)
        else:
            self._board.clear("names-not-shared")

    def _publish_once(self, last: float) -> float:
        """One pass. `last`: when the claims were last reconciled, on the monotonic clock; returns it. Raises
        StoreError, CniError."""
        if self._publication.other is not None:
            self._publication.publish()  # the claims are the other machine's: this one would release what it has not
            self._board.clear("store-writes-refused")
            self._clear_step("publish")
            return last
        self._membership.repair()
        if not self._membership.has_claimed_its_key():
            self._membership.claim_key()
        elif self._watch.synced and not self._membership.is_complete():
            log.warning("this node's claims are missing in etcd: claiming again")
            self._membership.join()
            last = -HOUSEKEEPING
        self._membership.note_losses()
        failed = None
        if self._watch.synced and time.monotonic() - last > HOUSEKEEPING:
            try:
                self._membership.reconcile()  # before the document: other nodes believe only what is claimed
                last = time.monotonic()
            except StoreError as error:
                failed = error
        self._publication.publish()
        if self._publication.other is None and self._watch.synced:
            self._publish_names()
        if failed is not None:
            raise failed
        self._board.clear("store-writes-refused")
        if self._watch.synced:
            self._watch.note_reached()
        self._clear_step("publish")
        return last
