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


def again(scene: Scene) -> ClusterPolicies:
    """What a daemon that starts takes in of the same records."""
    made = ClusterPolicies(scene.fence.members, scene.tables, "a", scene.board, Crew())
    made.take_in()
    return made


def refused(scene: Scene, spec: dict[str, Any]) -> None:
    """The API server tells an edit that this version cannot read; the follower records it first."""
    changed = ClusterPolicy("shop", "p", json.dumps(spec))
    scene.tables.cluster_policies.put("shop/p", changed)
    scene.policies.on_policies({"shop/p": changed})
    scene.policies.take_in_changes()


def test_the_last_good_content_outlives_the_daemon(scene: Scene) -> None:
    refused(scene, {**SPEC, "newer": {}})
    policies = again(scene)
    assert scene.allows(80) and not scene.allows(81)
    assert scene.board.subjects("policy-refused") == {"shop/p"}
    mended = ClusterPolicy("shop", "p", json.dumps({**SPEC, "ingress": []}))
    scene.tables.cluster_policies.put("shop/p", mended)
    policies.on_policies({"shop/p": mended})
    policies.take_in_changes()
    assert not scene.allows(80)
    assert scene.tables.held_policies.all() == {}


def test_a_last_good_content_that_cannot_be_read_isolates_and_is_kept(tmp_path: Path) -> None:
    """Another version has recorded it: that one may come back."""
    scene = Scene(tmp_path)
    scene.tables.pods.apply({"shop/web": WEB, "other/db": DB})
    scene.policy({**SPEC, "newest": 1})
    newer = ClusterPolicy("shop", "p", json.dumps({**SPEC, "newer": 1}))
    scene.tables.held_policies.put("shop/p", newer)
    policies = again(scene)
    policies.take_in_changes()
    assert not scene.allows(80)
    assert scene.board.subjects("policy-refused") == {"shop/p"}
    assert scene.tables.held_policies.all() == {"shop/p": newer}


def test_a_deleted_policy_leaves_no_last_good_content(scene: Scene) -> None:
    refused(scene, {**SPEC, "newer": {}})
    assert scene.tables.held_policies.get("shop/p") is not None
    scene.policies.on_policies({"shop/p": None})
    assert scene.tables.held_policies.all() == {}


@pytest.mark.parametrize(
    ("spec", "isolates_web", "both"),
    [
        ({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{}], "newer": 1}, True, False),
        ({"podSelector": {"matchLabels": {"app": "else"}}, "ingress": [{}], "newer": 1}, False, False),
        ({"podSelector": {"matchNewer": {}}, "ingress": [{}]}, True, False),
        ({"podSelector": {}, "policyTypes": ["Newer"]}, True, True),
        ({"podSelector": {}, "egress": [{"newer": 1}]}, True, True),
        ({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{"newer": 1}], "egress": [{}]}, False, True),
        ([], True, False),
    ],
)
def test_a_policy_that_could_never_be_read_isolates_what_it_selects(
    tmp_path: Path, spec: Any, isolates_web: bool, both: bool
) -> None:
    made = Scene(tmp_path)
    made.tables.pods.apply({"shop/web": WEB, "other/db": DB})
    made.tables.namespaces.apply({"shop": Namespace("shop"), "other": Namespace("other", {"team": "a"})})
    made.policy(spec)
    made.policies.take_in()
    assert made.allows(80) is not isolates_web
    assert made.fence.status.judge("10.0.0.2", "10.0.0.3", "TCP", 80).allowed is not both
    assert made.board.subjects("policy-refused") == {"shop/p"}


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
