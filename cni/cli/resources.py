"""The files of `conf/` that are part of the program, and the directory of the program itself."""

from __future__ import annotations

import sys
from pathlib import Path


def conf(name: str) -> str:
    """The text of one file of conf/: beside the frozen program, or in the source tree."""
    bundle = getattr(sys, "_MEIPASS", None)
    root = Path(bundle) if bundle else Path(__file__).resolve().parents[2]
    return (root / "conf" / name).read_text()


def unpacked_program() -> Path | None:
    """The directory of the unpacked program that is running, or None from source."""
    return Path(sys.executable).parent if getattr(sys, "frozen", False) else None
