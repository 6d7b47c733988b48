"""The programs this suite needs beside the plugin: found, or built once and kept outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zlayer-cni" / "reference"
HERE = Path(__file__).parent
CONTAINERD_2 = "2.1.5"
NERDCTL = "2.1.2"
CNITOOL = "github.com/containernetworking/cni/cnitool@v1.3.0"


def needed(*programs: str) -> None:
    """Skip, naming them, when any of these programs is not installed."""
    missing = [p for p in programs if not shutil.which(p, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)}")


def cri_call() -> Path:
    """The program that makes one CRI call (cri-call/main.go)."""
    return _built_from("cri-call")


def ocicni_call() -> Path:
    """The program that makes one call of CRI-O's CNI library (ocicni-call/main.go)."""
    return _built_from("ocicni-call")


def containerd_2() -> Path:
    """The directory of containerd 2's programs. Building takes minutes: only `build-containerd-2` here does it."""
    directory = CACHE / f"containerd-{CONTAINERD_2}"
    if not (directory / "containerd").is_file():
        pytest.skip(f"containerd {CONTAINERD_2} is not built: run tests/runtimes/build-containerd-2 once")
    return directory


def nerdctl() -> Path:
    """containerd's client for people. Building takes minutes: only `build-nerdctl` here does it."""
    program = CACHE / f"nerdctl-{NERDCTL}"
    if not program.is_file():
        pytest.skip(f"nerdctl {NERDCTL} is not built: run tests/runtimes/build-nerdctl once")
    return program


def cnitool() -> Path:
    """The reference command line of libcni."""
    return _built("cnitool", ["install", CNITOOL], CACHE, "cnitool")


def _built_from(name: str) -> Path:
    """The program whose source is the directory `name` here."""
    sources = sorted((HERE / name).iterdir())
    digest = hashlib.sha256(b"".join(s.read_bytes() for s in sources)).hexdigest()[:12]
    return _built(f"{name}-{digest}", ["build", "-trimpath", "-o", "{out}/made", "."], HERE / name, "made")


def _built(name: str, go_words: list[str], where: Path, made: str) -> Path:
    """CACHE/name, built with Go where it is missing; skips when it cannot be."""
    target = CACHE / name
    if target.is_file():
        return target
    go = shutil.which("go", path=os.environ["PATH"] + ":/usr/local/go/bin")
    if go is None:
        pytest.skip(f"{name} is built with Go, and there is no Go toolchain here")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as out:
        done = subprocess.run(
            [go, *(word.format(out=out) for word in go_words)],
            cwd=where,
            env=os.environ | {"GOBIN": out, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        if done.returncode:
            pytest.skip(f"{name} could not be built: {done.stderr.strip()[-600:]}")
        (Path(out) / made).replace(target)
    return target
