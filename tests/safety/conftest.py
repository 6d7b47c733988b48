"""What must never happen: traffic in the clear, traffic through the fence, a healthy node cut off, a silent fault.

Each test runs the frozen program in network namespaces of its own, on the nodes of `tests/mesh/fleet.py`. The program
is dist/zlayer-cni.d/zlayer-cni, or what ZLAYER_PROGRAM names; a test that asks for `either_form` runs for the single
file as well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni.host import wg_engine
from tests.mesh.etcds import PROGRAM, Clustered
from tests.mesh.fleet import ROOT, Fleet, Node

FORMS = {"unpacked": ROOT / "dist/zlayer-cni.d/zlayer-cni", "single": ROOT / "dist/zlayer-cni"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def program() -> tuple[str, ...]:
    """The frozen program's command."""
    path = Path(os.environ.get("ZLAYER_PROGRAM", FORMS["unpacked"]))
    assert path.exists(), f"{path} is not there: scripts/build makes it"
    return (str(path),)


@pytest.fixture(params=["unpacked", "single"])
def either_form(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The frozen program's command, in both forms."""
    path = FORMS[request.param]
    assert path.exists(), f"{path} is not there: scripts/build makes it"
    return (str(path),)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Nodes on one underlay, taken away in the end. Their programs are set by `frozen`."""
    made = Fleet("s")
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def clustered() -> Iterator[Clustered]:
    """Nodes on one underlay with a real etcd."""
    if PROGRAM is None:
        pytest.skip("no etcd here (apt-get install etcd-server)")
    made = Clustered("s")
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def engine() -> None:
    """For tests that need WireGuard between nodes."""
    if not wg_engine.find() or shutil.which("wg") is None:
        pytest.skip("no WireGuard engine here (apt-get install wireguard-go wireguard-tools)")


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
