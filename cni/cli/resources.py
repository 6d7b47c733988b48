"""The files of `conf/` that are part of the program, and the directory of the program itself."""

from __future__ import annotations

import sys
from pathlib import Path

PYTHON = "python"
"""The directory, in the unpacked program, of what PyInstaller froze (plugin.spec, `with_launcher`)."""


def conf(name: str) -> str:
    """The text of one file of conf/: beside the frozen program, or in the source tree."""
    bundle = getattr(sys, "_MEIPASS", None)
    root = Path(bundle) if bundle else Path(__file__).resolve().parents[2]
    return (root / "conf" / name).read_text()


def unpacked_program() -> Path | None:
    """The directory of the unpacked program that is running, or None from source."""
    return program_directory(Path(sys.executable)) if getattr(sys, "frozen", False) else None


def program_directory(executable: Path) -> Path:
    """The directory of the unpacked program to which a Python executable belongs. With the launcher the executable is
    `python/zlayer-cni` in it, without the launcher `zlayer-cni`."""
    parent = executable.parent
    return parent.parent if parent.name == PYTHON and (parent.parent / executable.name).is_file() else parent


def executables(program: Path) -> tuple[Path, ...]:
    """The files that a process of the program at `program` may run: the launcher, and what the launcher executes."""
    return program, program.parent / PYTHON / program.name
