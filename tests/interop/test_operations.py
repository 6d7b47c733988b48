"""Our client drives both daemons through the same scenario; where they differ is written down, and why."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import pytest

from cni.overlay import requests
from tests.interop.daemons import Daemon, Ours, Upstream
from tests.interop.differences import DIFFERENCES
from tests.interop.scenario import STEPS, Stage, play

Outcomes = dict[str, dict[str, Any]]


def run(daemon: Daemon) -> dict[str, Any]:
    return play(Stage(daemon, daemon.manager()))


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Filled by the first tests that play the scenario."""
    return {}


@pytest.mark.parametrize("kind", [Upstream, Ours], ids=lambda kind: kind.name)
def test_the_scenario_is_played(
    kind: type[Daemon], make_daemon: Callable[[type[Daemon]], Daemon], outcomes: Outcomes
) -> None:
    outcomes[kind.name] = run(make_daemon(kind))
    assert list(outcomes[kind.name]) == list(STEPS)
    hung = [name for name, outcome in outcomes[kind.name].items() if "DeadlinePassed" in str(outcome)]
    assert hung == [], "the daemon did not answer"


@pytest.mark.parametrize("name", STEPS)
def test_both_do_the_same_or_differ_as_written_down(name: str, outcomes: Outcomes) -> None:
    if len(outcomes) < 2:
        pytest.skip("the scenario was not played on both daemons")
    upstream, ours = outcomes["upstream"][name], outcomes["ours"][name]
    known = DIFFERENCES.get(name)
    if known is None:
        assert ours == upstream
    elif upstream != ours or not known.without_wireguard:
        assert (upstream, ours) == (known.upstream, known.ours), f"contract {known.contract}: {known.why}"
        assert upstream != ours, "a stale entry: they agree"


def test_every_difference_is_of_a_step() -> None:
    assert set(DIFFERENCES) <= set(STEPS)


def test_every_operation_is_sent(monkeypatch: pytest.MonkeyPatch, ours: Daemon) -> None:
    """All 26 of them, Windows' and macOS' included: those are refused in the contract's words."""
    sent: set[str] = set()
    from cni.overlay.client import Client

    original = Client.round_trip

    def spy(self: Client, request: Any, deadline: Any) -> Any:
        sent.add(type(request).__name__)
        return original(self, request, deadline)

    monkeypatch.setattr(Client, "round_trip", spy)
    run(ours)
    every = {kind.__name__ for kind in typing.get_args(requests.AnyRequest)}
    assert len(every) == 26
    assert sent == every
