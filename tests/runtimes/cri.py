"""Pods, through the CRI socket of a private containerd."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .containerd import SOCKET
from .machine import Failed, Machine, told
from .network import Network
from .pause import pause_image


class Refused(Failed):
    """A CRI call that the runtime refused; the message is the runtime's."""


class Cri:
    """The CRI socket of a private containerd. `program` is cri-call."""

    def __init__(self, machine: Machine, program: Path, scratch: Path) -> None:
        self.machine = machine
        self.stuck: set[str] = set()
        machine.copy(program, "/run/zlt/cri-call")
        image = scratch / "pause.tar"
        image.write_bytes(pause_image())
        machine.copy(image, "/run/zlt/pause.tar")
        machine.must("chmod", "755", "/run/zlt/cri-call")
        words = ("ctr", "-n", "k8s.io", "images", "import", "--snapshotter", "native")
        machine.must(*words, "/run/zlt/pause.tar")

    def conditions(self) -> dict[str, dict[str, Any]]:
        """What the runtime says of RuntimeReady and NetworkReady; nothing while it does not answer."""
        with suppress(Refused):
            return {c["type"]: c for c in self.call("Status")["status"]["conditions"]}
        return {}

    def ready(self) -> bool:
        """Whether runtime and network say they are ready."""
        found = self.conditions()
        return bool(found) and all(c.get("status") for c in found.values())

    def call(self, method: str, request: dict[str, Any] | None = None, seconds: int = 60) -> dict[str, Any]:
        """One call; Refused when the runtime answers with an error (also when `seconds` are over)."""
        words = ("/run/zlt/cri-call", SOCKET, method, str(seconds))
        done = self.machine.run(*words, stdin=json.dumps(request or {}), seconds=seconds + 20)
        if done.returncode == 1:
            answer = json.loads(done.stdout)
            raise Refused(f"{method} {json.dumps(request)}: {answer['code']}: {answer['message']}")
        if done.returncode:
            raise Failed(told(done))
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def run(self, name: str, *, handler: str = "runc", seconds: int = 60, **config: Any) -> Pod:
        """A pod's sandbox. `config` overrides keys of the PodSandboxConfig."""
        whole = {
            "metadata": {"name": name, "namespace": "default", "uid": str(uuid.uuid4()), "attempt": 0},
            "hostname": name,
            "log_directory": "/run/zlt/logs",
            "linux": {"cgroup_parent": f"/{self.machine.cgroup}"},
        }
        request = {"config": whole | config, "runtime_handler": handler}
        answer = self.call("RunPodSandbox", request, seconds)
        return Pod(self, name, answer["pod_sandbox_id"])

    def pods(self) -> list[str]:
        """The ids of all sandboxes the runtime knows, but those in `stuck`, which an earlier test failed to remove."""
        return [i["id"] for i in self.call("ListPodSandbox").get("items", []) if i["id"] not in self.stuck]


@dataclass
class Pod:
    """A pod's sandbox."""

    cri: Cri
    name: str
    id: str

    def stop(self) -> None:
        """StopPodSandbox."""
        self.cri.call("StopPodSandbox", {"pod_sandbox_id": self.id})

    def remove(self) -> None:
        """RemovePodSandbox."""
        self.cri.call("RemovePodSandbox", {"pod_sandbox_id": self.id})

    def status(self) -> dict[str, Any]:
        """What the runtime says of it: `status`, and `info` with the runtime's own view."""
        answer = self.cri.call("PodSandboxStatus", {"pod_sandbox_id": self.id, "verbose": True})
        return answer | {"info": json.loads(answer["info"]["info"])}

    @property
    def is_ready(self) -> bool:
        """Whether the runtime holds the pod for alive."""
        return bool(self.status()["status"].get("state", 0) == 0)

    @property
    def address(self) -> str:
        """The address the runtime reports to the kubelet."""
        return str(self.status()["status"]["network"]["ip"])

    @property
    def process(self) -> int:
        """The machine's number of the pause process."""
        return int(self.status()["info"]["pid"])

    @property
    def network(self) -> Network:
        """The pod's network, by the runtime's own path."""
        namespaces = self.status()["info"]["runtimeSpec"]["linux"]["namespaces"]
        (path,) = [n["path"] for n in namespaces if n["type"] == "network"]
        return Network(self.cri.machine, path)
