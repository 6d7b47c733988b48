"""NetworkPolicies of a real API server: in force on its nodes, with its Pods and Namespaces, and without it."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest

from tests.mesh.fleet import Container, Node, wait_for

from .control_plane import ControlPlane
from .test_annotations import add, code, namespace, pod

ALLOW = {
    "podSelector": {"matchLabels": {"app": "web"}},
    "ingress": [
        {
            "from": [
                {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {"matchLabels": {"app": "db"}}}
            ],
            "ports": [{"port": "http"}],
        }
    ],
}
TRY = (
    "import socket,sys\n"
    "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.7)\n"
    "except ConnectionRefusedError: pass\n"  # a closed port has answered
    "except OSError: sys.exit(1)\n"
)


@pytest.fixture
def node(plane: ControlPlane) -> Node:
    plane.kubectl("create", "serviceaccount", "default", "-n", "default")
    made = plane.member(1)
    for name in ("shop", "other"):
        namespace(plane, name)
        plane.kubectl("create", "serviceaccount", "default", "-n", name)
    return made


def policy(plane: ControlPlane, name: str, spec: dict[str, Any]) -> None:
    metadata = {"name": name, "namespace": "shop"}
    plane.apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})


def label(plane: ControlPlane, where: str, name: str, *words: str) -> None:
    plane.kubectl("label", "--overwrite", "pod", name, "-n", where, *words)


def attach(node: Node, where: str, name: str, uid: str) -> tuple[Container, str]:
    """The container of a pod, and its address."""
    done = wait_for(lambda: _added(add(node, where, name, uid)), f"the ADD of {name}")
    container = next(each for each in reversed(node.containers) if each.service == name)
    return container, str(json.loads(done.stdout)["ips"][0]["address"]).partition("/")[0]


def _added(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str] | None:
    return done if code(done) == 0 else None


def reaches(client: Container, target: str, port: int) -> bool:
    """Whether a port answers, open or closed."""
    return (
        subprocess.run(
            ["nsenter", "-t", str(client.process.pid), "-n", "python3", "-c", TRY, target, str(port)],
            check=False,
            timeout=30,
        ).returncode
        == 0
    )


def test_policies_of_the_cluster_are_in_force_with_its_pods_and_namespaces(plane: ControlPlane, node: Node) -> None:
    spec = {
        "nodeName": "node1",
        "containers": [{"name": "a", "image": "a", "ports": [{"containerPort": 80, "name": "http"}]}],
    }
    metadata = {"name": "web", "namespace": "shop", "labels": {"app": "web"}}
    plane.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    uid = json.loads(plane.kubectl("get", "pod", "web", "-n", "shop", "-o", "json"))["metadata"]["uid"]
    web, address = attach(node, "shop", "web", uid)
    db, _ = attach(node, "other", "db", pod(plane, "other", "db"))
    label(plane, "other", "db", "app=db")
    assert wait_for(lambda: reaches(db, address, 80), "the pods")
    policy(plane, "web", ALLOW)
    wait_for(lambda: not reaches(db, address, 80), "the policy is in force", 10)
    plane.kubectl("label", "namespace", "other", "team=a")
    wait_for(lambda: reaches(db, address, 80), "the Namespace's label counts", 10)
    assert not reaches(db, address, 81)
    label(plane, "other", "db", "app=cache")
    wait_for(lambda: not reaches(db, address, 80), "the Pod's label counts", 10)
    label(plane, "other", "db", "app=db")
    wait_for(lambda: reaches(db, address, 80), "the Pod's label counts again", 10)

    # The API server accepts leading zeros, and they are decimal for it.
    policy(plane, "web", {**ALLOW, "egress": [{"to": [{"ipBlock": {"cidr": "010.0.0.0/8"}}]}], "ingress": []})
    wait_for(lambda: not reaches(db, address, 80), "the policy with leading zeros is in force", 10)
    assert not node.problem("policy-refused")
    policy(plane, "web", ALLOW)
    wait_for(lambda: reaches(db, address, 80), "the former policy is in force", 10)

    # A pod that is attached before the API server tells of it is closed, and opens.
    plane.stop("kube-apiserver", signal.SIGKILL)
    passed = {"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"a": "b"}}}
    done = add(node, "shop", "early", **passed)
    assert code(done) == 0, done.stdout
    early = next(each for each in reversed(node.containers) if each.service == "early")
    theirs = str(json.loads(done.stdout)["ips"][0]["address"]).partition("/")[0]
    assert not reaches(db, theirs, 80) and not reaches(early, address, 80)

    # Everything that is known stays in force without the API server, and over a restart of the daemon.
    node.end()
    node.start()
    assert reaches(db, address, 80) and not reaches(db, address, 81) and not reaches(db, theirs, 80)
    plane.serve()
    pod(plane, "shop", "early")
    wait_for(lambda: reaches(db, theirs, 80), "the pod that was unknown is open", 40)
    plane.kubectl("delete", "networkpolicy", "web", "-n", "shop")
    wait_for(lambda: reaches(db, address, 81), "the policy is gone", 10)
    assert web.process.poll() is None
