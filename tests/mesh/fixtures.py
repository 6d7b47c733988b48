"""Fixtures for parts that run the frozen program on the nodes of `fleet.py`; a conftest imports those it needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.host import wg_engine

from .etcds import PROGRAM, Clustered
from .fleet import ROOT, Fleet

FORMS = {"unpacked": ROOT / "dist/zlayer-cni.d/zlayer-cni", "single": ROOT / "dist/zlayer-cni"}


@pytest.fixture
def program() -> tuple[str, ...]:
    """The frozen program's command: the unpacked form, or what ZLAYER_PROGRAM names."""
    path = Path(os.environ.get("ZLAYER_PROGRAM", FORMS["unpacked"]))
    assert path.exists(), f"{path} is not there: scripts/build makes it"
    return (str(path),)


@pytest.fixture
def engine() -> None:
    """For tests that need WireGuard between nodes."""
    if not wg_engine.find() or shutil.which("wg") is None:
        pytest.skip("no WireGuard engine here (apt-get install wireguard-go wireguard-tools)")


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Nodes on one underlay, removed after the test."""
    made = Fleet("s")
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def clustered() -> Iterator[Clustered]:
    """Nodes on one underlay with a real etcd, removed after the test."""
    if PROGRAM is None:
        pytest.skip("no etcd here (apt-get install etcd-server)")
    made = Clustered("s")
    try:
        yield made
    finally:
        made.clean()
