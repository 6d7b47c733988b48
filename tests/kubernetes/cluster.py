"""A cluster of Kubernetes on one machine: the control plane in the underlay's namespace, and nodes in namespaces of
their own, each with a containerd, a kubelet and a kube-proxy.

What has no namespace are control groups: the pods' are below one that is named after the test run, and it is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tests.mesh.fleet import run, wait_for
from tests.runtimes.machine import CGROUPS, sweep_cgroups
from tests.runtimes.pause import pause_image

from .control_plane import PROGRAM, ControlPlane

BOOT = Path(__file__).with_name("node_boot.sh")
CGROUP = "zlt-kubernetes-"
PODS = "10.200.0.0/16"
IMAGE = "zlt.example/pause:1"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
CONTAINERD = f"""\
version = 2
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
"""


class KubeNode:
    """One node: a network namespace on the underlay, with mounts and processes of its own."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster, self.number, self.name = cluster, number, f"node{number}"
        self.address = f"198.51.100.{number}"
        self.netns = f"{cluster.prefix}{number}"
        self.directory = cluster.directory / self.name
        self.directory.mkdir(mode=0o755)
        self.cgroup = f"{CGROUP}{os.getpid()}-{number}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._wire()
        self._init = subprocess.Popen(
            [
                *("nsenter", f"--net=/run/netns/{self.netns}", "--"),
                *("unshare", "--mount", "--pid", "--fork", "--uts", "--ipc"),
                *("bash", str(BOOT), str(self.directory), self.name),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == b"ready\n", "the node did not boot"
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        self._pid = int(children[0])

    def _wire(self) -> None:
        """The node's network namespace, with a cable to the underlay."""
        port, underlay = f"n{self.number}", self.cluster.underlay
        run("ip", "netns", "add", self.netns)
        run("ip", "-n", self.netns, "link", "set", "lo", "up")
        run("ip", "-n", self.netns, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", underlay)
        run("ip", "-n", self.netns, "address", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", self.netns, "link", "set", "eth0", "up")
        run("ip", "-n", underlay, "link", "set", port, "master", "under0")
        run("ip", "-n", underlay, "link", "set", port, "up")
        run("ip", "-n", self.netns, "route", "add", "default", "via", "198.51.100.254")

    # --- commands ----------------------------------------------------------------------------------------------------

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self._pid), "-m", "-n", "-p", "-u", "-i", "-r", "-w", "--", *words]

    def run(self, *words: str, check: bool = True, timeout: float = 120) -> str:
        """The output of a command on the node."""
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def sh(self, line: str, check: bool = True) -> str:
        return self.run("bash", "-c", line, check=check)

    def write(self, path: str, text: str) -> None:
        Path(f"/proc/{self._pid}/root{path}").parent.mkdir(parents=True, exist_ok=True)
        Path(f"/proc/{self._pid}/root{path}").write_text(text)

    def start(self, name: str, *words: str) -> None:
        """Start a program on the node; its log is `log-NAME` in the node's directory outside."""
        with (self.cluster.directory / f"{self.name}-{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ENVIRONMENT
            )

    def log(self, name: str) -> str:
        return (self.cluster.directory / f"{self.name}-{name}.log").read_text(errors="replace")

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """End one of the node's programs."""
        process = self.processes.pop(name)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in children or [str(process.pid)]:
            os.kill(int(pid), number)
        process.wait(30)

    # --- the programs ------------------------------------------------------------------------------------------------

    def start_containerd(self) -> None:
        self.write("/etc/containerd/config.toml", CONTAINERD)
        self.start("containerd", "containerd", "-c", "/etc/containerd/config.toml")
        wait_for(lambda: "Server" in self.run("ctr", "version", check=False), "containerd", 60, 0.2)

    def load(self, archive: Path) -> None:
        """Import an image into containerd."""
        with archive.open("rb") as file:
            words = self.command("ctr", "-n", "k8s.io", "images", "import", "-")
            subprocess.run(words, stdin=file, capture_output=True, timeout=120, env=ENVIRONMENT, check=True)

    def start_kubelet(self) -> None:
        self.write("/etc/kubernetes/kubelet.conf", json.dumps(self.cluster.kubeconfig_of(f"kubelet-{self.name}")))
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            "resolvConf": "/run/zlt/resolv.conf",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "nodeStatusUpdateFrequency": "4s",
            "nodeLeaseDurationSeconds": 20,
            "syncFrequency": "10s",
            "imageMinimumGCAge": "24h",
            "serializeImagePulls": False,
        }
        self.write("/etc/kubernetes/kubelet.yaml", json.dumps(config))
        self.start(
            "kubelet",
            *(str(PROGRAM), "kubelet", "--config", "/etc/kubernetes/kubelet.yaml"),
            *("--kubeconfig", "/etc/kubernetes/kubelet.conf", "--hostname-override", self.name),
            *("--node-ip", self.address, "--v", "2"),
        )

    def start_proxy(self, mode: str) -> None:
        self.write("/etc/kubernetes/proxy.conf", json.dumps(self.cluster.kubeconfig_of("proxy")))
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": mode,
            "clusterCIDR": PODS,
            "detectLocalMode": "ClusterCIDR",
            "hostnameOverride": self.name,
            "clientConnection": {"kubeconfig": "/etc/kubernetes/proxy.conf"},
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        self.write("/etc/kubernetes/proxy.yaml", json.dumps(config))
        self.start("proxy", str(PROGRAM), "kube-proxy", "--config", "/etc/kubernetes/proxy.yaml")

    def end(self) -> None:
        """Pull the plug: every process of the node ends."""
        if self._init.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._init.wait(60)
        for process in self.processes.values():
            process.wait(30)
        run("ip", "netns", "delete", self.netns, check=False)
        sweep_cgroups([self.cgroup])


class Cluster(ControlPlane):
    """A control plane with nodes."""

    USERS: ClassVar = {
        "proxy": ("system:kube-proxy", ""),
        **{f"kubelet-node{number}": (f"system:node:node{number}", "system:nodes") for number in range(1, 10)},
    }
    NAMES = "IP:10.96.0.1,DNS:kubernetes.default.svc"

    def __init__(self, tag: str, mode: str = "nftables") -> None:
        """`mode`: of kube-proxy."""
        _sweep()
        super().__init__(tag)
        self.mode = mode
        self.machines: list[KubeNode] = []
        self.pause = self.directory / "pause.tar"
        self.pause.write_bytes(pause_image())
        self.control("*", "-nodeipam", "-cloud-node-lifecycle-controller")
        self._start("kube-scheduler", "--kubeconfig", str(self.kubeconfig()), "--leader-elect=false")

    def boot(self, number: int, *archives: Path) -> KubeNode:
        """A node with containerd, the images, a kubelet and a kube-proxy."""
        node = KubeNode(self, number)
        self.machines.append(node)
        node.sh("sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.bridge.bridge-nf-call-iptables=1 2>/dev/null || true")
        node.start_containerd()
        for archive in (self.pause, *archives):
            node.load(archive)
        node.start_kubelet()
        node.start_proxy(self.mode)
        return node

    def ready(self) -> list[str]:
        """The names of the Nodes that are Ready."""
        return [
            name
            for name, node in self.objects("nodes").items()
            for condition in node["status"].get("conditions", ())
            if condition["type"] == "Ready" and condition["status"] == "True"
        ]

    def pods(self, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        words = ["-l", selector] if selector else []
        return list(json.loads(self.kubectl("get", "pods", "-n", namespace, "-o", "json", *words))["items"])

    def kubectl_file(self, verb: str, *bodies: dict[str, Any]) -> str:
        path = self.directory / "objects.yaml"
        path.write_text(yaml.safe_dump_all(bodies))
        return self.kubectl(verb, "-f", str(path))

    def clean(self) -> None:
        for node in self.machines:
            node.end()
        super().clean()


def _sweep() -> None:
    """Remove the control groups of test runs that are no more."""
    stale = {
        directory.name
        for hierarchy in CGROUPS.iterdir()
        if hierarchy.is_dir()
        for directory in hierarchy.glob(f"{CGROUP}*")
        if not Path("/proc", directory.name.removeprefix(CGROUP).partition("-")[0]).exists()
    }
    sweep_cgroups(stale)
