"""The search for a path's MTU, against simulated paths: what it finds, how fast, and with how many packets."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cni.daemon.model import path_search
from cni.daemon.model.path_search import GROW, SMALL, Bounds, PathState, ladder

BOUNDS = Bounds(576, 1420)


@dataclass
class Path:
    """A path that carries packets up to `carries` bytes, answers after `rtt` seconds, and loses some."""

    carries: int
    rtt: float = 0.02
    loss: float = 0.0
    bounds: Bounds = BOUNDS
    state: PathState = field(default_factory=PathState)
    now: float = 1000.0
    packets: int = 0
    answers: list[tuple[float, int]] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(7))

    def send(self, result: tuple[PathState, tuple[int, ...]]) -> None:
        self.state, sizes = result
        self.packets += len(sizes)
        for size in sizes:
            if size <= self.carries and self.dice.random() >= self.loss:
                self.answers.append((self.now + self.rtt, size))

    def settle(self) -> float:
        """Run until nothing is under way; returns the seconds that it took."""
        began = self.now
        while self.state.burst is not None:
            self.step()
        self.answers.clear()
        return self.now - began

    def step(self) -> None:
        """The next answer, or the next time-out."""
        self.answers.sort()
        if self.answers and self.answers[0][0] <= self.state.due():
            at, size = self.answers.pop(0)
            self.now = max(self.now, at)
            self.send(path_search.answer(self.state, size, self.bounds, self.now))
        else:
            self.now = self.state.due()
            self.send(path_search.advance(self.state, self.bounds, self.now))

    def measure(self, begin: Callable[..., tuple[PathState, tuple[int, ...]]] = path_search.check) -> float:
        self.packets = 0
        self.send(begin(self.state, self.bounds, self.now))
        return self.settle()


def largest(carries: int, bounds: Bounds = BOUNDS) -> int:
    sizes = [*range(-(-bounds.floor // 16) * 16, bounds.full, 16), bounds.full, bounds.floor]
    return max((size for size in sizes if size <= carries), default=bounds.floor)


@pytest.mark.parametrize("carries", range(500, 1440, 3))
def test_the_largest_size_that_passes_is_found(carries: int) -> None:
    path = Path(carries)
    seconds = path.measure()
    assert path.state.size == largest(carries)
    assert path.state.too_narrow == (carries < 576)
    assert path.packets <= 60
    assert seconds < 4.5


@pytest.mark.parametrize("carries", [1280, 1500, 4000, 8912, 8920])
def test_jumbo_frames_take_few_packets_more(carries: int) -> None:
    path = Path(carries, bounds=Bounds(1280, 8920))
    path.measure()
    assert path.state.size == largest(carries, path.bounds)
    assert path.packets <= 90


def test_a_wide_path_costs_one_small_and_one_large_packet() -> None:
    path = Path(1420)
    assert path.measure() == pytest.approx(path.rtt)
    assert (path.state.size, path.packets) == (1420, 2)


def test_a_silent_peer_changes_nothing() -> None:
    path = Path(0, state=PathState(size=1328, measured_at=5.0))
    path.measure()
    assert (path.state.size, path.state.measured_at, path.state.burst) == (1328, 5.0, None)
    assert path.packets == 6


def test_a_path_that_narrows_is_followed_in_seconds() -> None:
    path = Path(1420)
    path.measure()
    path.carries = 1340
    assert path.measure() < 2.5
    assert path.state.size == 1328


def test_a_path_that_widens_is_found_by_growth_alone() -> None:
    path = Path(1340)
    path.measure()
    path.carries = 1420
    path.measure()
    assert path.state.size == 1328, "a check sends nothing larger"
    path.measure(path_search.grow)
    assert path.state.size == 1420
    assert path.packets <= 10


def test_growth_in_vain_becomes_rare() -> None:
    path, pauses = Path(1340), []
    path.measure()
    for _ in range(8):
        path.now = max(path.now, path.state.grow_at)
        path.measure(path_search.grow)
        assert path.state.size == 1328
        pauses.append(path.state.grow_pause)
    assert pauses[0] == 2 * GROW[0]
    assert pauses[-1] == GROW[1]


def test_lost_packets_shrink_nothing_for_long() -> None:
    """One packet in ten is lost: the right size is found by far most checks, and never a larger one."""
    right = 0
    for seed in range(200):
        path = Path(1340, loss=0.1, dice=random.Random(seed))
        path.measure()
        assert path.state.size <= 1328
        right += path.state.size == 1328
    assert right >= 190


def test_an_answer_that_was_not_asked_for_counts_for_nothing() -> None:
    state, _ = path_search.check(PathState(size=1200), BOUNDS, 0.0)
    again, sizes = path_search.answer(state, 1420, BOUNDS, 0.1)
    assert (again, sizes) == (state, ())
    assert path_search.answer(PathState(), 1420, BOUNDS, 0.1) == (PathState(), ())


def test_a_path_below_the_floor_stays_so_until_it_is_searched_again() -> None:
    """Packets are fragmented then, and any size passes."""
    path = Path(1100, bounds=Bounds(1280, 1420))
    path.measure()
    assert (path.state.size, path.state.too_narrow) == (1280, True)
    path.carries = 1420
    path.measure()
    assert (path.state.size, path.state.too_narrow) == (1280, True)


def test_the_sizes_of_a_burst() -> None:
    assert ladder(0, 1421, BOUNDS) == (576, 688, 816, 928, 1056, 1168, 1296, 1420)
    assert ladder(1312, 1420, BOUNDS) == (1328, 1344, 1360, 1376, 1392, 1408)
    assert ladder(1408, 1420, BOUNDS) == ()
    assert ladder(0, 1281, Bounds(1280, 1280)) == (1280,)
    assert BOUNDS.floor > SMALL
