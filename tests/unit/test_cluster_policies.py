"""What a Kubernetes API tells becomes policies, pods and namespaces of the fence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni.daemon.events import Events
from cni.daemon.kubernetes.policies import ClusterPolicies
from cni.daemon.model.kubernetes import ClusterPolicy, NamedPort, Namespace, Pod
from cni.daemon.parts_fence import build_fence
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.daemon.state.store import Store
from cni.daemon.state.tables import Tables
from cni.host.worker import Crew

WEB = Pod("shop", "web", "u1", {"app": "web"}, node="b", ips=("10.0.0.2",), ports=(NamedPort("http", "TCP", 80),))
DB = Pod("other", "db", "u2", {"app": "db"}, node="b", ips=("10.0.0.3",))
PEER = {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {"matchLabels": {"app": "db"}}}
SPEC = {"podSelector": {}, "ingress": [{"from": [PEER], "ports": [{"port": "http"}]}]}


class Scene:
    """The parts below, with a fence whose tables are not loaded."""

    def __init__(self, directory: Path) -> None:
        events, store = Events(), Store(directory / "state")
        self.board, self.tables, settings = ProblemBoard(events), Tables(store), Settings()
        state = State(store, settings, events)
        self.fence = build_fence(state, settings, True, lambda: True, lambda: ())
        self.policies = ClusterPolicies(self.fence.members, self.tables, "a", self.board, Crew())

    def policy(self, spec: dict[str, Any]) -> None:
        self.tables.cluster_policies.put("shop/p", ClusterPolicy("shop", "p", json.dumps(spec)))

    def allows(self, port: int) -> bool:
        return self.fence.status.judge("10.0.0.3", "10.0.0.2", "TCP", port).allowed


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    made.tables.pods.apply({"shop/web": WEB, "other/db": DB})
    made.tables.namespaces.apply({"shop": Namespace("shop"), "other": Namespace("other", {"team": "a"})})
    made.policy(SPEC)
    made.policies.take_in()
    return made


def test_what_is_recorded_is_in_force_at_the_start(scene: Scene) -> None:
    assert scene.allows(80) and not scene.allows(81)
    assert not scene.fence.status.judge("10.0.0.9", "10.0.0.2", "TCP", 80).allowed


def test_a_policy_that_cannot_be_read_keeps_its_last_good_content(scene: Scene) -> None:
    changed = ClusterPolicy("shop", "p", json.dumps({**SPEC, "newer": {}}))
    scene.policies.on_policies({"shop/p": changed})
    scene.policies.take_in_changes()
    assert scene.allows(80) and not scene.allows(81)
    assert scene.board.subjects("policy-refused") == {"shop/p"}
    scene.policies.on_policies({"shop/p": None})
    scene.policies.take_in_changes()
    assert scene.allows(81) and not scene.board.subjects("policy-refused")


def test_changes_of_pods_and_namespaces_count(scene: Scene) -> None:
    scene.policies.on_namespaces({"other": Namespace("other")})
    scene.policies.take_in_changes()
    assert not scene.allows(80)
    scene.policies.on_namespaces({"other": Namespace("other", {"team": "a"})})
    scene.policies.on_pods({"other/db": Pod("other", "db", "u3", {"app": "x"}, node="b", ips=("10.0.0.3",))})
    scene.policies.take_in_changes()
    assert not scene.allows(80)
    scene.policies.on_pods({"other/db": DB, "shop/web": None})
    scene.policies.take_in_changes()
    assert scene.allows(81)  # the address is no pod's any more
