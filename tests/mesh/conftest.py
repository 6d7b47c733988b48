"""What the mesh tests share: each fault's measured effect is printed at the end."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from .fixtures import clustered

__all__ = ["clustered"]

_MEASURED: list[str] = []


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Note a measured effect for the report."""
    return _MEASURED.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _MEASURED:
        terminalreporter.section("measured")
        for line in _MEASURED:
            terminalreporter.line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "mesh" and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
