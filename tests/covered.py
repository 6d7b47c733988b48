"""Directories that tests cover by a file system of their own, wherever the clone lies: it stays reachable at its path.

A clone below /tmp would vanish behind a tmpfs on /tmp, and the program under test with it.
"""

from __future__ import annotations

import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def is_covered(directory: str, path: Path = ROOT) -> bool:
    """Whether a file system mounted on `directory` would hide `path`."""
    return path.is_relative_to(directory)


def tmpfs(directory: str, options: str = "") -> str:
    """Shell lines that mount a tmpfs on `directory`. They use the descriptor 9."""
    mount = f"mount -t tmpfs {f'-o {options} ' if options else ''}tmpfs {directory}"
    if not is_covered(directory):
        return mount
    root = shlex.quote(str(ROOT))
    return f"exec 9<{root}; {mount}; mkdir -p {root}; mount --no-canonicalize --bind /proc/self/fd/9 {root}; exec 9<&-"
