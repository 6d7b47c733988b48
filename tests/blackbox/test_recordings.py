"""Calls recorded from containerd, cnitool and ctr, made again at the plugin: each must do the right thing.

Twice over: each scenario in its order, as it happened to the interface plugin; and each call alone, in a world
where nothing happened before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import netns, shapes
from .harness.calls import Answer
from .harness.recordings import Call, load
from .harness.template import Json
from .harness.world import Container, World

Lab = Callable[[str], World]

SCENARIOS = load()
ALL = [call for calls in SCENARIOS.values() for call in calls]


def own_keys(world: World) -> Json:
    """The plugin's own part of a configuration."""
    conf = world.conf("1.0.0")
    return {key: value for key, value in conf.items() if key not in {"cniVersion", "name"}}


def speaks(world: World, call: Call) -> bool:
    return call.stdin.get("cniVersion", "0.1.0") in world.template.versions


class Stage:
    """The recorded containers and paths, played by containers and paths of ours."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.boxes: dict[str, Container] = {}
        self.holders: dict[str, netns.Holder] = {}

    def box(self, call: Call) -> Container:
        """The container that plays the recorded one: same id, a namespace of ours."""
        cid = call.env["CNI_CONTAINERID"]
        if cid not in self.boxes:
            self.boxes[cid] = self.world.container(cid)
        return self.boxes[cid]

    def path(self, call: Call) -> str:
        """The recorded path's counterpart, of the same kind: by PID, below /var/run, empty."""
        if not call.path:
            return ""
        box = self.box(call)
        if call.path.startswith("/proc/"):
            if call.path not in self.holders:
                self.holders[call.path] = netns.Holder(box.path)
            return f"/proc/{self.holders[call.path].pid}/ns/net"
        return f"{Path(call.path).parent}/{box.path.name}"

    def play(self, call: Call, conf: Json) -> Answer:
        """The call with its recorded environment: every variable, in particular those set but empty."""
        env: dict[str, str | None] = {key: value for key, value in call.env.items() if key != "CNI_PATH"}
        if call.path:
            env["CNI_NETNS"] = self.path(call)
        if call.env.get("CNI_CONTAINERID"):
            self.box(call).attached[conf["name"], call.env["CNI_IFNAME"]] = conf
        return self.world.in_time(call.verb, conf, env=env)

    def end(self) -> None:
        for holder in self.holders.values():
            holder.end()


@pytest.fixture
def stage(world: World) -> Iterator[Stage]:
    made = Stage(world)
    yield made
    made.end()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_in_its_order(stage: Stage, scenario: str) -> None:
    """The interface plugin's calls, with results passed on as the runtime did; at the end none of it is reserved."""
    world = stage.world
    calls = [call for call in SCENARIOS[scenario] if call.plugin == "bridge" and speaks(world, call)]
    results: dict[tuple[str, str], Json] = {}
    network, given = "", set[str]()
    for call in calls:
        conf = call.conf(own_keys(world))
        network = conf["name"]
        key = (call.env.get("CNI_CONTAINERID", ""), call.env.get("CNI_IFNAME", ""))
        if "prevResult" in conf and key in results:
            conf["prevResult"] = results[key]
        if call.verb == "DEL" and not call.path and call.netns is None and key[0] in stage.boxes:
            stage.boxes[key[0]].vanish()
        document = stage.play(call, conf).ok()
        if call.verb == "ADD":
            results[key] = document
            given |= set(shapes.bare(document))
            shapes.validate(document, conf["cniVersion"])
            (mine,) = shapes.inside(document)
            assert (mine["name"], mine["sandbox"]) == (key[1], stage.path(call))
            assert stage.boxes[key[0]].addresses(key[1]) == set(shapes.addresses(document))
            bridges = 1 if "unbridged" in world.template.features else 0
            assert len(document["interfaces"]) == len(call.stdout["interfaces"]) - bridges
        if call.verb == "DEL" and call.path:
            assert stage.boxes[key[0]].link(key[1]) is None
    for box in stage.boxes.values():
        box.remove(detach=True)
    assert not network or not world.reserved(network) & given


@pytest.mark.parametrize("call", ALL, ids=lambda call: call.named)
def test_a_call_alone(stage: Stage, call: Call) -> None:
    """Never seen before: a DEL succeeds, an ADD attaches or says why not, GC and STATUS succeed."""
    world = stage.world
    if not speaks(world, call):
        pytest.skip("the version is not claimed")
    conf = call.conf(own_keys(world))
    before = None
    if call.env.get("CNI_CONTAINERID"):
        box = stage.box(call)
        box.sh("ip link set lo up")
        before = world.look(box.path)
        if call.path:
            stage.path(call)
    answer = stage.play(call, conf)
    if call.verb != "ADD":
        answer.ok()
        if before is not None:
            world.assert_same(before, lambda: world.look(box.path))
    elif call.env["CNI_IFNAME"] == "lo":
        answer.failed()
        world.assert_same(before or {}, lambda: world.look(box.path))
    elif "prevResult" in conf and answer.rc != 0:
        answer.failed(7)
        assert box.link() is None
    else:
        result = answer.ok()
        shapes.validate(result, conf["cniVersion"])
        assert box.addresses() <= set(shapes.addresses(result))
        assert box.addresses()


def test_the_recorded_capabilities_reach_the_result(stage: Stage, need: Callable[[str], None]) -> None:
    """The probe of the recordings declared every capability: what a runtime then sends, capitalised, is taken."""
    need("capability-dns")
    (call,) = [c for c in ALL if c.scenario.endswith("capabilities") and c.plugin == "zlrt-probe" and c.verb == "ADD"]
    conf = call.conf(own_keys(stage.world))
    del conf["prevResult"]
    dns = conf["runtimeConfig"]["dns"]
    result = stage.play(call, conf).ok()
    assert result["dns"]["nameservers"] == dns["Servers"]
    assert result["dns"]["search"] == dns["Searches"]
    assert result["dns"].get("options", []) == dns["Options"]
