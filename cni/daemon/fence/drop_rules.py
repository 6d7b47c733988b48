"""The log rules of `drops` (drop_log.py), in the tables only while a reader of the dropped packets exists."""

from __future__ import annotations

import logging

from cni.daemon.fence.tables import FenceTables
from cni.errors import FenceFailed

log = logging.getLogger(__name__)


class DropRules:
    """Adds and deletes the log rules. Thread-safe."""

    def __init__(self, tables: FenceTables) -> None:
        self._tables = tables

    def sample_drops(self) -> None:
        """Has each rule that drops log a sample of its packets. Idempotent. Raises FenceFailed."""
        tables = self._tables
        with tables.lock:
            loader = tables.in_force
            if loader is None:
                raise FenceFailed("the fence is not in force", tables.trouble)
            if not tables.alone():
                raise FenceFailed("another daemon works in this network namespace", "its fence has the same tables")
            loader.sample(tables.inventory.desired())

    def end_sample(self) -> None:
        """Deletes the log rules. Idempotent; what cannot be deleted now, the next load deletes."""
        with self._tables.lock:
            loader = self._tables.loader
            if loader is not None and not self._tables.ended:
                try:
                    loader.end_sample()
                except FenceFailed as error:
                    log.warning("the log rules of `drops` could not be deleted: %s: %s", error.msg, error.details)
