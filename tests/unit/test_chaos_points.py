"""Every place that the chaos tests stop, kill or change is there: a module, and a function or a method in it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.chaos import deliberate, inside

PLACES = [(module, name) for module, names in inside.POINTS.items() for name in names]
ARMED = re.compile(r'"((?:daemon|plugin) [A-Za-z_.]+ (?:before|after))"')
PLACES += [(fault.MODULE, fault.NAME) for fault in deliberate.ALL.values()]


@pytest.mark.parametrize(("module", "name"), PLACES, ids=lambda each: each)
def test_a_place_exists(module: str, name: str) -> None:
    found: object = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)


@pytest.mark.parametrize("path", sorted(Path(inside.__file__).parent.glob("*.py")), ids=lambda each: each.name)
def test_a_point_that_a_test_arms_exists(path: Path) -> None:
    """A point without a place never fires, and the test goes on without its fault."""
    if path.name != "inside.py":
        assert set(ARMED.findall(path.read_text())) - set(inside.all_points()) == set()
