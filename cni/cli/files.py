"""Atomic replacement of files and links: a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import os
from pathlib import Path

from cni import files


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace `path` by a file with `text`: written beside it under a name that no runtime loads, synced, renamed.
    Raises OSError."""
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    _clean(path)
    files.write(str(path), text.encode(), mode, alone=False)


def link(path: Path, target: Path) -> None:
    """Replace `path` by a symbolic link to `target`; a program started by the old link keeps running."""
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    _clean(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    fresh.symlink_to(target)
    fresh.rename(path)
    files.sync(str(path.parent))


def _clean(path: Path) -> None:
    """Remove the temporary file of a killed process."""
    for left in path.parent.glob(f".{path.name}.*.new"):
        left.unlink(missing_ok=True)
