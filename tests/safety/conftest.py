"""What must never happen: traffic in the clear, traffic through the fence, a healthy node cut off, a silent fault.

Each test runs the frozen program in network namespaces of its own, on the nodes of `tests/mesh/fleet.py`. The program
is dist/zlayer-cni.d/zlayer-cni, or what ZLAYER_PROGRAM names; a test that asks for `either_form` runs for the single
file as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mesh.fixtures import FORMS, clustered, engine, fleet, program
from tests.mesh.fleet import Fleet, Node

__all__ = ["clustered", "engine", "fleet", "program"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(params=["unpacked", "single"])
def either_form(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The frozen program's command, in both forms."""
    path = FORMS[request.param]
    assert path.exists(), f"{path} is not there: scripts/build makes it"
    return (str(path),)


@pytest.fixture
def frozen(fleet: Fleet, program: tuple[str, ...]) -> Callable[..., Node]:
    """Makes a node of the fleet that runs the frozen program: frozen(number, start=True, **settings)."""

    def make(number: int = 1, start: bool = True, **settings: object) -> Node:
        node = fleet.node(number, start=False, **settings)
        node.program = program
        if start:
            node.start()
        return node

    return make
