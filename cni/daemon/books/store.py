"""The daemon's records on disk: SQLite in the run directory, for as long as this boot lasts.

Namespaces, veths and rules end with the boot, so records of an earlier one describe nothing: they are discarded by
boot id, whether or not the run directory was wiped. For the same reason nothing is synced to the platter: what the
kernel's page cache holds survives a kill -9, and a power cut ends the boot.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cni.errors import InputOutput, StateUnusable

log = logging.getLogger(__name__)

SCHEMA = 1  # raised when an older program could misread what a newer one writes
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Change = tuple[str, str, bytes | None]
"""(kind, key, document), or None in place of the document to delete the record."""


class Store:
    """Records by (kind, key). Safe to use from any thread; every `apply` is one transaction."""

    def __init__(self, path: Path, boot_id: str | None = None) -> None:
        """Open or begin the store at `path`.

        A file that is damaged, or of another boot, is set aside (`.damaged`) or discarded and begun anew. Raises
        StateUnusable when a newer version wrote it, InputOutput when the file cannot be opened or written.
        """
        self.path = path
        self._lock = threading.Lock()
        boot = boot_id if boot_id is not None else BOOT_ID.read_text().strip()
        self._db, found = self._open_or_set_aside()
        self.fresh = found.get("boot") != boot
        if self.fresh and found:
            # Of another boot, in whatever schema: it describes nothing.
            self._db.close()
            self._remove("", "-wal", "-shm")
            self._db, found = self._open_or_set_aside()
        if found.get("schema", SCHEMA) > SCHEMA:
            self._db.close()
            raise StateUnusable(
                f"{path} was written by a newer version of zlayer-cni",
                f"it has schema {found['schema']}, this program knows up to {SCHEMA}: upgrade, or reboot the node",
            )
        try:
            with self._db:
                self._db.execute("REPLACE INTO meta VALUES ('schema', ?)", (SCHEMA,))
                self._db.execute("REPLACE INTO meta VALUES ('boot', ?)", (boot,))
        except sqlite3.Error as error:
            raise InputOutput(f"cannot write the records at {path}: {error}") from error

    def _open_or_set_aside(self) -> tuple[sqlite3.Connection, dict[str, Any]]:
        """The database and what it says of itself; a damaged file is set aside and begun anew."""
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            if not self.path.exists() or (isinstance(error, sqlite3.OperationalError) and not _is_damage(error)):
                raise InputOutput(f"cannot open the records at {self.path}: {error}") from error
            log.error("the records at %s are damaged (%s): set aside, beginning anew", self.path, error)
        self.path.replace(self.path.with_name(self.path.name + ".damaged"))
        self._remove("-wal", "-shm")
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            raise InputOutput(f"cannot begin new records at {self.path}: {error}") from error

    def load(self, kind: str) -> list[tuple[str, bytes]]:
        """Every record of a kind, in the order they were first written."""
        with self._lock:
            rows = self._db.execute("SELECT key, body FROM record WHERE kind = ? ORDER BY rowid", (kind,))
            return [(key, body) for key, body in rows]

    def apply(self, changes: Iterable[Change]) -> None:
        """Write and delete records, all or none. Raises InputOutput (disk full, read-only, ...)."""
        with self._lock:
            try:
                with self._db:
                    for kind, key, body in changes:
                        if body is None:
                            self._db.execute("DELETE FROM record WHERE kind = ? AND key = ?", (kind, key))
                        else:
                            self._db.execute(
                                "INSERT INTO record VALUES (?, ?, ?)"
                                " ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body",
                                (kind, key, body),
                            )
            except sqlite3.Error as error:
                raise InputOutput(f"cannot write the records at {self.path}: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _open(self) -> tuple[sqlite3.Connection, dict[str, Any]]:
        db = sqlite3.connect(self.path, isolation_level="DEFERRED", check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            said = [row[0] for row in db.execute("PRAGMA quick_check")]
            if said != ["ok"]:
                raise sqlite3.DatabaseError(f"malformed: {said[0]}")
            db.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value)")
            db.execute(
                "CREATE TABLE IF NOT EXISTS record (kind TEXT, key TEXT, body BLOB NOT NULL, PRIMARY KEY (kind, key))"
            )
            found = dict(db.execute("SELECT name, value FROM meta"))
        except sqlite3.Error:
            db.close()
            raise
        self.path.chmod(0o600)
        return db, found

    def _remove(self, *suffixes: str) -> None:
        for suffix in suffixes:
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def _is_damage(error: sqlite3.OperationalError) -> bool:
    """An operational error that means a damaged file rather than a full disk or a missing permission."""
    return "malformed" in str(error) or "not a database" in str(error)
