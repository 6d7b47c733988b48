"""What scripts/build makes: the same bytes from the same source wherever it lies, and a word on all that is in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PyInstaller.archive.readers import CArchiveReader

from tests.binary.conftest import FROZEN

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
SOURCES = ("cni", "conf", "scripts", "plugin.spec", "pyproject.toml", "requirements")

pytestmark = pytest.mark.skipif(not FROZEN["single"].exists(), reason="run scripts/build")


def build(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """scripts/build in a checkout, with the virtual environment that the tests run in."""
    env = {**os.environ, "ZLAYER_VENV": sys.prefix}
    return subprocess.run(
        [directory / "scripts/build", *options], env=env, capture_output=True, text=True, timeout=300, check=False
    )


def contents(directory: Path) -> dict[str, str]:
    """The checksum of every file below a directory; of a link, where it leads."""
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkout of the same source, built."""
    made = tmp_path_factory.mktemp("checkout") / "of" / "another" / "name"
    for name in SOURCES:
        there = made / name
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, there, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            made.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, there)
    done = build(made)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.long
def test_two_builds_are_bit_identical(elsewhere: Path) -> None:
    assert build(ROOT, "--check").returncode == 0, "run scripts/build: the source has changed since"
    one, two = contents(DIST), contents(elsewhere / "dist")
    assert one == two, {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}


@pytest.mark.long
def test_a_library_that_changes_is_a_reason_to_build_again(elsewhere: Path, tmp_path: Path) -> None:
    assert build(elsewhere, "--check").returncode == 0
    listing = elsewhere / "dist/.libraries"
    before = listing.read_text()
    library = tmp_path / "libx.so"
    library.write_bytes(b"one")
    try:
        listing.write_text(f"{before}{library}\n")
        done = build(elsewhere, "--check")
        assert (done.returncode, "not up to date" in done.stderr) == (1, True)
    finally:
        listing.write_text(before)
    assert build(elsewhere, "--check").returncode == 0
    said = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    lock = "-".join(said.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    (elsewhere / "requirements" / f"{lock}-another.txt").write_text("# of another machine\n")
    assert build(elsewhere, "--check").returncode == 1


@pytest.mark.parametrize("program", [DIST / "zlayer-cni.d/python/zlayer-cni", FROZEN["plain"]], ids=str)
def test_only_locked_distributions_travel_with_the_program(program: Path) -> None:
    """What else the virtual environment holds (mypy's typing_extensions was one) has no part in the program."""
    archive = CArchiveReader(str(program))
    (modules,) = (archive.open_embedded_archive(name).toc for name in archive.toc if name.startswith("PYZ"))
    allowed = {*sys.stdlib_module_names, "cni", "msgspec", "yaml", "_yaml", "prometheus_client", "pyroute2"}
    assert {name.partition(".")[0] for name in modules} <= allowed


def test_the_bill_of_materials_names_all_that_is_in_the_program() -> None:
    bill = json.loads((DIST / "zlayer-cni.cdx.json").read_text())
    (checksum,) = (each["content"] for each in bill["metadata"]["component"]["hashes"])
    assert checksum == hashlib.sha256((DIST / "zlayer-cni").read_bytes()).hexdigest()
    names = {each["name"] for each in bill["components"]}
    assert {"msgspec", "pyyaml", "pyinstaller"} <= names
    files = {Path(each["name"]).name for part in bill["components"] for each in part.get("components", [part])}
    own = (".cpython", ".abi3.so")
    for path in (DIST / "zlayer-cni.d/python/_internal").rglob("*.so*"):
        listed = any(name.startswith(path.name) for name in files)
        of_python_package = path.parent.name in ("msgspec", "yaml") and any(each in path.name for each in own)
        assert listed or of_python_package, f"{path.name} is in the program, and its origin is not listed"
