"""Two versions of the frozen program: the one at an earlier commit, and the present one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.host import wg_engine
from tests.mesh.etcds import PROGRAM as ETCD
from tests.mesh.etcds import Clustered
from tests.mesh.fleet import ROOT, Fleet
from tests.upgrade import older


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
def now() -> tuple[str, ...]:
    """The present program's command."""
    path = Path(os.environ.get("ZLAYER_PROGRAM", ROOT / "dist/zlayer-cni.d/zlayer-cni"))
    assert path.exists(), f"{path} is not there: scripts/build makes it"
    return (str(path),)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    made = Fleet("v")
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def engine() -> None:
    if not wg_engine.find() or shutil.which("wg") is None:
        pytest.skip("needs a WireGuard engine and wg (wireguard-go, wireguard-tools)")


@pytest.fixture
def clustered(engine: None) -> Iterator[Clustered]:
    if ETCD is None:
        pytest.skip("needs etcd (etcd-server)")
    made = Clustered("v")
    try:
        yield made
    finally:
        made.clean()
