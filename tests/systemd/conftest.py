"""A scratch machine for each module, with the program brought to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.binary.conftest import FROZEN
from tests.systemd.machine import Machine, cgroups, directory


@pytest.fixture(scope="module")
def booted() -> Iterator[Machine]:
    found = cgroups()
    assert found is not None
    on = Machine(directory(), found)
    try:
        on.boot()
        on.bring(FROZEN["single"], "/root/zlayer-cni")
        yield on
    finally:
        on.remove()


@pytest.fixture
def on(booted: Machine) -> Machine:
    """The machine with the program installed, without attachments."""
    booted.sh("systemctl stop containerd 2>/dev/null; /root/zlayer-cni install 2>&1")
    return booted
