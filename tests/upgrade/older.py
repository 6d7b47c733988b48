"""The program as it was at an earlier commit: built once, kept below the cache.

`BASE` is the last commit before the records, node documents and frames were changed. A later change that writes
something new needs no other base: what it writes is tested against this one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = "169baf0a3a4386850c86cc38c5973b621915ff68"
CACHE = Path(os.environ.get("ZLAYER_CACHE") or Path.home() / ".cache/zlayer-cni")


def missing() -> str:
    """Why the older program cannot be built here; empty if it can, or if it was built already."""
    if program().exists():
        return ""
    known = subprocess.run(["git", "cat-file", "-e", f"{BASE}^{{commit}}"], cwd=ROOT, capture_output=True, check=False)
    return "" if known.returncode == 0 else f"commit {BASE[:12]} is not in this clone (a shallow one?)"


def program() -> Path:
    """Where the older program is, unpacked."""
    return CACHE / f"older-{BASE[:12]}" / "zlayer-cni.d" / "zlayer-cni"


def build() -> Path:
    """The older program, built from its own sources by its own scripts/build. Raises CalledProcessError."""
    if program().exists():
        return program()
    place = program().parents[1]
    source = place.with_name(place.name + ".source")
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", BASE], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    subprocess.run(["scripts/build"], cwd=source, check=True, env={**os.environ, "ZLAYER_VENV": str(source / ".venv")})
    unfinished = place.with_name(place.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source / "dist", unfinished, symlinks=True)
    shutil.rmtree(source)
    unfinished.rename(place)
    return program()
