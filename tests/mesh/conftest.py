"""What the mesh tests share: each fault's measured effect is printed at the end."""

from __future__ import annotations

import os

import pytest

from tests.measured import measured, pytest_terminal_summary

from .fixtures import clustered

__all__ = ["clustered", "measured", "pytest_terminal_summary"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "mesh" and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
