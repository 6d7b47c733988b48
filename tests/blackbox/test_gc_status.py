"""BB-G: GC frees what is dead and not in the list, nothing else; STATUS says whether an ADD would work, and quickly."""

from __future__ import annotations

import itertools
import os
import signal
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from .harness import shapes
from .harness.calls import Answer
from .harness.template import Json
from .harness.world import Container, World

Lab = Callable[[str], World]
At = Callable[..., str]
Need = Callable[[str], None]

NEW, OLD = "cni.dev/valid-attachments", "cni.dev/attachments"
EMPTY = {"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": "", "CNI_ARGS": ""}
numbers = itertools.count(1)


@dataclass
class Scene:
    """One network with a live container and one whose namespace is gone without a DEL."""

    world: World
    conf: Json
    live: Container
    dead: Container
    live_result: Json
    dead_result: Json

    def gc(self, **keys: Any) -> Answer:
        return self.world.call("GC", {**self.conf, **keys}, env=EMPTY)

    @property
    def reserved(self) -> set[str]:
        return self.world.reserved(self.conf["name"])

    def live_is_well(self) -> None:
        assert set(shapes.bare(self.live_result)) <= self.reserved
        self.live.check(self.conf, self.live_result).ok()
        assert self.live.ping(shapes.gateways(self.live_result)[0])

    def dead_is_freed(self) -> None:
        assert not set(shapes.bare(self.dead_result)) & self.reserved, "the dead one's address is still reserved"

    def dead_is_kept(self) -> None:
        assert set(shapes.bare(self.dead_result)) <= self.reserved, "what the list names was freed"


def entry(box: Container, ifname: str = "eth0") -> Json:
    return {"containerID": box.cid, "ifname": ifname}


def make_scene(world: World, at: At) -> Scene:
    conf = world.conf(at("1.1.0"), name=f"zlt-gc-{next(numbers)}")
    live, dead = world.container(), world.container()
    made = Scene(world, conf, live, dead, live.attach(conf), dead.attach(conf))
    dead.vanish()
    return made


@pytest.fixture
def scene(world: World, at: At, need: Need) -> Iterator[Scene]:
    need("gc")
    return make_scene(world, at)  # type: ignore[return-value]


def test_g01_keep_what_is_listed_and_free_the_rest(scene: Scene) -> None:
    scene.gc(**{NEW: [entry(scene.live)]}).ok()
    scene.live_is_well()
    scene.dead_is_freed()


@pytest.mark.parametrize("path", ["", None], ids=["empty", "absent"])
def test_e2_gc_needs_cni_path(world: World, at: At, need: Need, path: str | None) -> None:
    need("gc")
    answer = world.call("GC", world.conf(at("1.1.0")), env={**EMPTY, "CNI_PATH": path})
    assert "CNI_PATH" in answer.failed(4)["msg"]


@pytest.mark.parametrize("nothing", [[], None], ids=["empty", "null"])
def test_g02_an_empty_list_and_null_free_the_dead(scene: Scene, nothing: list[object] | None) -> None:
    """CRI-O sends null for a network without pods (G3)."""
    scene.gc(**{NEW: nothing}).ok()
    scene.dead_is_freed()


def test_g03_no_list_is_not_an_empty_list(scene: Scene) -> None:
    scene.gc().ok()
    scene.live_is_well()


def test_g04_only_the_legacy_key(scene: Scene) -> None:
    scene.gc(**{OLD: [entry(scene.live)]}).ok()
    scene.live_is_well()
    scene.dead_is_freed()


def test_g05_the_new_key_wins(scene: Scene) -> None:
    scene.gc(**{NEW: [entry(scene.live)], OLD: [entry(scene.dead)]}).ok()
    scene.live_is_well()
    scene.dead_is_freed()


def test_g06_another_network_is_untouched(scene: Scene, at: At) -> None:
    other = make_scene(scene.world, at)
    scene.gc(**{NEW: []}).ok()
    other.live_is_well()
    other.dead_is_kept()


def test_g08_twice_and_with_strangers(scene: Scene) -> None:
    stranger = {"containerID": "never-seen", "ifname": "eth0"}
    for _ in range(2):
        scene.gc(**{NEW: [entry(scene.live), stranger]}).ok()
    scene.live_is_well()
    scene.dead_is_freed()


def test_g09_what_lives_is_not_freed(scene: Scene) -> None:
    """G4: two runtimes may share a network; freeing a used address is worse than keeping one."""
    scene.gc(**{NEW: []}).ok()
    scene.live_is_well()


@pytest.mark.parametrize(
    "bad",
    ["x", 7, {}, ["x"], [7], [{"containerID": 7, "ifname": "eth0"}], [{"ifname": "eth0"}], [{"containerID": "a"}]],
    ids=str,
)
def test_g10_a_malformed_list_frees_nothing(scene: Scene, bad: object) -> None:
    answer = scene.gc(**{NEW: bad})
    scene.live_is_well()
    scene.dead_is_kept()
    answer.failed(6, 7)


def test_g10_what_the_list_names_stays(scene: Scene) -> None:
    scene.gc(**{NEW: [entry(scene.live), {**entry(scene.dead), "more": 1}]}).ok()
    scene.live_is_well()


def test_d10_a_del_after_the_gc(scene: Scene) -> None:
    scene.gc(**{NEW: [entry(scene.live)]}).ok()
    scene.dead.delete(scene.conf, prev=scene.dead_result).ok()
    scene.dead.delete(scene.conf, path="").ok()
    scene.live_is_well()


def test_gc_leaves_no_trace_of_the_dead(fresh: Lab, at: At, need: Need) -> None:
    """Links, rules, elements: as before the container that died."""
    need("gc")
    world = fresh("masq")
    conf = world.conf(at("1.1.0"), variant="masq")
    world.warm(conf)
    before = world.snapshot()
    box = world.container()
    box.attach(conf)
    box.vanish()
    world.call("GC", {**conf, NEW: []}, env=EMPTY).ok()
    world.assert_baseline(before)


# --- STATUS --------------------------------------------------------------------------------------------------


def quickest(world: World, conf: Json, within: float) -> Answer:
    """A STATUS that took less than so many seconds; of some, since a busy machine may add to one."""
    took = []
    for _ in range(8):
        answer = world.call("STATUS", conf, env=EMPTY)
        took.append(answer.took)
        if answer.took < within:
            return answer
    raise AssertionError(f"no STATUS within {within} s: {took}")


def test_g11_ready_on_a_fresh_host(fresh: Lab, at: At, need: Need) -> None:
    """A runtime that waits for STATUS would never call ADD if it were not."""
    need("status")
    world = fresh("base")
    world.ready(world.conf(at("1.1.0")))
    world.container().attach(world.conf(at("1.1.0")))
    world.ready(world.conf(at("1.1.0")))


def test_g11_no_daemon_and_none_may_be_started(fresh: Lab, at: At, need: Need) -> None:
    need("daemon")
    world = fresh("base")
    conf = world.conf(at("1.1.0"), variant="no-autostart")
    quickest(world, conf, 2.0).failed(50)
    assert not world.run_dir.joinpath("overlayd.pid").exists()
    box = world.container()
    box.add(conf).failed(11)
    assert box.link() is None


def test_g11_the_daemon_was_killed(fresh: Lab, at: At, need: Need) -> None:
    need("daemon")
    world = fresh("base")
    conf = world.conf(at("1.1.0"))
    world.warm(conf)
    world.stop_daemon(signal.SIGKILL)
    quickest(world, {**conf, "autostart": False}, 2.0).failed(50)
    world.ready(conf)


def test_g12_what_a_status_costs(world: World, at: At, need: Need) -> None:
    """Every few seconds, for each network (S5): not dearer than a few times a call that does nothing, VERSION."""
    need("status")
    conf = world.conf(at("1.1.0"))
    world.warm(conf)
    ratios = []
    for _ in range(15):
        nothing, answer = world.call("VERSION", conf, env=EMPTY), world.in_time("STATUS", conf, env=EMPTY)
        answer.ok()
        ratios.append(answer.took / nothing.took)
    assert statistics.median(ratios) < 6, sorted(ratios)


def test_g13_a_daemon_that_hangs(fresh: Lab, at: At, need: Need) -> None:
    need("daemon")
    world = fresh("base")
    conf = world.conf(at("1.1.0"))
    world.warm(conf)
    pid = world.daemon()
    os.kill(pid, signal.SIGSTOP)
    try:
        answer = quickest(world, conf, 2.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    answer.failed(50)
    world.ready(conf)
