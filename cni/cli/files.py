"""Files and links put in place at once: whoever looks sees the old one or the new one, never half of either."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """`path` holds `text`: written beside it under a name no runtime loads, synced, renamed."""
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    fresh = _fresh(path)
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w") as file:
            os.fchmod(fd, mode)
            file.write(text)
            file.flush()
            os.fsync(fd)
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


def link(path: Path, target: Path) -> None:
    """`path` is a symbolic link to `target`; a program that runs from the old one goes on undisturbed."""
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    fresh = _fresh(path)
    fresh.symlink_to(target)
    fresh.rename(path)
    sync(path.parent)


def _fresh(path: Path) -> Path:
    """The name beside it; what somebody who was killed left under such a name goes."""
    for left in path.parent.glob(f".{path.name}.*.new"):
        left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.new")


def sync(directory: Path) -> None:
    """The directory's entries survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
