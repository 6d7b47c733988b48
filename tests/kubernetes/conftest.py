"""Fixtures for the API server as the cluster's store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from cni.host import wg_engine

from .control_plane import PROGRAM, ControlPlane


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


_MEASURED: list[str] = []


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Note a figure for the end of the report."""
    return _MEASURED.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _MEASURED:
        terminalreporter.section("measured")
        for line in _MEASURED:
            terminalreporter.line(line)
