"""What a build is made of: locks it to versions and checksums, holds what is there to the locks, and writes it down.

    supply.py lock python          requirements/: Python packages by hash
    supply.py lock debian          requirements/: of this release, what the last build took along
    supply.py deb PACKAGE          the locked version and checksum of a Debian package; nothing where there is none
    supply.py debs ROOT DEB...     note below ROOT which package each file unpacked from the .deb files is of
    supply.py check LIST           hold the libraries in LIST to the lock: says what differs; exit code 1 if anything
    supply.py sbom LIST FILE       the bill of materials of FILE (CycloneDX 1.5) on standard output

LIST is what plugin.spec writes: a native library to a line, by the path that it is copied from. Run by scripts/build
and scripts/lock, with the Python of the virtual environment.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "requirements"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
GLIBC = range(36, 16, -1)  # wheels for glibc 2.36 (Debian 12) down to 2.17; newer systems take these too
# file: the groups of pyproject.toml whose packages, and theirs, stand in it, and the machines there are wheels for
FILES = {
    "build": (("frozen", "build"), MACHINES),
    "test": (("frozen", "test", "lint"), MACHINES),
    "fuzz": (("frozen", "fuzz"), ("x86_64",)),
}
FROZEN_BUILD_TOOL = "pyinstaller"  # its bootloader travels along
NOTED = ".packages"  # of unpacked .deb files: lines of path, package, version, checksum of the .deb


# --- Python packages ------------------------------------------------------------------------------------------------


Wheels = dict[str, dict[str, dict[str, set[str]]]]
"""By package, version and Python: the hashes of its wheels."""


def wanted(groups: tuple[str, ...], python: str) -> list[str]:
    """The requirements of these groups for one Python, their markers judged."""
    from pip._vendor.packaging.requirements import Requirement

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = []
    for text in (each for group in groups for each in extras[group]):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


def resolve(requirements: list[str], python: str, machine: str, oldest: bool, constraints: Path) -> list[Any]:
    """What pip would install there: its report. `oldest`: on a system as old as wheels allow. Raises RuntimeError."""
    platforms = [f"manylinux_2_17_{machine}", f"manylinux2014_{machine}"]
    if not oldest:
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC] + platforms
    with tempfile.TemporaryDirectory() as nowhere:
        report = Path(nowhere) / "report"
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
        words += ["--ignore-installed", "--only-binary=:all:", "--python-version", python, "--target", nowhere]
        words += ["--report", str(report), "--constraint", str(constraints)]
        words += [word for each in platforms for word in ("--platform", each)]
        done = subprocess.run([*words, *requirements], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"Python {python} on {machine}: {done.stderr.strip()}")
        found: list[Any] = json.loads(report.read_text())["install"]
        return found


def constraints_of(path: Path, direct: set[str]) -> list[str]:
    """The versions an earlier lock has of what is not asked for by name: they stay."""
    if not path.exists():
        return []
    lines = [line.split()[0] for line in path.read_text().splitlines() if re.match(r"[a-z0-9]", line, re.IGNORECASE)]
    return [line for line in lines if canonical(line.partition("==")[0]) not in direct]


def canonical(name: str) -> str:
    """A package's name as the index knows it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lock_file(groups: tuple[str, ...], machines: tuple[str, ...], path: Path) -> str:
    """The text of one lock. Raises RuntimeError."""
    direct = {canonical(re.split(r"[=<>!~ ]", each)[0]) for python in PYTHONS for each in wanted(groups, python)}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as kept:
        kept.write("\n".join(constraints_of(path, direct)))
        kept.flush()
        cases = [(python, machine, oldest) for python in PYTHONS for machine in machines for oldest in (True, False)]
        with ThreadPoolExecutor(4) as pool:
            reports = list(pool.map(lambda case: resolve(wanted(groups, case[0]), *case, Path(kept.name)), cases))
    wheels: Wheels = {}
    for (python, _, _), report in zip(cases, reports, strict=True):
        for each in report:
            name, version = canonical(each["metadata"]["name"]), each["metadata"]["version"]
            hashes = wheels.setdefault(name, {}).setdefault(version, {}).setdefault(python, set())
            hashes.add(each["download_info"]["archive_info"]["hashes"]["sha256"])
    return "\n".join(lock_lines(wheels, machines)) + "\n"


def lock_lines(wheels: Wheels, machines: tuple[str, ...]) -> list[str]:
    """A lock as pip reads it. Pure."""
    lines = [
        "# Written by scripts/lock, and installed by scripts/build and scripts/test with pip's --require-hashes.",
        f"# For CPython {PYTHONS[0]} to {PYTHONS[-1]} on Linux with glibc, {' and '.join(machines)}.",
    ]
    for name, versions in sorted(wheels.items()):
        for version, pythons in sorted(versions.items()):
            only = "" if set(pythons) == set(PYTHONS) else marker(pythons)
            hashes = sorted({each for found in pythons.values() for each in found})
            lines.append(f"{name}=={version}{only} \\")
            lines += [f"    --hash=sha256:{each} \\" for each in hashes[:-1]]
            lines.append(f"    --hash=sha256:{hashes[-1]}")
    return lines


def marker(pythons: dict[str, set[str]]) -> str:
    """Says for which Pythons a line counts."""
    return " ; " + " or ".join(f'python_version == "{each}"' for each in sorted(pythons, key=PYTHONS.index))


# --- Debian's libraries ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """A Debian package: its name, version, and the SHA-256 of its .deb (empty: not known)."""

    name: str
    version: str
    checksum: str = ""


@dataclass
class Locked:
    """One release's lock: the versions of each package, the newest last, and the SHA-256 of each file in each."""

    packages: dict[str, list[Package]] = field(default_factory=dict)
    files: dict[str, set[str]] = field(default_factory=dict)


def release() -> str:
    """The system and its machine: debian-12-amd64."""
    said = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    return "-".join(said.get(key, "unknown").strip('"') for key in ("ID", "VERSION_ID")) + f"-{machine}"


def lock_of(name: str) -> Locked | None:
    """The lock of a release; None if there is none."""
    path = LOCKS / f"{name}.txt"
    return parse_lock(path.read_text()) if path.exists() else None


def parse_lock(text: str) -> Locked:
    """A release's lock. Pure."""
    found = Locked()
    for line in text.splitlines():
        words = line.split()
        if line.startswith("    "):
            found.files.setdefault(words[1], set()).add(words[0])
        elif words and not line.startswith("#"):
            found.packages.setdefault(words[0], []).append(Package(*words))
    return found


def lock_text(name: str, contents: list[tuple[Package, dict[str, str]]]) -> str:
    """The text of a release's lock: packages, each with the SHA-256 of its files by path. Pure."""
    lines = [
        f"# Written by scripts/lock: what of {name} travels in the frozen program.",
        "# A package, its version, the SHA-256 of its .deb (none where the archive no longer has the version); below",
        "# it that of each file. A package stands here twice where the archive has a newer version than the build had.",
    ]
    for package, files in contents:
        lines.append(f"{package.name} {package.version} {package.checksum}".rstrip())
        lines += [f"    {checksum} {path}" for path, checksum in sorted(files.items())]
    return "\n".join(lines) + "\n"


def newer(package: Package, paths: list[str]) -> tuple[Package, dict[str, str]] | None:
    """The archive's version of a package and its files that `paths` are; None where that is the one that is here."""
    version = query("apt-cache", "policy", package.name).partition("Candidate: ")[2].split("\n")[0]
    if version in ("", "(none)", package.version):
        return None
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["apt-get", "-qq", "download", f"{package.name}={version}"], cwd=place, check=True)
        (deb,) = Path(place).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(deb), place], check=True)
        files = {}
        for path in paths:
            stem = Path(path).name.partition(".so")
            # A library's last numbers change with its version: libz.so.1.2.13, libz.so.1.2.14.
            pattern = f"{stem[0]}.so.{stem[2].split('.')[1]}*" if stem[2].startswith(".") else Path(path).name
            for root in (place, f"{place}/usr"):
                for each in Path(root, Path(path).parent.relative_to("/")).glob(pattern):
                    if not each.is_symlink():
                        seen = f"/{each.relative_to(place)}"
                        files[seen if seen.startswith("/usr/") else f"/usr{seen}"] = sha256(each)
        return Package(package.name, version, sha256(deb)), files


def libraries(listing: Path) -> list[str]:
    """The libraries in LIST that are no Python package's, each by its own path; and where the standard library is."""
    prefix = f"{Path(sys.prefix).resolve()}/"
    found = {str(Path(line).resolve()) for line in listing.read_text().splitlines() if line}
    stdlib = str(Path(sysconfig.get_path("stdlib"), "os.py").resolve())
    return sorted(path for path in {*found, stdlib} if not path.startswith(prefix) and Path(path).is_file())


def origin(path: str) -> Package | None:
    """The Debian package that a file is of: one that is installed, or one that was unpacked by scripts/build."""
    for parent in Path(path).parents:
        noted = parent / NOTED
        if noted.exists():
            rest = "/" + str(Path(path).relative_to(parent))
            rows = (line.split() for line in noted.read_text().splitlines())
            return next((Package(*row[1:]) for row in rows if row[0] == rest), None)
    for candidate in (path, path.removeprefix("/usr")):
        said = query("dpkg-query", "--search", candidate)
        if said:
            name = said.split(": ")[0].split(",")[0]
            return Package(name.split(":")[0], query("dpkg-query", "--show", "--showformat=${Version}", name))
    return None


def seen_as(path: str) -> str:
    """A file's path as it would be if its package were installed."""
    for parent in Path(path).parents:
        if (parent / NOTED).exists():
            return "/" + str(Path(path).relative_to(parent))
    return path


def with_checksum(package: Package) -> Package:
    """With the checksum of its .deb, as apt's signed lists have it."""
    if package.checksum:
        return package
    said = query("apt-cache", "show", f"{package.name}={package.version}")
    found = re.search(r"^SHA256: ([0-9a-f]{64})$", said, re.MULTILINE)
    return Package(package.name, package.version, found[1] if found else "")


def query(*words: str) -> str:
    """A command's output; empty where it fails or is not there."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def differences(locked: Locked | None, name: str, found: dict[str, tuple[str, Package | None]]) -> list[str]:
    """What is to be said of the libraries that travel. `found`: the SHA-256 and the package of each. Pure."""
    if locked is None:
        return [f"{name} has no lock: what of it travels along is what its package manager vouches for"]
    said = []
    for path, (checksum, package) in sorted(found.items()):
        if package is None:
            said.append(f"{path} is of no Debian package: nothing but this build's SBOM knows it")
        elif path not in locked.files:
            said.append(f"{path} ({package.name} {package.version}) is not in the lock of {name}")
        elif checksum not in locked.files[path]:
            versions = " and ".join(each.version for each in locked.packages.get(package.name, ()))
            said.append(f"{path} is of {package.name} {package.version}; the lock of {name} has {versions}")
    return said


# --- the bill of materials ------------------------------------------------------------------------------------------


def bill(file: Path, version: str, parts: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """The bill of materials of a file (CycloneDX 1.5): the same for the same file. Pure but for reading it."""
    checksum = sha256(file)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, checksum)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "zlayer-cni",
                "name": "zlayer-cni",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "hashes": [{"alg": "SHA-256", "content": checksum}],
            },
            "tools": {"components": tools},
        },
        "components": parts,
        "dependencies": [{"ref": "zlayer-cni", "dependsOn": [each["bom-ref"] for each in parts]}],
    }


def python_part(name: str) -> dict[str, Any]:
    """A Python package that is installed here."""
    version = importlib.metadata.version(name)
    reference = f"pkg:pypi/{canonical(name)}@{version}"
    return {"type": "library", "bom-ref": reference, "name": canonical(name), "version": version, "purl": reference}


def debian_parts(name: str, found: dict[str, tuple[str, Package | None]]) -> list[dict[str, Any]]:
    """The Debian packages, each with its files that travel; and files of no package. Pure."""
    system, number, machine = name.rsplit("-", 2) if name.count("-") >= 2 else (name, "", "")
    parts: dict[str, dict[str, Any]] = {}
    for path, (checksum, package) in sorted(found.items()):
        inside = {
            "type": "file",
            "bom-ref": f"file:{path}",
            "name": path,
            "hashes": [{"alg": "SHA-256", "content": checksum}],
        }
        if package is None:
            parts[path] = inside
            continue
        reference = f"pkg:deb/{system}/{package.name}@{package.version}?arch={machine}&distro={system}-{number}"
        part = parts.setdefault(
            reference,
            {
                "type": "library",
                "bom-ref": reference,
                "name": package.name,
                "version": package.version,
                "purl": reference,
                "components": [],
            },
        )
        part["components"].append(inside)
    return list(parts.values())


def looked_at(listing: Path) -> dict[str, tuple[str, Package | None]]:
    """The SHA-256 and the package of each library in LIST, by the path it has where it is installed."""
    return {seen_as(path): (sha256(path), origin(path)) for path in libraries(listing)}


def unpacked(deb: str) -> list[str]:
    """A line of NOTED for each file of a .deb."""
    name, version = (query("dpkg-deb", "--field", deb, key) for key in ("Package", "Version"))
    files = [line.split()[5].removeprefix(".") for line in query("dpkg-deb", "--contents", deb).splitlines()]
    return [f"{path} {name} {version} {sha256(deb)}\n" for path in files]


def lock_python() -> int:
    """Writes the locks of Python packages."""
    LOCKS.mkdir(exist_ok=True)
    for name, (groups, machines) in FILES.items():
        path = LOCKS / f"{name}.txt"
        path.write_text(lock_file(groups, machines, path))
    return 0


def lock_debian() -> int:
    """Writes the lock of this release: what the last build took along, and what the archive has now."""
    files: dict[Package, dict[str, str]] = {}
    for path, (checksum, package) in looked_at(ROOT / "dist/.libraries").items():
        if package is not None:
            files.setdefault(with_checksum(package), {})[path] = checksum
    contents = []
    for package, sums in sorted(files.items(), key=lambda each: each[0].name):
        contents.append((package, sums))
        if found := newer(package, list(sums)):
            contents.append(found)
    (LOCKS / f"{release()}.txt").write_text(lock_text(release(), contents))
    return 0


def main(command: str, *args: str) -> int:
    """The command line."""
    match command:
        case "lock":
            return lock_python() if args == ("python",) else lock_debian()
        case "deb":
            locked = lock_of(release())
            for package in locked.packages.get(args[0], ()) if locked else ():
                sys.stdout.write(f"{package.version} {package.checksum}\n")
            return 0
        case "debs":
            (Path(args[0]) / NOTED).write_text("".join(row for deb in args[1:] for row in unpacked(deb)))
            return 0
        case "check":
            said = differences(lock_of(release()), release(), looked_at(Path(args[0])))
            sys.stdout.write("".join(f"{line}\n" for line in said))
            return 1 if said else 0
        case "sbom":
            names = [re.split(r"[=<>!~ ;]", each)[0] for each in wanted(("frozen",), PYTHONS[0])]
            parts = [python_part(each) for each in sorted([*names, FROZEN_BUILD_TOOL], key=canonical)]
            parts += debian_parts(release(), looked_at(Path(args[0])))
            tools = [python_part(each) for each in ("pyinstaller-hooks-contrib", "altgraph", "packaging", "setuptools")]
            version = (ROOT / "cni/__init__.py").read_text().partition('__version__ = "')[2].partition('"')[0]
            json.dump(bill(Path(args[1]), version, parts, tools), sys.stdout, indent=1)
            sys.stdout.write("\n")
            return 0
    raise SystemExit(f"no command {command!r}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
