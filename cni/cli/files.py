"""Files and links put in place at once: whoever looks sees the old one or the new one, never half of either."""

from __future__ import annotations

import os
from pathlib import Path

from cni import files


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """`path` holds `text`: written beside it under a name no runtime loads, synced, renamed."""
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    _clean(path)
    files.write(str(path), text.encode(), mode, alone=False)


def link(path: Path, target: Path) -> None:
    """`path` is a symbolic link to `target`; a program that runs from the old one goes on undisturbed."""
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    _clean(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    fresh.symlink_to(target)
    fresh.rename(path)
    files.sync(str(path.parent))


def _clean(path: Path) -> None:
    """What a process that was killed left beside it goes."""
    for left in path.parent.glob(f".{path.name}.*.new"):
        left.unlink(missing_ok=True)
