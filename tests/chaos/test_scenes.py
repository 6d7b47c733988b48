"""Each scene of `scenes.py`, on each form of the program."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .machine import Machine
from .scenes import SCENES
from .test_storm import QUICK


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_scene(form: str, scene: Callable[[Machine], None], boot: Callable[..., Machine]) -> None:
    on = boot(form, "address_cooldown: 1")
    on.program.tune(**QUICK)
    on.start_daemon()
    scene(on)
