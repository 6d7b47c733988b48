"""The daemon's records on disk: SQLite in the run directory, valid for this boot.

Namespaces, veths and rules end with the boot, so records of an earlier boot describe nothing: they are discarded by
boot id, whether or not the run directory was wiped. For the same reason nothing is synced to the disk: the kernel's
page cache survives a kill -9, and a power cut ends the boot.

The store keeps every record in memory as well. If the file is deleted, replaced or written to from outside while the
daemon runs, the store writes it anew (`intact`, `rewrite`): the next daemon must not read address owners from a foreign
file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from cni import proc
from cni.errors import InputOutput, StateUnusable

log = logging.getLogger(__name__)

SCHEMA = 1  # incremented when an older program could misread the records of a newer one

Change = tuple[str, str, bytes | None]
"""(kind, key, document), or None in place of the document to delete the record."""

_Files = tuple[tuple[int, int, int, int], ...]
"""Device, inode, size and mtime (ns) of the file and of its write-ahead log: a change that the store did not make tells
that another program has written."""


class Records(Protocol):
    """What the state needs of a store. `fresh`: there were no records of this boot."""

    fresh: bool

    def load(self, kind: str) -> list[tuple[str, bytes]]: ...
    def apply(self, changes: Iterable[Change]) -> None: ...


class Copy:
    """The records that another daemon of this boot has written, read once; changes stay in memory."""

    def __init__(self, path: Path) -> None:
        """Read the records; empty if none can be read. Raises StateUnusable if a newer version wrote them."""
        self._records: dict[tuple[str, str], bytes] = {}
        self.fresh = True
        if not path.is_file():
            return
        try:
            with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
                db.text_factory = _text
                meta = _read_meta(db)
                if meta.get("boot") != proc.boot_id():
                    return
                if meta.get("schema", SCHEMA) > SCHEMA:
                    raise StateUnusable(f"{path} was written by a newer version of zlayer-cni", "upgrade this program")
                rows = db.execute("SELECT kind, key, body FROM record ORDER BY rowid").fetchall()
        except sqlite3.Error as error:
            log.warning("the records at %s cannot be read: %s", path, error)
            return
        self._records = {
            (kind, key): body.encode() if isinstance(body, str) else body
            for kind, key, body in rows
            if isinstance(kind, str) and isinstance(key, str) and isinstance(body, bytes | str)
        }
        self.fresh = False

    def load(self, kind: str) -> list[tuple[str, bytes]]:
        """Every record of a kind, in the order of the first writes."""
        return [(key, body) for (record_kind, key), body in self._records.items() if record_kind == kind]

    def apply(self, changes: Iterable[Change]) -> None:
        """Change the copy."""
        for kind, key, body in changes:
            if body is None:
                self._records.pop((kind, key), None)
            else:
                self._records[kind, key] = body


class Store:
    """Records by (kind, key). Thread-safe; every `apply` is one transaction."""

    def __init__(self, path: Path, boot_id: str | None = None) -> None:
        """Open or create the store at `path`.

        A damaged file is set aside (`.damaged`), a file of another boot is discarded; then a new one is created. Raises
        StateUnusable if a newer version wrote the file, InputOutput if it cannot be opened or written.
        """
        self.path = path
        self._paths = (str(path), f"{path}-wal")
        self._lock = threading.Lock()
        boot = boot_id if boot_id is not None else proc.boot_id()
        self._db, meta = self._open_or_set_aside()
        self.fresh = meta.get("boot") != boot
        if self.fresh and meta:
            # Of another boot, in any schema: the records describe nothing.
            self._db.close()
            self._remove("", "-wal", "-shm")
            self._db, meta = self._open_or_set_aside()
        if meta.get("schema", SCHEMA) > SCHEMA:
            self._db.close()
            raise StateUnusable(
                f"{path} was written by a newer version of zlayer-cni",
                f"it has schema {meta['schema']}, this program knows up to {SCHEMA}: upgrade, or reboot the node",
            )
        self._boot = boot
        try:
            with self._db:
                self._describe(self._db)
                self._records = dict(self._readable(self._db))
        except sqlite3.Error as error:
            raise InputOutput(f"cannot write the records at {path}: {error}") from error
        self._files = self._file_state()

    def _readable(self, db: sqlite3.Connection) -> Iterator[tuple[tuple[str, str], bytes]]:
        """The records; a row whose types this program never writes is deleted."""
        for row, kind, key, body in db.execute("SELECT rowid, kind, key, body FROM record ORDER BY rowid").fetchall():
            if isinstance(kind, str) and isinstance(key, str) and isinstance(body, bytes | str):
                yield (kind, key), body.encode() if isinstance(body, str) else body
            else:
                log.error(
                    "the records at %s have a row of a foreign type, which is deleted: %r %r", self.path, kind, key
                )
                db.execute("DELETE FROM record WHERE rowid = ?", (row,))

    def _describe(self, db: sqlite3.Connection) -> None:
        db.execute("REPLACE INTO meta VALUES ('schema', ?)", (SCHEMA,))
        db.execute("REPLACE INTO meta VALUES ('boot', ?)", (self._boot,))

    def _open_or_set_aside(self) -> tuple[sqlite3.Connection, dict[str, Any]]:
        """The database and its meta table; a damaged file, or anything that is no file, is set aside, and a new file is
        created."""
        if (self.path.exists() or self.path.is_symlink()) and not self.path.is_file():
            log.error("%s is not a file: set aside, beginning anew", self.path)
            self._set_aside()
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            if not self.path.exists() or (isinstance(error, sqlite3.OperationalError) and not _is_damage(error)):
                raise InputOutput(f"cannot open the records at {self.path}: {error}") from error
            log.error("the records at %s are damaged (%s): set aside, beginning anew", self.path, error)
        self._set_aside()
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            raise InputOutput(f"cannot begin new records at {self.path}: {error}") from error

    def _set_aside(self) -> None:
        aside = self.path.with_name(self.path.name + ".damaged")
        try:
            self.path.replace(aside)
        except OSError:  # the target or the source is a directory
            self.path.replace(f"{aside}-{time.time_ns()}")
        self._remove("-wal", "-shm")

    def load(self, kind: str) -> list[tuple[str, bytes]]:
        """Every record of a kind, in the order of the first writes."""
        with self._lock:
            return [(key, body) for (record_kind, key), body in self._records.items() if record_kind == kind]

    def apply(self, changes: Iterable[Change]) -> None:
        """Write and delete records, all or none. Raises InputOutput (disk full, read-only, ...)."""
        changes = list(changes)
        with self._lock:
            try:
                if self._file_state() != self._files:
                    self._rewrite()  # else the change would go to a file that the next daemon does not read
                self._write(changes)
            except (sqlite3.Error, OSError) as error:
                raise InputOutput(f"cannot write the records at {self.path}: {error}") from error
            for kind, key, body in changes:
                if body is None:
                    self._records.pop((kind, key), None)
                else:
                    self._records[kind, key] = body
            self._files = self._file_state()

    def _write(self, changes: Iterable[Change]) -> None:
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

    # --- changes from outside ---------------------------------------------------------------------------------------

    def intact(self) -> bool:
        """Whether the file at `path` is the one that the store writes to, and no other program has written to it."""
        with self._lock:
            return self._file_state() == self._files

    def rewrite(self) -> None:
        """Write every record from memory to a new file. Raises InputOutput."""
        with self._lock:
            try:
                self._rewrite()
            except (sqlite3.Error, OSError) as error:
                raise InputOutput(f"cannot write the records at {self.path}: {error}") from error
            self._files = self._file_state()

    def _rewrite(self) -> None:
        """Write beside the old file first, so that a failed write changes nothing."""
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            self._remove(".new", ".new-journal")
            with contextlib.closing(sqlite3.connect(fresh)) as db, db:
                fresh.chmod(0o600)
                _create_tables(db)
                self._describe(db)
                rows = [(kind, key, body) for (kind, key), body in self._records.items()]
                db.executemany("INSERT INTO record VALUES (?, ?, ?)", rows)
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._remove("-wal", "-shm")
            fresh.replace(self.path)
        finally:
            self._remove(".new", ".new-journal")
        self._db, _ = self._open()

    def _file_state(self) -> _Files:
        identities = []
        for path in self._paths:
            try:
                status = os.stat(path)  # noqa: PTH116 - six times in an ADD; a Path costs as much as the call
                identities.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError:
                identities.append((0, 0, 0, 0))
        return tuple(identities)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _open(self) -> tuple[sqlite3.Connection, dict[str, Any]]:
        db = sqlite3.connect(self.path, isolation_level="DEFERRED", check_same_thread=False)
        db.text_factory = _text
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            check = [row[0] for row in db.execute("PRAGMA quick_check")]
            if check != ["ok"]:
                raise sqlite3.DatabaseError(f"malformed: {check[0]}")
            _create_tables(db)
            meta = _read_meta(db)
        except sqlite3.Error:
            db.close()
            raise
        self.path.chmod(0o600)
        return db, meta

    def _remove(self, *suffixes: str) -> None:
        for suffix in suffixes:
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def _create_tables(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value)")
    db.execute("CREATE TABLE IF NOT EXISTS record (kind TEXT, key TEXT, body BLOB NOT NULL, PRIMARY KEY (kind, key))")


def _read_meta(db: sqlite3.Connection) -> dict[str, Any]:
    """The meta table. Raises sqlite3.DatabaseError if the tables are not this program's, or the schema is no number."""
    if _columns(db, "meta") != [("name", 1), ("value", 0)]:
        raise sqlite3.DatabaseError("malformed: the table meta is not ours")
    meta = dict(db.execute("SELECT name, value FROM meta"))
    schema = meta.get("schema", SCHEMA)
    if not isinstance(schema, int):
        raise sqlite3.DatabaseError(f"malformed: it has schema {schema!r}")
    if schema <= SCHEMA and _columns(db, "record") != [("kind", 1), ("key", 2), ("body", 0)]:
        raise sqlite3.DatabaseError("malformed: the table record is not ours")
    return meta


def _columns(db: sqlite3.Connection, table: str) -> list[tuple[str, int]]:
    return [(row[1], row[5]) for row in db.execute(f"PRAGMA table_info({table})")]


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the error means a damaged file, and not a full disk or a missing permission."""
    return "malformed" in str(error) or "not a database" in str(error)
