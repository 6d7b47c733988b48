"""Two versions of the frozen program: the one at an earlier commit, and the present one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mesh.fixtures import clustered, engine, fleet, program
from tests.upgrade import older

__all__ = ["clustered", "engine", "fleet", "program"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "needs root" if os.geteuid() != 0 else older.missing()
    for item in items:
        if reason and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def before() -> tuple[str, ...]:
    """The older program's command."""
    return (str(older.build()),)


@pytest.fixture
def now(program: tuple[str, ...]) -> tuple[str, ...]:
    """The present program's command."""
    return program
