"""The daemon's records on disk: SQLite in the run directory, for as long as this boot lasts.

Namespaces, veths and rules end with the boot, so records of an earlier one describe nothing: they are discarded by
boot id, whether or not the run directory was wiped. For the same reason nothing is synced to the platter: what the
kernel's page cache holds survives a kill -9, and a power cut ends the boot.

What the file should say is in memory too. Somebody who deletes it, replaces it or writes into it while we run finds it
written anew (`intact`, `rewrite`): the next daemon must not learn from his file who has which address.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from cni import proc
from cni.errors import InputOutput, StateUnusable

log = logging.getLogger(__name__)

SCHEMA = 1  # raised when an older program could misread what a newer one writes

Change = tuple[str, str, bytes | None]
"""(kind, key, document), or None in place of the document to delete the record."""

_Files = tuple[tuple[int, int, int, int], ...]
"""What tells whether anybody but us has written: device, inode, size and time of the file, and of its log."""


class Records(Protocol):
    """What the books need of a store. `fresh`: there were no records of this boot."""

    fresh: bool

    def load(self, kind: str) -> list[tuple[str, bytes]]: ...
    def apply(self, changes: Iterable[Change]) -> None: ...


class Copy:
    """The records of this boot as another daemon has written them, read once; changes stay in memory."""

    def __init__(self, path: Path) -> None:
        """Empty where there are none that can be read. Raises StateUnusable when a newer version wrote them."""
        self._records: dict[tuple[str, str], bytes] = {}
        self.fresh = True
        if not path.is_file():
            return
        try:
            with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
                db.text_factory = _text
                found = _meaning(db)
                if found.get("boot") != proc.boot_id():
                    return
                if found.get("schema", SCHEMA) > SCHEMA:
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
        """Every record of a kind, in the order they were first written."""
        return [(key, body) for (each, key), body in self._records.items() if each == kind]

    def apply(self, changes: Iterable[Change]) -> None:
        """Change the copy."""
        for kind, key, body in changes:
            if body is None:
                self._records.pop((kind, key), None)
            else:
                self._records[kind, key] = body


class Store:
    """Records by (kind, key). Safe to use from any thread; every `apply` is one transaction."""

    def __init__(self, path: Path, boot_id: str | None = None) -> None:
        """Open or begin the store at `path`.

        A file that is damaged, or of another boot, is set aside (`.damaged`) or discarded and begun anew. Raises
        StateUnusable when a newer version wrote it, InputOutput when the file cannot be opened or written.
        """
        self.path = path
        self._lock = threading.Lock()
        boot = boot_id if boot_id is not None else proc.boot_id()
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
        self._boot = boot
        try:
            with self._db:
                self._describe(self._db)
                self._records = dict(self._readable(self._db))
        except sqlite3.Error as error:
            raise InputOutput(f"cannot write the records at {path}: {error}") from error
        self._files = self._look()

    def _readable(self, db: sqlite3.Connection) -> Iterator[tuple[tuple[str, str], bytes]]:
        """The records as they were written; what only somebody else's hand can have put there goes."""
        for row, kind, key, body in db.execute("SELECT rowid, kind, key, body FROM record ORDER BY rowid").fetchall():
            if isinstance(kind, str) and isinstance(key, str) and isinstance(body, bytes | str):
                yield (kind, key), body.encode() if isinstance(body, str) else body
            else:
                log.error("the records at %s have one that is none of ours, and it goes: %r %r", self.path, kind, key)
                db.execute("DELETE FROM record WHERE rowid = ?", (row,))

    def _describe(self, db: sqlite3.Connection) -> None:
        db.execute("REPLACE INTO meta VALUES ('schema', ?)", (SCHEMA,))
        db.execute("REPLACE INTO meta VALUES ('boot', ?)", (self._boot,))

    def _open_or_set_aside(self) -> tuple[sqlite3.Connection, dict[str, Any]]:
        """The database and what it says of itself; a damaged file, or what is none, is set aside and begun anew."""
        if (self.path.exists() or self.path.is_symlink()) and not self.path.is_file():
            log.error("what is at %s is no file: set aside, beginning anew", self.path)
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
        except OSError:  # a directory is in the way, or is what goes
            self.path.replace(f"{aside}-{time.time_ns()}")
        self._remove("-wal", "-shm")

    def load(self, kind: str) -> list[tuple[str, bytes]]:
        """Every record of a kind, in the order they were first written."""
        with self._lock:
            return [(key, body) for (each, key), body in self._records.items() if each == kind]

    def apply(self, changes: Iterable[Change]) -> None:
        """Write and delete records, all or none. Raises InputOutput (disk full, read-only, ...)."""
        changes = list(changes)
        with self._lock:
            try:
                if self._look() != self._files:
                    self._rewrite()  # else the change would go to a file that nobody will read
                self._write(changes)
            except (sqlite3.Error, OSError) as error:
                raise InputOutput(f"cannot write the records at {self.path}: {error}") from error
            for kind, key, body in changes:
                if body is None:
                    self._records.pop((kind, key), None)
                else:
                    self._records[kind, key] = body
            self._files = self._look()

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

    # --- somebody else's hands --------------------------------------------------------------------------------------

    def intact(self) -> bool:
        """Whether the file at our path is the one we write to, and nobody else has written to it."""
        with self._lock:
            return self._look() == self._files

    def rewrite(self) -> None:
        """Write every record anew, as we know them, to a new file. Raises InputOutput."""
        with self._lock:
            try:
                self._rewrite()
            except (sqlite3.Error, OSError) as error:
                raise InputOutput(f"cannot write the records at {self.path}: {error}") from error
            self._files = self._look()

    def _rewrite(self) -> None:
        """Beside the old file first, so that one which cannot be written changes nothing."""
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            self._remove(".new", ".new-journal")
            with contextlib.closing(sqlite3.connect(fresh)) as db, db:
                fresh.chmod(0o600)
                _lay_out(db)
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

    def _look(self) -> _Files:
        found = []
        for path in (self.path, self.path.with_name(self.path.name + "-wal")):
            try:
                status = path.stat()
                found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError:
                found.append((0, 0, 0, 0))
        return tuple(found)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _open(self) -> tuple[sqlite3.Connection, dict[str, Any]]:
        db = sqlite3.connect(self.path, isolation_level="DEFERRED", check_same_thread=False)
        db.text_factory = _text
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            said = [row[0] for row in db.execute("PRAGMA quick_check")]
            if said != ["ok"]:
                raise sqlite3.DatabaseError(f"malformed: {said[0]}")
            _lay_out(db)
            found = _meaning(db)
        except sqlite3.Error:
            db.close()
            raise
        self.path.chmod(0o600)
        return db, found

    def _remove(self, *suffixes: str) -> None:
        for suffix in suffixes:
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def _lay_out(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value)")
    db.execute("CREATE TABLE IF NOT EXISTS record (kind TEXT, key TEXT, body BLOB NOT NULL, PRIMARY KEY (kind, key))")


def _meaning(db: sqlite3.Connection) -> dict[str, Any]:
    """What the file says of itself. Raises sqlite3.DatabaseError for tables that are not ours, in no schema."""
    if _columns(db, "meta") != [("name", 1), ("value", 0)]:
        raise sqlite3.DatabaseError("malformed: the table meta is not ours")
    found = dict(db.execute("SELECT name, value FROM meta"))
    schema = found.get("schema", SCHEMA)
    if not isinstance(schema, int):
        raise sqlite3.DatabaseError(f"malformed: it has schema {schema!r}")
    if schema <= SCHEMA and _columns(db, "record") != [("kind", 1), ("key", 2), ("body", 0)]:
        raise sqlite3.DatabaseError("malformed: the table record is not ours")
    return found


def _columns(db: sqlite3.Connection, table: str) -> list[tuple[str, int]]:
    return [(row[1], row[5]) for row in db.execute(f"PRAGMA table_info({table})")]


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _is_damage(error: sqlite3.Error) -> bool:
    """An error that means a damaged file rather than a full disk or a missing permission."""
    return "malformed" in str(error) or "not a database" in str(error)
