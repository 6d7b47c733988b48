"""The queue of deletions that no daemon was running to carry out: files in `<run directory>/deletions`, written
atomically.

The records of attachments are in the run directory and do not survive a reboot, so the queue is there too and has the
same lifetime. A file's name is a hash of (network, container, interface), so a repeated DEL is one entry. Its content
is the body of the request on the CNI socket, which the daemon replays, with the keys NETNS_ERROR, QUEUED_NS and BOOT_ID
(docs/cni-socket.md).

Plugins take the directory's lock shared; the daemon takes it exclusively while it drains. Entries appear by rename.
"""

import os

from cni import files, lock_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 256
"""The largest number of entries. Beyond it DEL still succeeds, and garbage collection removes the attachment."""

PERMANENT_ERRORS = (1, 2, 4, 6, 7, 8)
"""Codes of errors in the request itself (cni/errors.py): every later attempt would fail with the same error."""

_LOCK = ".lock"
_LEFT = (".new", ".tmp")  # ends of names that are being written; the second is an earlier version's
_PATIENCE = 0.5  # seconds that a plugin waits while the daemon drains; a write without the lock is safe too, by rename


class QueueFull(Exception):
    """The queue has LIMIT entries."""


class Lock:
    """The queue's lock, a context manager: exclusive for the daemon (`whole`), shared for a plugin.

    `held`: whether the lock was taken within `patience` seconds.
    """

    def __init__(self, run_dir: str, *, whole: bool, patience: float) -> None:
        os.makedirs(directory(run_dir), 0o700, exist_ok=True)
        self._fd = lock_files.opened(os.path.join(directory(run_dir), _LOCK))
        try:
            self.held = lock_files.take(self._fd, shared=not whole, patience=patience)
        except OSError:
            self.held = False  # A file system without locks: the rename is safe without one.

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)


def directory(run_dir: str) -> str:
    """The directory of the queue of a run directory."""
    return os.path.join(run_dir, "deletions")


def key(attachment: tuple[str, str, str]) -> str:
    """The entry's name: the 128-bit FNV-1a hash of the three parts, each preceded by its length."""
    value = 0x6C62272E07BB014262B821756295C58D
    for part in attachment:
        raw = part.encode("utf-8", "surrogateescape")
        for byte in len(raw).to_bytes(4, "big") + raw:
            value = ((value ^ byte) * 0x0000000001000000000000000000013B) & ((1 << 128) - 1)
    return f"{value:032x}"


def add(run_dir: str, attachment: tuple[str, str, str], body: bytes) -> str:
    """Write an entry durably; returns its name. An entry of the same attachment is replaced.

    Raises QueueFull, and OSError if it cannot be written; then no part of it stays.
    """
    name = key(attachment)
    with Lock(run_dir, whole=False, patience=_PATIENCE):
        target = os.path.join(directory(run_dir), name)
        if not os.path.exists(target) and len(names(run_dir)) >= LIMIT:
            raise QueueFull(f"there are {LIMIT} already")
        files.write(target, body, alone=False)
    return name


def names(run_dir: str) -> list[str]:
    """The names of all entries; empty if there is no queue."""
    try:
        return sorted(name for name in os.listdir(directory(run_dir)) if len(name) == 32 and "." not in name)
    except FileNotFoundError:
        return []


def entries(run_dir: str) -> "Iterator[tuple[str, bytes]]":
    """(name, request body) of every entry, oldest first; an entry that is removed meanwhile is left out."""
    by_age = []
    for name in names(run_dir):
        path = os.path.join(directory(run_dir), name)
        try:
            with open(path, "rb") as file:
                by_age.append((os.fstat(file.fileno()).st_mtime_ns, name, file.read()))
        except FileNotFoundError:
            continue
    for _, name, body in sorted(by_age):
        yield name, body


def remove(run_dir: str, name: str) -> None:
    """Remove an entry that was carried out. Safe to repeat."""
    try:
        os.unlink(os.path.join(directory(run_dir), name))
    except FileNotFoundError:
        return


def sweep(run_dir: str) -> None:
    """Remove the temporary files of killed writers. Requires the exclusive lock."""
    try:
        leftovers = [
            name for name in os.listdir(directory(run_dir)) if name.endswith((".new", ".tmp"))
        ]  # .tmp: an earlier version's
    except FileNotFoundError:
        return
    for name in leftovers:
        remove(run_dir, name)
