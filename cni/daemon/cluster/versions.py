"""Which nodes of the cluster have run another version than this one for too long. Pure but for its memory."""

from __future__ import annotations

from collections.abc import Iterable

from cni.daemon.model.cluster_records import NodeDocument

ROLLING = 3600.0  # seconds that versions may differ: an upgrade goes from node to node


class Versions:
    """Since when each node has had another version. For one thread at a time."""

    def __init__(self, own: str) -> None:
        """`own`: this daemon's version."""
        self._own = own
        self._since: dict[str, float] = {}

    def differing(self, docs: Iterable[NodeDocument], now: float) -> dict[str, str]:
        """A text for each node that has differed for ROLLING, by its identity. `now`: seconds of a monotonic clock."""
        others = {doc.identity: doc for doc in docs if doc.version not in ("", self._own)}
        self._since = {identity: self._since.get(identity, now) for identity in others}
        return {
            identity: f"{doc.name} (node {doc.node_id}) runs version {doc.version}, this node {self._own}, for more"
            f" than {ROLLING / 60:.0f} minutes"
            for identity, doc in others.items()
            if now - self._since[identity] >= ROLLING
        }
