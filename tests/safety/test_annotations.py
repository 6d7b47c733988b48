"""What a pod's annotations decide, and what they cost: by real calls of the runtime's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.mesh.fleet import Container, Node
from tests.safety.test_owners import refusal, unattached

KEY = "io.kubernetes.cri.pod-annotations"
NETWORK, MODE, SERVICE = "com.zlayer.isolation_network", "com.zlayer.overlay.mode", "com.zlayer.service"


def pod(node: Node, name: str, wish: dict[str, str], **conf: Any) -> Container:
    """A container with the annotations `wish`, not attached yet; `conf` is the list's."""
    made = unattached(node, name)
    made.conf = {"runtimeConfig": {KEY: wish}, **conf}
    return made


def named(node: Node) -> list[str]:
    """The isolation networks that have members."""
    found = [each["isolation_network"] for each in node.tool("networks")["networks"] if each["members"]]
    return [each for each in found if each is not None]


def test_a_pod_does_not_choose_where_the_list_pins(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    pinned = {"isolationNetwork": "blue", "mode": "auto"}
    for name, wish in (
        ("a", {NETWORK: "red"}),
        ("b", {SERVICE: "theirs"}),
        ("c", {MODE: "isolated"}),
    ):
        said = refusal(node, "ADD", pod(node, name, wish, **pinned))
        assert said["code"] == 7, said
        assert next(iter(wish)) in str(said["msg"])
    by_protocol = pod(node, "f", {NETWORK: "red"}, overlayd={"socket": node.socket}, **pinned)
    assert refusal(node, "ADD", by_protocol)["code"] == 7  # in front of a daemon that speaks the protocol alone, too
    same = pod(node, "d", {NETWORK: "blue"}, **pinned)
    node.plugin("ADD", same)
    fenced = pod(node, "e", {NETWORK: "red"}, mode="isolated")
    assert refusal(node, "ADD", fenced)["code"] == 7
    node.plugin("DEL", fenced)  # takes the container down whatever the annotations say
    assert named(node) == ["blue"]


def test_a_pod_chooses_where_the_list_gives_no_value_and_among_what_it_names(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    free = pod(node, "a", {NETWORK: "red"})
    node.plugin("ADD", free)
    only = {"annotations": {"allow": ["isolationNetwork", "service"], "networks": ["red"], "services": ["web", "db"]}}
    node.plugin("ADD", pod(node, "b", {NETWORK: "red", SERVICE: "db"}, **only))
    for name, wish in (("c", {NETWORK: "blue"}), ("d", {SERVICE: "other"}), ("e", {MODE: "isolated"})):
        assert refusal(node, "ADD", pod(node, name, wish, **only))["code"] == 7
    nothing = {"annotations": {"allow": []}}
    assert refusal(node, "ADD", pod(node, "f", {NETWORK: "red"}, **nothing))["code"] == 7
    assert refusal(node, "ADD", pod(node, "g", {NETWORK: "edge:laptop"}))["code"] == 7
    assert named(node) == ["red"]


def test_short_lived_pods_with_names_of_their_own_use_up_no_subnets(frozen: Callable[..., Node]) -> None:
    node = frozen(1, cluster_cidr="10.200.0.0/22", slice_cidr="10.200.0.0/26", service_cidr=None, address_cooldown=0)
    container = unattached(node, "short")
    for n in range(24):  # the range has 16 subnets
        container.service = f"name-{n}"
        node.plugin("ADD", container)
        node.plugin("DEL", container)
    container.service = "wanted"
    node.plugin("ADD", container)


def test_empty_services_keep_no_more_subnets_than_they_may(frozen: Callable[..., Node]) -> None:
    node = frozen(1, idle_services=2)
    container = unattached(node, "short")
    for n in range(6):
        container.service = f"name-{n}"
        node.plugin("ADD", container)
        node.plugin("DEL", container)
    bridges = [link["ifname"] for link in node.ip("link", "show", "type", "bridge")]
    assert len(bridges) == 3  # the two, and the last one, which became empty after the look


def test_new_services_have_a_bound_for_each_namespace(frozen: Callable[..., Node]) -> None:
    node = frozen(1, new_services_per_minute=3)
    container = unattached(node, "short")
    container.arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=greedy"
    for n in range(3):
        container.service = f"name-{n}"
        node.plugin("ADD", container)
        node.plugin("DEL", container)
    container.service = "name-3"
    said = refusal(node, "ADD", container)
    assert said["code"] == 11
    assert "new_services_per_minute" in str(said["msg"]) and "greedy" in str(said["msg"])
    container.service = "name-0"  # it is there
    node.plugin("ADD", container)
    node.plugin("DEL", container)
    container.arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=modest"
    container.service = "name-4"
    node.plugin("ADD", container)


def test_a_list_that_is_wrong_is_told(frozen: Callable[..., Node], tmp_path: Path) -> None:
    node = frozen(1)
    wrong = {"annotations": {"allow": ["network"]}}
    said = refusal(node, "ADD", pod(node, "a", {}, **wrong))
    assert said["code"] == 7 and 'annotations.allow[0]: "network"' in str(said["msg"])
    entry = tmp_path / "entry.json"
    for given, good in (({"allow": ["service"], "networks": ["red"]}, True), ({"alow": []}, False)):
        entry.write_text(json.dumps({"type": "zlayer-cni", "annotations": given}))
        done = subprocess.run([*node.program, "validate", str(entry)], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is good, done.stdout
