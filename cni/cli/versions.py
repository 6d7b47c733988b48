"""The versions of the program on this machine: a directory for each, installed atomically, removed when unused."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from cni import files, lock_files
from cni.cli import resources

FRESH, STALE = ".new-", ".old-"  # prefixes of directories that are being installed or removed
LOCK = ".lock"


class Busy(Exception):
    """Another installation is in progress; the text names the directory."""


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """A context that excludes other installations into `target`, and removes what killed ones left. Raises Busy."""
    target.mkdir(0o755, parents=True, exist_ok=True)
    fd = lock_files.opened(str(target / LOCK))
    try:
        if not lock_files.take(fd):
            raise Busy(f"another installation into {target} is going on")
        for left in target.iterdir():
            if left.name.startswith((FRESH, STALE)):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(fd)


def extract(source: Path, home: Path, prove: Callable[[Path], None]) -> bool:
    """Copy `source` to `home`: copied beside it, tested there by `prove`, synced, renamed. Returns False if `home` is
    complete already. After an error no partial copy is left. Raises OSError, and what `prove` raises.
    """
    if source.resolve() == home.resolve() or (home.is_dir() and digest(home) == digest(source)):
        prove(home)
        os.utime(home)
        return False
    fresh = home.with_name(f"{FRESH}{home.name}")
    try:
        shutil.copytree(source, fresh, symlinks=True)
        prove(fresh)
        files.sync_tree(str(fresh))
        if home.is_dir():  # damaged
            remove_version(home)
        fresh.rename(home)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    os.utime(home)
    files.sync(str(home.parent))
    return True


def digest(program: Path) -> str:
    """Twelve hex digits that change with the program's files."""
    hasher = hashlib.blake2b(digest_size=6)
    for path in sorted(p for p in program.rglob("*") if p.is_file()):
        hasher.update(str(path.relative_to(program)).encode() + b"\0" + path.read_bytes())
    return hasher.hexdigest()


def removable(laid_down: Mapping[str, float], current: str, used: Collection[str]) -> list[str]:
    """The versions to remove: neither the current one, nor the previous one, nor one that is in use.

    `laid_down` maps their names to the time at which each was last installed.
    """
    others = sorted((name for name in laid_down if name != current), key=lambda name: laid_down[name], reverse=True)
    return sorted(name for name in others[1:] if name not in used)


def sweep(target: Path, current: str, executable: str, used: Collection[Path]) -> list[Path]:
    """Remove unused versions from `target`: directories with an `executable`. `used` are paths below some of them.

    Returns the removed directories. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        running = executed()
        homes, in_use = {}, {path.relative_to(target).parts[0] for path in used if target in path.parents}
        for home in target.iterdir():
            if (home / executable).is_file() and not home.name.startswith("."):
                homes[home.name] = home.stat().st_mtime
                files_run = (file for file in resources.executables(home / executable) if file.exists())
                if any(identity(file) in running for file in files_run):
                    in_use.add(home.name)
        gone = [target / name for name in removable(homes, current, in_use)]
        for home in gone:
            remove_version(home)
        return gone
    return []


def remove_version(home: Path) -> None:
    """Remove a version: renamed first, so that no process finds a part of it."""
    stale = home.with_name(f"{STALE}{home.name}")
    shutil.rmtree(stale, ignore_errors=True)
    home.rename(stale)
    shutil.rmtree(stale)


def executed() -> set[tuple[int, int]]:
    """The (device, inode) of the programs that processes of this machine run."""
    programs = set()
    for link in Path("/proc").glob("[0-9]*/exe"):
        with contextlib.suppress(OSError):
            programs.add(identity(link))
    return programs


def identity(path: Path) -> tuple[int, int]:
    """The (device, inode) of the file at a path. Raises OSError."""
    status = path.stat()
    return status.st_dev, status.st_ino
