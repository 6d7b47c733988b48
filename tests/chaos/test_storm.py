"""The storm on both frozen forms: whatever is killed, stopped or rebooted, nothing is lost and nothing left."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .machine import Machine
from .scenes import extraction_directories
from .storm import Storm, daemon_points

QUICK = {"cni__daemon__reconcile__node__INTERVAL": 2.0, "cni__tempdir_sweeper___YOUNGEST": 1.0}
"""The keeper looks often, so that a test sees what it finds; it does nothing else than with its own interval."""

LULLS = 25  # one operation of so many is added after each part, while nothing happens to the daemon
LAUNCHERS_SHARE = 0.95  # of the calls to a daemon that lives; Python serves what the launcher hands over


@pytest.mark.timeout(7200)
def test_nothing_is_lost_and_nothing_left(
    form: str, seed: int, operations: int, boot: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    on = boot(form, "address_cooldown: 1")
    on.program.tune(**QUICK)
    storm = Storm(on, seed)
    storm.warm()
    first = on.snapshot()
    points = [p for p in daemon_points() if form == "unpacked" or p.startswith("daemon")]
    storm.random.shuffle(points)
    todo, parts = list(points), 5
    for part in range(parts):
        storm.rage(operations // parts, todo)
        if part in (1, 3):
            storm.reboot(wiped=part == 1)
        storm.quiet()
        storm.lull(operations // LULLS)
    storm.pass_by(todo)
    storm.quiet()
    storm.empty()
    storm.quiet()
    storm.same_as(first)
    assert extraction_directories(on) == []
    with capsys.disabled():
        print(f"\n{form}, seed {seed}: {storm.told()}")  # noqa: T201
    if form == "single":
        storm.sent_by_launcher(LAUNCHERS_SHARE)
    assert todo == [], "fault points that no thread passed"
