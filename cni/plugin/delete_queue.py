"""Deletions that no daemon was there to carry out: files in `<run directory>/deletions`, written whole or not at all.

The attachments they are about live in the run directory and end with the boot, so the queue lives there too and
survives exactly as long. A file's name is a hash of (network, container, interface), so a repeated DEL is one
entry; its content is the body of the door's request, replayed by the daemon, plus three keys:

    NETNS_ERROR=ESTALE     the namespace was not kept; its path may be another container's by now
    QUEUED_NS=<ns>         CLOCK_BOOTTIME when it was written: an attachment made later is not meant
    BOOT_ID=<uuid>         the boot it belongs to: a deletion of an earlier one is void

Plugins share the directory's lock; the daemon takes it whole while it drains. Writers and readers agree by rename.
"""

import os

from cni import files, lock_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 256
"""The most deletions that are kept. Beyond that DEL still succeeds, and garbage collection has the rest to do."""

HOPELESS = (1, 2, 4, 6, 7, 8)
"""Error codes that say that a request is wrong in itself (cni/errors.py): every later try would fail like the first."""

_LOCK = ".lock"
_LEFT = (".new", ".tmp")  # ends of names that are being written; the second is an earlier version's
_PATIENCE = 0.5  # seconds a plugin waits while the daemon drains; rename makes writing without the lock safe as well


class QueueFull(Exception):
    """There are LIMIT deletions already."""


class Lock:
    """The queue's lock, as a context: whole for the daemon, shared for a plugin, given back at the end.

    `held` tells whether it was got within `patience` seconds.
    """

    def __init__(self, run_dir: str, *, whole: bool, patience: float) -> None:
        os.makedirs(directory(run_dir), 0o700, exist_ok=True)
        self._fd = lock_files.opened(os.path.join(directory(run_dir), _LOCK))
        try:
            self.held = lock_files.take(self._fd, shared=not whole, patience=patience)
        except OSError:
            self.held = False  # A file system without locks: rename makes it safe as well.

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)


def directory(run_dir: str) -> str:
    """Where the queue of a run directory is."""
    return os.path.join(run_dir, "deletions")


def key(attachment: tuple[str, str, str]) -> str:
    """The entry's name: FNV-1a, 128 bits, over the three parts, each with its length before it."""
    value = 0x6C62272E07BB014262B821756295C58D
    for part in attachment:
        raw = part.encode("utf-8", "surrogateescape")
        for byte in len(raw).to_bytes(4, "big") + raw:
            value = ((value ^ byte) * 0x0000000001000000000000000000013B) & ((1 << 128) - 1)
    return f"{value:032x}"


def add(run_dir: str, attachment: tuple[str, str, str], body: bytes) -> str:
    """Write a deletion down, durably; returns its name. Writing it again replaces it.

    Raises QueueFull, and OSError when it cannot be written; then no trace of it stays.
    """
    name = key(attachment)
    with Lock(run_dir, whole=False, patience=_PATIENCE):
        target = os.path.join(directory(run_dir), name)
        if not os.path.exists(target) and len(names(run_dir)) >= LIMIT:
            raise QueueFull(f"there are {LIMIT} already")
        files.write(target, body, alone=False)
    return name


def names(run_dir: str) -> list[str]:
    """The names of all entries; none when there is no queue."""
    try:
        return sorted(name for name in os.listdir(directory(run_dir)) if len(name) == 32 and "." not in name)
    except FileNotFoundError:
        return []


def entries(run_dir: str) -> "Iterator[tuple[str, bytes]]":
    """(name, request body) of every entry, oldest first; one that vanishes meanwhile is left out."""
    found = []
    for name in names(run_dir):
        path = os.path.join(directory(run_dir), name)
        try:
            with open(path, "rb") as file:
                found.append((os.fstat(file.fileno()).st_mtime_ns, name, file.read()))
        except FileNotFoundError:
            continue
    for _, name, body in sorted(found):
        yield name, body


def remove(run_dir: str, name: str) -> None:
    """The deletion is done. Safe to repeat."""
    try:
        os.unlink(os.path.join(directory(run_dir), name))
    except FileNotFoundError:
        return


def sweep(run_dir: str) -> None:
    """Remove what writers that were killed half-way left. Only with the whole lock held."""
    try:
        left = [
            name for name in os.listdir(directory(run_dir)) if name.endswith((".new", ".tmp"))
        ]  # .tmp: an earlier version's
    except FileNotFoundError:
        return
    for name in left:
        remove(run_dir, name)
