"""The fixtures of the kernel tests, for the daemons and labs here."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They all need root."""
    for item in items:
        if item.path.parent.name == "eyes":
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))
