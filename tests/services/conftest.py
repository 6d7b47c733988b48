"""Two nodes with the real kube-proxy and dual-stack services, for every kind of rules that it writes.

ZLAYER_ATTACH is the containers' attach mode: bridge, or routed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cni.host import wg_engine

from .kube_proxy import MODES, PROGRAM
from .scene import Scene, opened


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "services" and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="module", params=MODES)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """The nodes and their services."""
    if not PROGRAM.exists():
        pytest.skip("no kube-proxy here (tests/services/build-kube-proxy)")
    if not wg_engine.find():
        pytest.skip("no WireGuard engine here (apt-get install wireguard-go)")
    with opened(request.param, os.environ.get("ZLAYER_ATTACH", "bridge")) as made:
        yield made
