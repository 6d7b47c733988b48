"""Brings this node's document in the store up to date, and tells when this node may apply what the store has."""

from __future__ import annotations

from cni.daemon.cluster.node_document import NodeDocumentBuilder
from cni.daemon.cluster.publisher import Publisher
from cni.daemon.cluster.store_watch import Signals
from cni.daemon.cluster.view import ClusterView
from cni.daemon.problem_board import ProblemBoard


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

    @property
    def admitted(self) -> bool:
        """Whether this node may apply the view of the store."""
        return self._admitted

    def admit(self) -> None:
        """This node may apply the view: an earlier daemon of it was admitted."""
        self._admitted = True

    def publish_key(self, public_key: str) -> str | None:
        """Publish the document with a key that the node will use. Returns None, or the name and addresses of another
        machine that publishes under this node's identity. Raises EtcdError, InputOutput."""
        return self._publisher.publish(self._builder.document(public_key)[0])

    def publish(self) -> None:
        """Bring this node's document in etcd up to date. Raises EtcdError."""
        doc, left_out = self._builder.document()
        text = (
            "the other nodes would refuse this node's whole document, "
            f"so the document leaves out {', '.join(left_out[:5])}"
        )
        self._board.set("word-too-long", "", text if left_out else "")
        with self._view.lock:
            watched = self._view.own_record
        if self._publisher.is_current(doc, watched):
            return
        other = self._publisher.publish(doc)
        if other is None:
            self._admitted = True
            self._board.clear("identity-in-use")
            self._signals.pending.set()  # this node's dedicated devices decide which peers it has
            return
        # An earlier daemon of this node, whose lease will end, or a machine with a copy of its data directory.
        self._board.note(
            "identity-in-use",
            "",
            f"{other} speaks as this node: its lease is not over yet, or one data directory is a copy of the other's; "
            "if it stays so, remove identity.json on one of them",
        )
        self._signals.stop.wait(1.0)
        self._signals.dirty.set()
