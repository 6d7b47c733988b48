"""The versions of the program on this machine: a directory each, laid down whole, taken away when nobody uses it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from cni import files, lock_files

FRESH, STALE = ".new-", ".old-"  # beginnings of names: being laid down, being taken away
LOCK = ".lock"


class Busy(Exception):
    """Another installation is going on; the text says where."""


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Nobody else lays versions down in `target` meanwhile; what killed installations left there goes. Raises Busy."""
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
    """`home` holds what `source` does: copied beside it, proved there by `prove`, synced, renamed. Whether it was not
    there yet, or not whole. Whatever is raised, nothing half is left. Raises OSError, and what `prove` raises.
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
            take_away(home)
        fresh.rename(home)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    os.utime(home)
    files.sync(str(home.parent))
    return True


def digest(program: Path) -> str:
    """Twelve hex digits that change with the program's files."""
    found = hashlib.blake2b(digest_size=6)
    for path in sorted(p for p in program.rglob("*") if p.is_file()):
        found.update(str(path.relative_to(program)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def superfluous(laid_down: Mapping[str, float], current: str, used: Collection[str]) -> list[str]:
    """Which versions may go: neither the current one, nor the one before it, nor one that somebody uses.

    `laid_down` has their names, and when each was last installed.
    """
    others = sorted((name for name in laid_down if name != current), key=lambda name: laid_down[name], reverse=True)
    return sorted(name for name in others[1:] if name not in used)


def sweep(target: Path, current: str, executable: str, used: Collection[Path]) -> list[Path]:
    """Take superfluous versions out of `target`: directories with an `executable`. `used` are paths below some of them.

    Returns what went. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        running = executed()
        homes, in_use = {}, {path.relative_to(target).parts[0] for path in used if target in path.parents}
        for home in target.iterdir():
            if (home / executable).is_file() and not home.name.startswith("."):
                homes[home.name] = home.stat().st_mtime
                if identity(home / executable) in running:
                    in_use.add(home.name)
        gone = [target / name for name in superfluous(homes, current, in_use)]
        for home in gone:
            take_away(home)
        return gone
    return []


def take_away(home: Path) -> None:
    """By rename, so that nobody finds half of it."""
    stale = home.with_name(f"{STALE}{home.name}")
    shutil.rmtree(stale, ignore_errors=True)
    home.rename(stale)
    shutil.rmtree(stale)


def executed() -> set[tuple[int, int]]:
    """The programs that processes of this machine run from, whatever path they know them by."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/exe"):
        with contextlib.suppress(OSError):
            found.add(identity(link))
    return found


def identity(path: Path) -> tuple[int, int]:
    """Which file is there. Raises OSError."""
    status = path.stat()
    return status.st_dev, status.st_ino
