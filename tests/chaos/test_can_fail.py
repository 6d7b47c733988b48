"""The storm can fail: each deliberate fault of `deliberate.py` is caught by a short one.

Without any it passes, so it is the fault that is caught and not the machine's mood.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import deliberate, program
from .machine import Machine
from .scenes import SCENES, extraction_directories
from .storm import Storm
from .test_storm import LAUNCHERS_SHARE, QUICK

FORM = "unpacked" if program.FORMS["unpacked"].exists() else "source"


def form_for(fault: str) -> str:
    """The single file without the launcher where the fault is about what only that leaves."""
    return "plain" if fault == "DirectoriesAreNotSwept" and FORM == "unpacked" else FORM


def short_storm(on: Machine) -> None:
    """Every scene, and a storm of few containers."""
    on.program.tune(**QUICK)
    on.start_daemon()
    for scene in SCENES:
        scene(on)
    storm = Storm(on, 7, containers=15, workers=6)
    storm.warm()
    first = on.snapshot()
    storm.rage(80, ["daemon serve after", "daemon State.drop before"])
    storm.quiet()
    storm.empty()
    storm.quiet()
    storm.same_as(first)
    assert extraction_directories(on) == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("form_of", ["none", "DirectoriesAreNotSwept"])
def test_without_a_fault_it_passes(form_of: str, boot: Callable[..., Machine]) -> None:
    short_storm(boot(form_for(form_of), "address_cooldown: 1"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", deliberate.ALL)
def test_a_deliberate_fault_is_caught(fault: str, boot: Callable[..., Machine]) -> None:
    on = boot(form_for(fault), "address_cooldown: 1")
    on.program.break_with(fault)
    with pytest.raises(AssertionError) as caught:
        short_storm(on)
    assert "the storm itself failed" not in str(caught.value), caught.value
    assert f"a deliberate fault is in force: {fault}" in on.log_tail(1 << 24)


@pytest.mark.parametrize("key", ["label", "l\u00e4bel"])
def test_a_launcher_that_hands_calls_over_is_caught(key: str, boot: Callable[..., Machine]) -> None:
    """With a key that is not ASCII in the configuration, the launcher hands each call over to Python."""
    if not program.FORMS["single"].exists():
        pytest.skip("the single file is not built: run scripts/build")
    on = boot("single", "address_cooldown: 1")
    on.program.tune(**QUICK)
    storm = Storm(on, 7, containers=15, workers=6)
    for box in storm.boxes:
        box.conf[key] = 1
    storm.warm()
    storm.lull(60)
    if key.isascii():
        storm.sent_by_launcher(LAUNCHERS_SHARE)
        return
    with pytest.raises(AssertionError, match="the launcher sent"):
        storm.sent_by_launcher(LAUNCHERS_SHARE)
