"""kill -9 of the plugin between any two of its system calls, as a runtime does it: to the process that it started.

Every place is tried by `--longer`; else as many as time allows, others with each seed.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable

import pytest

from . import tracer
from .machine import Machine, Space
from .scenes import LEFT_NOTHING, extraction_directories, in_order, live
from .test_storm import QUICK

PLACES = 60  # of each verb, on each form
BUSY = 3.0  # seconds a busy machine may add


@pytest.fixture
def on(form: str, boot: Callable[..., Machine]) -> Machine:
    machine = boot(form, "address_cooldown: 1")
    machine.program.tune(**QUICK)
    machine.start_daemon()
    return machine


def traced(on: Machine, verb: str, space: Space, kill_at: int = 0) -> tracer.Traced:
    env = on.environment(verb, CNI_CONTAINERID="traced", CNI_NETNS=space.path, CNI_IFNAME="eth0")
    stdin = json.dumps(on.conf()).encode()
    return on.inside(lambda: tracer.run(on.program.command, stdin, env, kill_at))


def places(on: Machine, verb: str, space: Space, seed: int, every: bool) -> list[int]:
    """Where to kill: half of the places anywhere (most of a call is its start), half from the moment it knocks."""
    whole = traced(on, verb, space)
    assert (whole.code, whole.killed) == (0, False)
    if every:
        return list(range(1, whole.stops + 1))
    dice = random.Random(f"{seed}/{verb}")

    def spread(begin: int, end: int) -> list[int]:
        """One somewhere in each of as many equal parts."""
        return [begin + (n * (end - begin) + dice.randrange(end - begin)) // (PLACES // 2) for n in range(PLACES // 2)]

    assert whole.door, "no connection was made"
    return spread(1, whole.stops + 1) + spread(whole.door, whole.stops + 1)


def swept(on: Machine) -> None:
    end = time.monotonic() + 40
    while left := extraction_directories(on):
        assert time.monotonic() < end, left
        time.sleep(0.2)


@pytest.mark.timeout(1800)
def test_an_add_killed_anywhere_leaves_nothing(
    on: Machine, seed: int, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any DEL: a plugin that was killed has failed, even if the result was out already."""
    space, every = Space(on), bool(pytestconfig.getoption("--longer", default=False))
    where = places(on, "ADD", space, seed, every)
    on.call("DEL", on.conf(), "traced", space.path).ok()
    killed = 0
    for at in where:
        done = traced(on, "ADD", space, at)
        killed += done.killed
        if done.code == 0:
            in_order(on, live(json.loads(done.out), "traced", space))
            on.call("DEL", on.conf(), "traced", space.path).ok()
            continue
        try:
            in_order(on, within=LEFT_NOTHING + BUSY)
        except AssertionError as error:
            pytest.fail(f"seed {seed}, killed at {at}: {error}")
    swept(on)
    with capsys.disabled():
        print(f"\n{on.program.form}, seed {seed}: ADD killed at {killed} places of {max(where)}", end="")  # noqa: T201
    assert killed > len(where) / 2


@pytest.mark.timeout(1800)
def test_a_del_killed_anywhere_can_be_repeated(
    on: Machine, seed: int, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    space, every = Space(on), bool(pytestconfig.getoption("--longer", default=False))
    on.call("ADD", on.conf(), "traced", space.path).ok()
    where, killed = places(on, "DEL", space, seed, every), 0
    for at in where:
        on.call("ADD", on.conf(), "traced", space.path).ok()
        killed += traced(on, "DEL", space, at).killed
        on.call("DEL", on.conf(), "traced", "").ok()
        try:
            in_order(on, within=LEFT_NOTHING + BUSY)
        except AssertionError as error:
            pytest.fail(f"seed {seed}, killed at {at}: {error}")
    swept(on)
    with capsys.disabled():
        print(f"\n{on.program.form}, seed {seed}: DEL killed at {killed} places of {max(where)}", end="")  # noqa: T201
    assert killed > len(where) / 2


@pytest.mark.timeout(1800)
def test_a_start_killed_anywhere_can_be_repeated(form: str, seed: int, boot: Callable[..., Machine]) -> None:
    """The plugin that starts the daemon is killed while it does (and while it lays the program down): the next call
    starts it, and nothing half-made stays."""
    on = boot(form, "address_cooldown: 1")
    on.program.tune(**QUICK)
    space, dice = Space(on), random.Random(f"{seed}/start")
    whole = traced(on, "ADD", space)
    assert whole.code == 0
    on.call("DEL", on.conf(), "traced", space.path).ok()
    for n in range(12):
        on.signal_daemon(signal.SIGKILL)
        at = 1 + (n * whole.stops + dice.randrange(whole.stops)) // 12
        done = traced(on, "ADD", space, at)
        on.start_daemon()
        if done.code == 0:
            on.call("DEL", on.conf(), "traced", space.path).ok()
        try:
            in_order(on, within=LEFT_NOTHING + BUSY)
        except AssertionError as error:
            pytest.fail(f"seed {seed}, killed at {at}: {error}")
        assert list((on.data_dir / "program").glob(".new-*")) == []
    swept(on)
