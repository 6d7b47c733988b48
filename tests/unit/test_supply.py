"""What a build is made of: the locks in requirements/, and how a build is held to them."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "requirements"
PACKAGE = re.compile(r"^[a-z0-9-]+==\S+( ; python_version == \"3\.\d+\"( or python_version == \"3\.\d+\")*)? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


@pytest.fixture(scope="module")
def supply() -> ModuleType:
    spec = importlib.util.spec_from_file_location("supply", ROOT / "scripts/supply.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["supply"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["build", "test", "fuzz"])
def test_every_python_package_has_a_version_and_hashes(name: str, supply: ModuleType) -> None:
    lines = (LOCKS / f"{name}.txt").read_text().splitlines()
    assert all(PACKAGE.match(line) or HASH.match(line) for line in lines if not line.startswith("#"))
    text = "\n".join(lines)
    for group in supply.FILES[name][0]:
        for pinned in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][group]:
            package, _, rest = pinned.partition("==")
            wanted = f"{supply.canonical(package)}=={rest.partition(';')[0].strip()} "
            assert f"\n{wanted}" in text, f"{wanted}: run scripts/lock"


def test_no_lock_names_a_place_to_get_things_from() -> None:
    for path in LOCKS.glob("*.txt"):
        assert not re.search(r"https?:|\.org|\.io\b|--index|--find-links", path.read_text()), path


def test_wheels_are_locked_for_every_python(supply: ModuleType) -> None:
    """A package with native code has a wheel of its own for each: one hash a Python and machine at least."""
    text = (LOCKS / "build.txt").read_text()
    for native in ("msgspec", "pyyaml"):
        block = text.partition(f"\n{native}==")[2].partition("\n")[2]
        hashes = re.match(r"(    --hash=\S+( \\)?\n)+", block)
        assert hashes is not None
        assert hashes[0].count("--hash") >= len(supply.PYTHONS) * len(supply.MACHINES)


def test_a_lock_of_python_packages(supply: ModuleType) -> None:
    every = {python: {"aa"} for python in supply.PYTHONS}
    wheels = {"b": {"2": {"3.11": {"cc"}}, "3": {"3.12": {"ee", "dd"}, "3.13": {"dd"}}}, "a": {"1": every}}
    assert supply.lock_lines(wheels, ("x86_64",))[2:] == [
        "a==1 \\",
        "    --hash=sha256:aa",
        'b==2 ; python_version == "3.11" \\',
        "    --hash=sha256:cc",
        'b==3 ; python_version == "3.12" or python_version == "3.13" \\',
        "    --hash=sha256:dd \\",
        "    --hash=sha256:ee",
    ]


def test_libraries_are_held_to_the_lock(supply: ModuleType) -> None:
    old, new = supply.Package("libz1", "1", "aa"), supply.Package("libz1", "2")
    text = supply.lock_text("x-1-amd64", [(old, {"/usr/lib/z.so.1": "11"}), (new, {"/usr/lib/z.so.1": "22"})])
    locked = supply.parse_lock(text)
    assert locked.packages == {"libz1": [old, new]}

    def said(path: str, checksum: str, package: object) -> list[str]:
        found: list[str] = supply.differences(locked, "x-1-amd64", {path: (checksum, package)})
        return found

    assert said("/usr/lib/z.so.1", "11", old) == said("/usr/lib/z.so.1", "22", new) == []
    assert said("/usr/lib/z.so.1", "33", supply.Package("libz1", "3")) == [
        "/usr/lib/z.so.1 is of libz1 3; the lock of x-1-amd64 has 1 and 2"
    ]
    assert said("/usr/lib/y.so.1", "11", old) == ["/usr/lib/y.so.1 (libz1 1) is not in the lock of x-1-amd64"]
    assert said("/opt/y.so", "11", None) == [
        "/opt/y.so is of no Debian package: nothing but this build's SBOM knows it"
    ]
    assert supply.differences(None, "mint-22-amd64", {}) == [
        "mint-22-amd64 has no lock: what of it travels along is what its package manager vouches for"
    ]


def test_the_bill_of_materials(supply: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    package = supply.Package("libz1", "1:2", "aa")
    parts = supply.debian_parts("debian-12-amd64", {"/z": ("11", package), "/y": ("22", package), "/own": ("33", None)})
    assert [part["name"] for part in parts] == ["/own", "libz1"]
    assert parts[1]["purl"] == "pkg:deb/debian/libz1@1:2?arch=amd64&distro=debian-12"
    assert [each["name"] for each in parts[1]["components"]] == ["/y", "/z"]
    made = [json.dumps(supply.bill(tmp_path / "file", "1", parts, [])) for _ in range(2)]
    assert made[0] == made[1], "the same file, the same bill"
    (tmp_path / "file").write_bytes(b"y")
    assert json.loads(made[0])["serialNumber"] != supply.bill(tmp_path / "file", "1", parts, [])["serialNumber"]
