"""Brings this node's document in the store up to date, and tells when this node may apply what the store has."""

from __future__ import annotations

import time

from cni.daemon.cluster.node_document import NodeDocumentBuilder
from cni.daemon.cluster.publisher import Other, Publisher
from cni.daemon.cluster.store_watch import Signals
from cni.daemon.cluster.view import ClusterView
from cni.daemon.problem_board import ProblemBoard

TELL = 60.0  # seconds for which the machine that goes on tells of its clone


class Publication:
    """The publication of one node. For one thread at a time, except `admitted`."""

    def __init__(
        self,
        builder: NodeDocumentBuilder,
        publisher: Publisher,
        view: ClusterView,
        board: ProblemBoard,
        signals: Signals,
    ) -> None:
        self._builder, self._publisher, self._view = builder, publisher, view
        self._board, self._signals = board, signals
        # Apply nothing until this node's key claim and document are committed in etcd: if two machines use the same
        # WireGuard key, each document update redirects the other's traffic.
        self._admitted = False
        self._other: Other | None = None  # the machine that publishes under this node's identity
        self._met_clone = 0.0  # when this node was published beside a clone, on the monotonic clock; 0.0: never

    @property
    def admitted(self) -> bool:
        """Whether this node may apply the view of the store."""
        return self._admitted

    @property
    def other(self) -> Other | None:
        """The other machine that publishes under this node's identity, so that this one does not."""
        return self._other

    def admit(self) -> None:
        """This node may apply the view: an earlier daemon of it was admitted."""
        self._admitted = True

    def forget_addresses(self) -> None:
        """This node's addresses may be others now."""
        self._builder.forget_addresses()

    def publish_key(self, public_key: str) -> str | None:
        """Publish the document with a key that the node will use. Returns None, or the name and addresses of another
        machine that publishes under this node's identity. Raises StoreError, InputOutput."""
        other = self._publisher.publish(self._builder.document(public_key)[0])
        return other.text if other is not None else None

    def publish(self) -> None:
        """Bring this node's document in etcd up to date. Raises StoreError."""
        doc, left_out = self._builder.document()
        text = (
            "the other nodes would refuse this node's whole document, "
            f"so the document leaves out {', '.join(left_out[:5])}"
        )
        self._board.set("word-too-long", "", text if left_out else "")
        with self._view.lock:
            watched = self._view.own_record
        if self._met_clone and time.monotonic() - self._met_clone > TELL:
            self._met_clone = 0.0
            self._board.clear("identity-cloned")
        if self._publisher.is_current(doc, watched):
            return
        drawn = self._publisher.drawn
        self._other = self._publisher.publish(doc)
        if self._other is None:
            self._admitted = True
            self._board.clear("identity-in-use")
            self._note_clone_of_this(drawn)
            self._signals.pending.set()  # this node's dedicated devices decide which peers it has
            return
        if self._other.cloned:
            self._withdraw(self._other)
        elif not self._board.subjects("identity-cloned"):
            # An earlier daemon of this node, whose lease will end, or a machine with a copy of its data directory.
            self._board.note(
                "identity-in-use",
                "",
                f"{self._other.text} speaks as this node: its lease is not over yet, or one data directory is a copy "
                "of the other's; if it stays so, remove identity.json on one of them",
            )
        self._signals.stop.wait(1.0)
        self._signals.dirty.set()

    def _withdraw(self, other: Other) -> None:
        """Another machine with this process's memory goes on under the identity: this one gives up its peers."""
        self._met_clone, self._admitted = 0.0, False
        self._board.note(
            "identity-cloned",
            "",
            f"{other.text} runs as this node: one of the two virtual machines is a clone of the other, with its "
            "memory; this one has no peers and publishes nothing while the other one does. Stop the daemon on "
            "one of them, remove identity.json there, and reboot it",
        )
        self._signals.pending.set()

    def _note_clone_of_this(self, before: str) -> None:
        """This machine is published. `before`: what it had drawn before; a new draw means that it met a clone."""
        if self._publisher.drawn != before:
            self._met_clone = time.monotonic()
            self._board.note(
                "identity-cloned",
                "",
                "another machine has run as this node: it is a clone of this virtual machine, with its memory, or this "
                "one was set back to a snapshot; this one goes on, and a clone has no peers until it gets an identity "
                "of its own (remove identity.json there, and reboot it)",
            )
        elif not self._met_clone:
            self._board.clear("identity-cloned")
