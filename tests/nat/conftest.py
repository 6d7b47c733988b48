"""The laboratory's fixtures, and the table of what was measured."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.measured import measured, pytest_terminal_summary
from tests.mesh.etcds import PROGRAM
from tests.mesh.fixtures import engine, program

from .lab import Lab

__all__ = ["engine", "measured", "program", "pytest_terminal_summary"]


@pytest.fixture
def lab(engine: None) -> Iterator[Lab]:
    """Sites around an internet, removed after the test."""
    if PROGRAM is None or shutil.which("conntrack") is None:
        pytest.skip("no etcd or conntrack here (apt-get install etcd-server conntrack)")
    made = Lab("x")
    try:
        yield made
    finally:
        made.clean()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "nat" and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
