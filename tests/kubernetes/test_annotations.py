"""Pods and Namespaces are followed: their annotations decide where a pod belongs, and an ADD asks the API server
nothing."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest

from tests.mesh.fleet import Container, Node, wait_for

from .control_plane import ControlPlane

TRY_AGAIN, INVALID = 11, 7


def namespace(plane: ControlPlane, name: str, **annotations: str) -> None:
    """Create or change a Namespace; the annotations are those of this product."""
    metadata = {"name": name, "annotations": {f"com.zlayer.{key}": text for key, text in annotations.items()}}
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


def pod(plane: ControlPlane, where: str, name: str, node: str = "node1", **annotations: str) -> str:
    """Create a Pod that is bound to a node, as the scheduler does; its uid."""
    metadata = {"name": name, "namespace": where}
    metadata |= {"annotations": {f"com.zlayer.{key}": text for key, text in annotations.items()}}
    spec = {"nodeName": node, "containers": [{"name": "a", "image": "a"}]}
    plane.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return str(json.loads(plane.kubectl("get", "pod", name, "-n", where, "-o", "json"))["metadata"]["uid"])


def add(node: Node, where: str, name: str, uid: str = "", **conf: Any) -> subprocess.CompletedProcess[str]:
    """An ADD as kubelet and runtime make it. Where `conf` has no annotations, the runtime passes none."""
    made: Container = node.unattached(name)
    made.arguments = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={where};K8S_POD_NAME={name};K8S_POD_UID={uid}"
    made.conf = {"service": "all", "annotations": {"allow": ["service", "isolationNetwork"]}, **conf}
    return node.call("ADD", made, check=False)


def code(done: subprocess.CompletedProcess[str]) -> int:
    return int(json.loads(done.stdout).get("code", 0))


def attached(node: Node, name: str) -> dict[str, Any]:
    """What is recorded of the pod."""
    return next(each for each in node.tool("attachments") if each["pod"].endswith(f"/{name}"))


@pytest.fixture
def node(plane: ControlPlane) -> Node:
    plane.kubectl("create", "serviceaccount", "default", "-n", "default")
    return plane.member(1)


def test_a_pod_is_attached_as_its_namespace_and_its_annotations_say(plane: ControlPlane, node: Node):
    namespace(plane, "shop", service="shop", isolation_networks="red")
    plane.kubectl("create", "serviceaccount", "default", "-n", "shop")
    uid = pod(plane, "shop", "plain")
    assert wait_for(lambda: code(add(node, "shop", "plain", uid)) == 0, "the pod is known")
    assert attached(node, "plain")["service"] == "shop"
    uid = pod(plane, "shop", "fenced", isolation_network="red", service="web")
    assert wait_for(lambda: code(add(node, "shop", "fenced", uid)) == 0, "the pod is known")
    assert attached(node, "fenced")["isolation_network"] == "red"
    uid = pod(plane, "shop", "greedy", isolation_network="blue")
    refused = wait_for(lambda: _unless_again(add(node, "shop", "greedy", uid)), "the pod is known")
    assert code(refused) == INVALID and "the Namespace shop does not let its Pod greedy choose" in refused.stdout
    namespace(plane, "shop", service="shop", isolation_networks="red,blue")
    wait_for(lambda: code(add(node, "shop", "greedy", uid)) == 0, "what the Namespace grants now")


def _unless_again(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str] | None:
    return None if code(done) == TRY_AGAIN else done


def test_what_is_unknown_is_tried_again_and_what_is_known_stays_known(plane: ControlPlane, node: Node):
    passed = {"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"kubernetes.io/config.source": "api"}}}
    unknown = add(node, "later", "one", **passed)
    assert code(unknown) == TRY_AGAIN and "later" in unknown.stdout
    namespace(plane, "later", service="later")
    wait_for(lambda: code(add(node, "later", "one", **passed)) == 0, "the Namespace is known")
    assert code(add(node, "later", "two")) == TRY_AGAIN  # the runtime passes nothing of it, and the watch has not
    plane.kubectl("create", "serviceaccount", "default", "-n", "later")
    first = pod(plane, "later", "two")
    wait_for(lambda: code(add(node, "later", "two", first)) == 0, "the Pod is known")
    assert code(add(node, "later", "two", "another-uid")) == TRY_AGAIN  # the next Pod of that name

    plane.stop("kube-apiserver", signal.SIGKILL)
    assert code(add(node, "later", "three", **passed)) == 0
    node.end()
    node.start()  # it has heard nothing since, and knows the Namespace
    assert code(add(node, "later", "four", **passed)) == 0
    assert attached(node, "four")["service"] == "later"
    plane.serve()
    namespace(plane, "newer", service="newer")  # the watch cache is new, and the followers' versions may be too old
    wait_for(lambda: code(add(node, "newer", "five", **passed)) == 0, "it follows again", 40)
    plane.kubectl("delete", "namespace", "newer", "--wait=false")


def test_rights_that_are_missing_are_named(plane: ControlPlane, node: Node):
    role = json.loads(plane.kubectl("get", "clusterrole", "zlayer-cni", "-o", "json"))
    role["rules"] = [rule for rule in role["rules"] if "pods" not in rule["resources"]]
    plane.apply(role)
    node.end()
    node.start()
    text = wait_for(lambda: node.problem("kubernetes-not-followed"), "the problem", 30)
    assert "403" in text and "namespaces" in text and "pods" in text
    plane.kubectl("apply", "-f", str(plane.definitions))
    wait_for(lambda: not node.problem("kubernetes-not-followed"), "no problem any more", 40)
