"""One `kubectl apply` on a fresh cluster of three nodes, each with containerd, kubelet and kube-proxy: what is there
afterwards, what a rollout costs, and how everything goes again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cni.host import wg_engine
from tests.mesh.fleet import ROOT, wait_for

from .cluster import IMAGE, Cluster, KubeNode
from .control_plane import PROGRAM, SERVER

READY = 60.0  # seconds from `apply` until every Node is Ready
ARCHIVE = ROOT / "dist/zlayer-cni-image.tar"
NAMESPACE = "zlayer-cni"
BURST = 50  # pods that are started during a rollout
STEP = 0.01  # seconds between two packets of the stream
GAP = 0.1  # seconds: the longest gap in the stream


def manifest(*options: str) -> str:
    """The manifest for the cluster of these tests."""
    words = ("--api-server", SERVER, "--service-cidr", "10.96.0.0/16", *options)
    return subprocess.run([ROOT / "scripts/manifest", *words], capture_output=True, text=True, check=True).stdout


def apply(cluster: Cluster, text: str) -> None:
    path = cluster.directory / "manifest.yaml"
    path.write_text(text)
    cluster.kubectl("apply", "-f", str(path))


def start_pods(cluster: Cluster, name: str, count: int, **annotations: str) -> None:
    """A Deployment whose pods are spread over the nodes."""
    labels = {"app": name}
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    spread |= {"labelSelector": {"matchLabels": labels}}
    container = {"name": "a", "image": IMAGE, "imagePullPolicy": "IfNotPresent"}
    spec = {"containers": [container], "topologySpreadConstraints": [spread], "terminationGracePeriodSeconds": 0}
    metadata = {"labels": labels, "annotations": {f"com.zlayer.{key}": text for key, text in annotations.items()}}
    cluster.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {
                "replicas": count,
                "selector": {"matchLabels": labels},
                "template": {"metadata": metadata, "spec": spec},
            },
        }
    )


@dataclass(frozen=True)
class Running:
    """A pod that runs: its node, and how a command is started in its network namespace."""

    name: str
    address: str
    node: KubeNode
    enter: list[str]

    def unreached(self, addresses: list[str]) -> list[str]:
        """Those that do not answer an echo."""
        script = "for a; do ping -n -q -c 1 -W 2 $a >/dev/null || echo $a; done"
        words = [*self.enter, "sh", "-c", script, "sh", *addresses]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def all_answer(pod: Running, addresses: list[str]) -> bool:
    return not pod.unreached(addresses)


def await_pods(cluster: Cluster, name: str, count: int, seconds: float = 90) -> list[dict[str, Any]]:
    """The Deployment's pods, when all run."""

    def look() -> list[dict[str, Any]]:
        pods = [pod for pod in cluster.pods("default", f"app={name}") if pod["status"]["phase"] == "Running"]
        return pods if len(pods) == count and all(pod["status"].get("podIP") for pod in pods) else []

    return wait_for(look, f"{count} pods of {name}", seconds, 0.5)


def running(cluster: Cluster, name: str, count: int) -> list[Running]:
    """The Deployment's pods, when all run, with their network namespaces."""
    found = []
    for pod in await_pods(cluster, name, count):
        node = next(node for node in cluster.machines if node.name == pod["spec"]["nodeName"])
        address = pod["status"]["podIP"]
        script = (
            f'for n in /run/netns/cni-*; do nsenter --net=$n ip -o addr | grep -q " {address}/" && echo $n; done; true'
        )
        (path,) = node.sh(script).split()
        found.append(Running(pod["metadata"]["name"], address, node, node.command("nsenter", f"--net={path}")))
    return found


def is_rolled_out(cluster: Cluster) -> bool:
    body = json.loads(cluster.kubectl("-n", NAMESPACE, "get", "daemonset", "zlayer-cni", "-o", "json"))
    status = body["status"]
    wanted = status["desiredNumberScheduled"]
    counts = status.get("updatedNumberScheduled", 0), status.get("numberReady", 0)
    return bool(status["observedGeneration"] == body["metadata"]["generation"] and counts == (wanted, wanted))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    assert PROGRAM.exists(), "tests/kubernetes/build-kubernetes makes it"
    assert ARCHIVE.exists(), "scripts/image makes it"
    assert wg_engine.find() and shutil.which("containerd"), "wireguard-go and containerd are missing"
    made = Cluster("c")
    try:
        for number in (1, 2, 3):
            made.boot(number, ARCHIVE)
        yield made
    finally:
        made.clean()


def test_nodes_are_ready_within_a_minute_and_pods_of_all_nodes_talk(cluster: Cluster, record_property):
    wait_for(lambda: len(cluster.objects("nodes")) == 3, "the Nodes", 60, 0.3)
    assert not cluster.ready()
    before = time.monotonic()
    apply(cluster, manifest())
    wait_for(lambda: len(cluster.ready()) == 3, "every Node Ready", READY, 0.3)
    record_property("seconds until Ready", round(time.monotonic() - before, 1))
    wait_for(partial(is_rolled_out, cluster), "every daemon ready", 90, 0.5)
    start_pods(cluster, "web", 6)
    pods = running(cluster, "web", 6)
    assert {pod.node.name for pod in pods} == {"node1", "node2", "node3"}
    addresses = [pod.address for pod in pods]
    for pod in pods:
        wait_for(partial(all_answer, pod, addresses), f"{pod.address} reaches every pod", 40, 0.5)
    listed = cluster.kubectl("get", "zlayernodes")
    assert all(node.address in listed for node in cluster.machines)


def test_the_daemons_container_has_three_capabilities_and_is_not_privileged(cluster: Cluster):
    node = cluster.machines[0]
    (pid,) = node.sh("pgrep -f '^[^ ]*zlayer-cni overlayd'").split()[:1]
    status = node.sh(f"cat /proc/{pid}/status")
    (bounding,) = [line.split()[1] for line in status.splitlines() if line.startswith("CapBnd:")]
    assert int(bounding, 16) == 1 << 12 | 1 << 13 | 1 << 21  # NET_ADMIN, NET_RAW, SYS_ADMIN
    problems = json.loads(node.run("/opt/cni/bin/zlayer-cni", "status", "--json"))["problem_details"]
    assert [problem for problem in problems if problem["severity"] == "error"] == []


def test_another_network_list_before_ours_is_told(cluster: Cluster):
    node = cluster.machines[0]

    def problem() -> str:
        details = json.loads(node.run("/opt/cni/bin/zlayer-cni", "status", "--json", check=False))["problem_details"]
        return "".join(each["text"] for each in details if each["code"] == "network-list-shadowed")

    node.write("/etc/cni/net.d/05-other.conflist", "{}")
    assert "05-other.conflist" in wait_for(problem, "the problem", 20, 0.5)
    node.sh("rm /etc/cni/net.d/05-other.conflist /etc/cni/net.d/10-zlayer.conflist")
    wait_for(lambda: not problem(), "no problem any more", 20, 0.5)
    wait_for(lambda: "10-zlayer.conflist" in node.sh("ls /etc/cni/net.d"), "our list again", 20, 0.5)


def test_a_namespace_decides_for_its_pods_and_errors_reach_the_pods_events(cluster: Cluster):
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": "shop", "annotations": {"com.zlayer.service": "shop"}},
        }
    )
    metadata = {"name": "greedy", "namespace": "shop", "annotations": {"com.zlayer.isolation_network": "red"}}
    container = {"name": "a", "image": IMAGE, "imagePullPolicy": "IfNotPresent"}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    wait_for(
        lambda: cluster.try_kubectl("get", "serviceaccount", "default", "-n", "shop").returncode == 0, "account", 20
    )
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def events() -> str:
        return cluster.kubectl("get", "events", "-n", "shop", "-o", "jsonpath={.items[*].message}")

    wait_for(lambda: "does not let its Pod greedy choose isolation network" in events(), "the event", 30, 0.5)
    cluster.kubectl("annotate", "namespace", "shop", "com.zlayer.isolation_networks=red")
    wait_for(lambda: cluster.pods("shop")[0]["status"]["phase"] == "Running", "the pod runs", 60, 0.5)
    attached = [
        each
        for node in cluster.machines
        for each in json.loads(node.run("/opt/cni/bin/zlayer-cni", "attachments", "--json"))
        if each["pod"] == "shop/greedy"
    ]
    assert [(each["service"], each["isolation_network"]) for each in attached] == [("shop", "red")]
    cluster.kubectl("delete", "namespace", "shop", "--wait=false")


def test_a_rollout_interrupts_no_stream_and_fails_no_sandbox(cluster: Cluster, record_property):
    pods = running(cluster, "web", 6)
    one = pods[0]
    other = next(pod for pod in pods if pod.node is not one.node)
    words = [*one.enter, "ping", "-n", "-i", str(STEP), other.address]
    heard_file = cluster.directory / "stream"
    with heard_file.open("wb") as out:
        stream = subprocess.Popen(words, stdout=out)
    try:
        cluster.kubectl("-n", NAMESPACE, "rollout", "restart", "daemonset/zlayer-cni")
        start_pods(cluster, "burst", BURST)
        wait_for(partial(is_rolled_out, cluster), "the rollout", 180, 0.5)
        await_pods(cluster, "burst", BURST, 180)
    finally:
        one.node.sh("pkill -INT -x ping", check=False)
        stream.wait(30)
    heard = [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", heard_file.read_text())]
    gap = max((later - earlier - 1 for earlier, later in pairwise(heard)), default=0) * STEP
    failed = cluster.kubectl("get", "events", "-A", "--field-selector", "reason=FailedCreatePodSandBox", "-o", "json")
    messages = [
        event["message"]
        for event in json.loads(failed)["items"]
        if event["involvedObject"]["name"].startswith("burst-")
    ]
    record_property("longest gap, in milliseconds", round(gap * 1000))
    record_property("failed sandboxes", len(messages))
    figures = f"sent {heard[-1]}, heard {len(heard)}, longest gap {gap * 1000:.0f} ms, failed sandboxes {len(messages)}"
    sys.stderr.write(f"{figures}\n")
    assert gap <= GAP and messages == [], figures
    cluster.kubectl("delete", "deployment", "burst")


def test_a_deleted_node_gives_back_what_it_held(cluster: Cluster):
    held = [name for name, claim in cluster.objects("zlayerclaims").items() if _owner(claim) == "node3"]
    assert held
    node = cluster.machines.pop()
    node.end()
    before = time.monotonic()
    cluster.kubectl("delete", "node", "node3")
    wait_for(
        lambda: not [1 for claim in cluster.objects("zlayerclaims").values() if _owner(claim) == "node3"],
        "its claims released",
        20,
        0.2,
    )
    assert time.monotonic() - before < 15


def _owner(claim: dict[str, Any]) -> str:
    owners = claim["metadata"].get("ownerReferences", ())
    return "".join(owner["name"] for owner in owners)


def test_leaving_takes_everything_off_the_nodes(cluster: Cluster):
    cluster.kubectl("delete", "deployment", "--all")
    wait_for(lambda: not cluster.pods("default"), "the pods' end", 60, 0.5)
    apply(cluster, manifest("--remove"))

    def left(node: KubeNode) -> str:
        files = "/etc/cni/net.d/10-zlayer.conflist /opt/cni/bin/zlayer-cni /opt/zlayer-cni/* /run/zlayer-cni/*"
        files += " /var/lib/zlayer-cni/* /run/wireguard/*"
        found = node.sh(f"ls -d {files} 2>/dev/null || true")
        found += node.sh("ip -o link | grep -o ' zl-[^:@]*' || true")
        return found + node.sh("nft list tables | grep zlayer || true")

    wait_for(lambda: not "".join(map(left, cluster.machines)), "nothing left on any node", 120, 1)
    path = Path(cluster.directory / "manifest.yaml")
    path.write_text(manifest())
    # The namespace ends after its pods, and those of the Node that was deleted are collected only after some 60 s.
    cluster.kubectl("delete", "-f", str(path), "--timeout=170s", seconds=180)
    assert "zlayer" not in cluster.kubectl("get", "customresourcedefinitions", "-o", "name")
