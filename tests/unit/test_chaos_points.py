"""Every place that the chaos tests stop, kill or change is there: a module, and a function or a method in it."""

from __future__ import annotations

import importlib

import pytest

from tests.chaos import deliberate, inside

PLACES = [(module, name) for module, names in inside.POINTS.items() for name in names]
PLACES += [(fault.MODULE, fault.NAME) for fault in deliberate.ALL.values()]


@pytest.mark.parametrize(("module", "name"), PLACES, ids=lambda each: each)
def test_a_place_exists(module: str, name: str) -> None:
    found: object = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)
