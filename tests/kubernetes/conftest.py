"""Fixtures for the API server as the cluster's store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from cni.host import wg_engine
from tests.measured import measured, pytest_terminal_summary

from .control_plane import PROGRAM, ControlPlane

__all__ = ["measured", "pytest_terminal_summary"]


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    """Nodes on one underlay with a real API server, removed after the test."""
    assert PROGRAM.exists(), "tests/kubernetes/build-kubernetes makes it"
    assert wg_engine.find() and shutil.which("etcd"), "wireguard-go and etcd-server are missing"
    made = ControlPlane("k")
    try:
        yield made
    finally:
        made.clean()
