"""CRI-O's way to CNI: its own library, by ocicni-call, on pods that are network namespaces."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from .machine import Failed, Machine, told
from .network import Network

PROGRAM = "/run/zlt/ocicni-call"


class Refused(Failed):
    """A call that came back with an error; the message is what CRI-O would log."""


class Ocicni:
    """The library, which finds the given conflists; the first one's network is the pods' default."""

    def __init__(self, machine: Machine, program: Path, name: str, conflists: list[dict[str, Any]]) -> None:
        self.machine = machine
        self.directory = f"/run/zlt/{name}.d"
        self.default = conflists[0]["name"]
        self.pods: list[Pod] = []
        machine.copy(program, PROGRAM)
        machine.must("chmod", "755", PROGRAM)
        for number, conflist in enumerate(conflists):
            machine.write(f"{self.directory}/{number}.conflist", json.dumps(conflist))

    def call(self, call: str, **keys: Any) -> list[dict[str, Any]]:
        """One call, by a process of its own, as after a restart of CRI-O; Refused when it fails."""
        request = json.dumps({"Call": call, **keys})
        done: CompletedProcess[str] = self.machine.run(PROGRAM, self.directory, "/run/zlt/bin", stdin=request)
        if done.returncode == 1:
            raise Refused(done.stderr)
        if done.returncode:
            raise Failed(told(done))
        return json.loads(done.stdout) or []

    def sandbox(
        self,
        name: str,
        *,
        networks: Mapping[str, str] = {},
        annotations: Mapping[str, str] = {},
        **config: Any,
    ) -> Pod:
        """A pod's network namespace, not attached yet.

        `networks` maps names of networks to interfaces (none: the default network); `config` are further fields of
        the library's RuntimeConfig for the default network.
        """
        identity = uuid.uuid4().hex
        self.machine.must("ip", "netns", "add", identity)
        given = {"io.kubernetes.cri.pod-annotations": annotations, "CgroupPath": "/kubepods/pod1", **config}
        fields = {
            "Name": name,
            "Namespace": "default",
            "ID": identity + uuid.uuid4().hex,
            "UID": str(uuid.uuid4()),
            "NetNS": f"/var/run/netns/{identity}",
            "Networks": [{"Name": network, "Ifname": ifname} for network, ifname in networks.items()],
            "RuntimeConfig": {self.default: given},
        }
        self.pods.append(Pod(self, fields))
        return self.pods[-1]

    def run(self, name: str, **given: Any) -> Pod:
        """A pod with its network: ADD, and the CHECK that CRI-O makes right after it."""
        pod = self.sandbox(name, **given)
        pod.results = self.call("run", Pod=pod.fields)
        return pod

    def collect(self, *alive: Pod) -> None:
        """GC, as CRI-O makes it at its start."""
        self.call("gc", Pods=[pod.fields for pod in alive])

    def remove_all(self) -> None:
        """Take down every pod that is left."""
        for pod in [*self.pods]:
            pod.stop()
            pod.remove()


@dataclass
class Pod:
    """A pod."""

    library: Ocicni
    fields: dict[str, Any]
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def network(self) -> Network:
        """Its network."""
        return Network(self.library.machine, self.fields["NetNS"])

    @property
    def addresses(self) -> list[str]:
        """What CRI-O tells the kubelet: the addresses of the first result."""
        return [ip["address"] for ip in self.results[0]["result"]["ips"]]

    def check(self) -> list[dict[str, Any]]:
        """The status of the pod's network: CHECK, and libcni's cached result."""
        return self.library.call("status-of-pod", Pod=self.fields)

    def stop(self, netns: str | None = None) -> None:
        """DEL, with the namespace's path or with what is given in its place."""
        self.library.call("stop", Pod=self.fields if netns is None else self.fields | {"NetNS": netns})

    def vanish(self) -> None:
        """Delete the namespace without a call of the library."""
        self.library.machine.must("ip", "netns", "delete", Path(self.fields["NetNS"]).name)

    def remove(self) -> None:
        """Take the namespace away, if it is still there, and forget the pod."""
        self.library.machine.run("ip", "netns", "delete", Path(self.fields["NetNS"]).name)
        self.library.pods.remove(self)
