"""What this node has seen of the store's history, to notice a store that was restored from an older backup.

The revision of a store grows with every change, and so does the revision at which a record was last changed. A store
that shows a lower revision of either kind went back. A restored store that has had further changes may show higher ones
only: then its history does not have the last change that this node saw.
"""

from __future__ import annotations

from collections.abc import Iterable

from cni.daemon.cluster.store import Event, KeyValue


class StoreHistory:
    """The history of the records below one prefix, as far as one node has seen it. For one thread."""

    def __init__(self, documents: str) -> None:
        """`documents`: the prefix of the node documents, whose revisions are compared."""
        self._documents = documents
        self._changed: dict[str, int] = {}  # the revision at which each document was last changed
        self.revision = 0  # at the last full read or event
        self.last: KeyValue | None = None  # the record of the last change; None if that was a deletion

    def went_back(self, items: Iterable[KeyValue], revision: int) -> bool:
        """Whether a full read shows an earlier state than the one seen before."""
        return revision < self.revision or any(item.changed < self._changed.get(item.key, 0) for item in items)

    def differs(self, then: KeyValue | None) -> bool:
        """Whether this is another history. `then`: what the store had at the key of `last` when `last` was written."""
        last = self.last
        return last is not None and (then is None or (then.changed, then.value) != (last.changed, last.value))

    def read(self, items: list[KeyValue], revision: int) -> None:
        """Take in a full read."""
        self.revision = revision
        self._changed = {item.key: item.changed for item in items if item.key.startswith(self._documents)}
        whole = [item for item in items if not item.cut]
        self.last = max(whole, key=lambda item: item.changed) if whole else None

    def follow(self, events: Iterable[Event], revision: int) -> None:
        """Take in the changes up to `revision`, in their order."""
        self.revision = max(self.revision, revision)
        for event in events:
            self.last = None if event.gone or event.item.cut else event.item
            if event.item.key.startswith(self._documents):
                self._changed[event.item.key] = event.item.changed
