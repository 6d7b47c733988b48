"""The fence's kernel tests: a lab of namespaces for each, so that none sees what another left."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .lab import Lab, opened
from .probes import Ears


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They all need root."""
    for item in items:
        if item.path.parent.name == "fence":
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(params=[0, 1], ids=["nf-call-0", "nf-call-1"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab with the fence in force, bridged packets shown to iptables or not."""
    with opened() as made:
        made.nf_call(request.param)
        yield made


@pytest.fixture(scope="module", params=[0, 1], ids=["nf-call-0", "nf-call-1"])
def shared_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One lab for a module's tests, each of which puts back what it changed."""
    with opened() as made:
        made.nf_call(request.param)
        yield made


@pytest.fixture
def ears(lab: Lab) -> Iterator[Ears]:
    """Ears in every namespace of `lab`."""
    made = Ears(lab)
    yield made
    made.close()
