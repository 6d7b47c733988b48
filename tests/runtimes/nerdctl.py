"""nerdctl, with a private containerd: it calls CNI from an OCI hook, in the container's bundle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from .machine import Failed, Machine, told
from .network import Network
from .pause import PAUSE, pause_image

PROGRAM = "/run/zlt/nerdctl"


class Nerdctl:
    """nerdctl, which finds the conflists of containerd."""

    def __init__(self, machine: Machine, program: Path, scratch: Path) -> None:
        self.machine = machine
        machine.copy(program, PROGRAM)
        machine.must("chmod", "755", PROGRAM)
        self.words = [PROGRAM, "--cni-path", "/run/zlt/bin", "--cni-netconfpath", "/etc/cni/net.d"]
        self.words += ["--snapshotter", "native", "--cgroup-manager", "cgroupfs"]
        image = scratch / "image.tar"
        image.write_bytes(pause_image())
        machine.copy(image, "/run/zlt/image.tar")
        self.must("load", "--input", "/run/zlt/image.tar")

    def run(self, *words: str) -> CompletedProcess[str]:
        """One nerdctl command, however it ends."""
        return self.machine.run(*self.words, *words)

    def must(self, *words: str) -> str:
        """What a command that has to succeed prints."""
        return self.machine.must(*self.words, *words).strip()

    def run_words(
        self, name: str, network: str, *options: str, command: tuple[str, ...] = ("sleep", "600")
    ) -> list[str]:
        """`nerdctl run` of a container named `name` on a network."""
        program, *arguments = command
        given = ["--name", name, "--network", network, "--cgroup-parent", f"/{self.machine.cgroup}", *options]
        return ["run", *given, "--entrypoint", f"/bin/{program}", PAUSE, *arguments]

    def start(self, name: str, network: str, *options: str, command: tuple[str, ...] = ("sleep", "600")) -> Container:
        """A container in the background; Failed when it cannot be had."""
        self.must(*self.run_words(name, network, "--detach", *options, command=command))
        return Container(self, name)

    def remove(self, name: str) -> None:
        """`nerdctl rm --force`."""
        self.must("rm", "--force", name)

    def remove_all(self) -> None:
        """Take down every container."""
        for name in self.must("ps", "--all", "--quiet").split():
            self.remove(name)


@dataclass
class Container:
    """A container of nerdctl's."""

    nerdctl: Nerdctl
    name: str

    @property
    def inspected(self) -> dict[str, Any]:
        """`nerdctl inspect`."""
        (found,) = json.loads(self.nerdctl.must("inspect", self.name))
        return dict(found)

    @property
    def network(self) -> Network:
        """Its network, read from outside the container."""
        return Network(self.nerdctl.machine, f"/proc/{self.inspected['State']['Pid']}/ns/net")

    def run(self, *command: str) -> CompletedProcess[str]:
        """Run a command in the container, by nerdctl."""
        return self.nerdctl.run("exec", self.name, *command)

    def pings(self, address: str) -> None:
        """One ping from inside the container; Failed when no answer comes."""
        pinged = self.run("ping", "-c", "1", "-W", "10", address)
        if pinged.returncode:
            raise Failed(told(pinged))
