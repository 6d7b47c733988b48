"""Attacks from inside a container: none gets through, and the attacker's honest traffic does."""

from __future__ import annotations

import pytest

from . import (  # noqa: F401 - they register
    attacks,
    attacks_connected,
    attacks_edge,
    attacks_flows,
    attacks_hairpin,
    attacks_handed,
    attacks_leaving,
    attacks_mesh,
    attacks_neighbours,
    attacks_odd,
    attacks_openings,
    attacks_routed,
    attacks_source,
    attacks_unbridged,
)
from .lab import ROUTED, Lab

LONG = frozenset(attacks_openings.NAMES) - frozenset(attacks_openings.DEFAULT)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in sorted(attacks.ATTACKS)]
)
def test_attack(shared_lab: Lab, name: str) -> None:
    if ROUTED and name in attacks.OF_BRIDGES:
        pytest.skip(attacks.OF_BRIDGES[name])
    assert attacks.run(shared_lab, name) == []
