"""podman over CNI (`network_backend = "cni"`), in a scratch machine, with containers made of busybox."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from .machine import Failed, Machine, told, wait_for
from .network import Network
from .pause import PAUSE, pause_image

CONFLISTS = "/etc/cni/net.d"
# vfs: plain copies, so that it works where the kernel has no overlayfs. Without cgroups: there is no systemd.
STORAGE = """\
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"""
CONTAINERS = """\
[containers]
cgroups = "disabled"
log_driver = "k8s-file"
default_capabilities = ["NET_RAW", "CHOWN", "SETUID", "SETGID", "DAC_OVERRIDE"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["/run/zlt/bin"]
network_config_dir = "{directory}"
default_network = "{network}"
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
# What a boot takes with it: mounts, from the inmost, and what lies in /run and /dev/shm.
LOSE = """\
awk '$2 ~ "^/(var/lib|run)/containers/|^/run/(crun|libpod|netns/netns-)" { print $2 }' /proc/mounts | sort -r |
    while read -r mount; do umount "$mount" || exit 1; done &&
rm -rf /dev/shm/* /run/netns/netns-* /run/containers /run/crun /run/libpod /run/zlayer-cni
"""


class Podman:
    """podman, which finds the given conflists; the network of the first is the default one."""

    def __init__(self, machine: Machine, conflists: list[dict[str, Any]], scratch: Path) -> None:
        self.machine = machine
        # crun refuses a hierarchy of both kinds.
        machine.run("umount", "/sys/fs/cgroup/unified")
        for number, conflist in enumerate(conflists):
            machine.write(f"{CONFLISTS}/{number}.conflist", json.dumps(conflist))
        words = {"directory": CONFLISTS, "network": conflists[0]["name"]}
        machine.write("/etc/containers/containers.conf", CONTAINERS.format(**words))
        machine.write("/etc/containers/storage.conf", STORAGE)
        image = scratch / "image.tar"
        image.write_bytes(pause_image())
        machine.copy(image, "/run/zlt/image.tar")
        self.must("load", "--quiet", "--input", "/run/zlt/image.tar")

    def run(self, *words: str) -> CompletedProcess[str]:
        """One podman command, however it ends."""
        return self.machine.run("podman", *words)

    def succeeds(self, *words: str) -> bool:
        """Whether one podman command ends well."""
        return self.run(*words).returncode == 0

    def must(self, *words: str) -> str:
        """What a command that has to succeed prints."""
        return self.machine.must("podman", *words).strip()

    def start(self, name: str, *options: str, command: tuple[str, ...] = ("sleep", "600")) -> Container:
        """A container in the background; Failed when it cannot be had."""
        self.must("run", "--detach", "--name", name, "--entrypoint", "", *options, PAUSE, *command)
        return Container(self, name)

    def remove(self, name: str) -> None:
        """Take a container away, whatever its state; it may be gone already."""
        words = ("rm", "--force", "--time", "0", "--ignore", name)
        wait_for(f"podman {' '.join(words)}", lambda: self.run(*words).returncode == 0)

    @contextmanager
    def running(self, name: str, *options: str, command: tuple[str, ...] = ("sleep", "600")) -> Iterator[Container]:
        """A container for as long as the block runs."""
        try:
            yield self.start(name, *options, command=command)
        finally:
            self.remove(name)

    def remove_all(self) -> None:
        """Take down every pod and container."""
        for kind in (("pod",), ()):
            words = (*kind, "rm", "--all", "--force", "--time", "0")
            # A clean-up of podman's own that is still at work holds the container's mounts.
            wait_for(f"podman {' '.join(words)}", functools.partial(self.succeeds, *words))

    def power_cut(self) -> None:
        """Everything dies at once, and the next boot finds /run empty but for what the scratch machine needs."""
        for name in ("conmon", "busybox", "sleep", self.machine.plugin.name):
            for number in self.machine.processes(name):
                self.machine.run("kill", "-9", number)
        self.machine.must("sh", "-c", LOSE)


@dataclass
class Container:
    """A container of podman's."""

    podman: Podman
    name: str

    @property
    def inspected(self) -> dict[str, Any]:
        """`podman inspect`."""
        (found,) = json.loads(self.podman.must("inspect", self.name))
        return dict(found)

    def on(self, network: str) -> dict[str, Any]:
        """What podman says of the container's place in a network."""
        return dict(self.inspected["NetworkSettings"]["Networks"][network])

    @property
    def network(self) -> Network:
        """Its network, read from outside the container."""
        return Network(self.podman.machine, f"/proc/{self.inspected['State']['Pid']}/ns/net")

    def run(self, *command: str) -> CompletedProcess[str]:
        """Run a command in the container, by podman."""
        return self.podman.run("exec", self.name, *command)

    def pings(self, address: str) -> None:
        """One ping from inside the container; Failed when no answer comes."""
        pinged = self.run("ping", "-c", "1", "-W", "10", address)
        if pinged.returncode:
            raise Failed(told(pinged))

    def gone(self) -> bool:
        """Whether podman no longer knows it."""
        with suppress(Failed):
            self.podman.must("container", "exists", self.name)
            return False
        return True
