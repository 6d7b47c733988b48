"""A private containerd inside a scratch machine: Debian's, or a newer one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .machine import ENVIRONMENT, Machine, wait_for
from .pause import PAUSE
from .plugin import HELPERS

SOCKET = "/run/containerd/containerd.sock"

# native: a plain copy, so that it works where the kernel has no overlayfs. What a virtual machine without AppArmor
# and a cgroup v1 hierarchy without systemd cannot do is switched off by name.
CONFIG = f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  enable_selinux = false
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/run/zlt/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"""
HANDLER = """\
  [plugins."{plugin}".containerd.runtimes.{name}]
    runtime_type = "io.containerd.runc.v2"
    cni_conf_dir = "{directory}"
    cni_max_conf_num = 1
"""
# The same for containerd 2.
CONFIG_2 = f"""\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  enable_selinux = false
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/run/zlt/bin"]
    conf_dir = "/etc/cni/net.d"
"""


@dataclass(frozen=True)
class Release:
    """A containerd: where its programs are (empty: where the system has them), and how it is configured."""

    programs: Path | None
    config: str
    handlers: str

    @property
    def path(self) -> str:
        """PATH for it; it looks its shim up there."""
        return ":".join([*([str(self.programs)] if self.programs else []), ENVIRONMENT["PATH"]])


DEBIANS = Release(None, CONFIG, "io.containerd.grpc.v1.cri")


def version_2(programs: Path) -> Release:
    """containerd 2, of these programs."""
    return Release(programs, CONFIG_2, "io.containerd.cri.v1.runtime")


class Containerd:
    """A private containerd.

    `handlers` maps a CRI runtime handler's name to the conflist that its pods get; "runc" is the default one, and the
    one that `ctr run --cni` uses.
    """

    def __init__(
        self, machine: Machine, handlers: dict[str, dict[str, Any]], log: Path, release: Release = DEBIANS
    ) -> None:
        self.machine = machine
        self.log = log
        self.release = release
        config = release.config
        for name, conflist in handlers.items():
            directory = "/etc/cni/net.d" if name == "runc" else f"/etc/cni/{name}.d"
            machine.write(f"{directory}/10-zlt.conflist", json.dumps(conflist))
            config += HANDLER.format(plugin=release.handlers, name=name, directory=directory)
        for helper in HELPERS.iterdir():
            machine.copy(helper, f"/run/zlt/bin/{helper.name}")
            machine.must("chmod", "755", f"/run/zlt/bin/{helper.name}")
        machine.write("/etc/containerd/config.toml", config)
        self.start()

    def start(self) -> None:
        """Start it (again) and wait until it answers."""
        self.process = self.machine.start(
            "env", f"PATH={self.release.path}", "containerd", "-c", "/etc/containerd/config.toml", log=self.log
        )
        wait_for("containerd answers", lambda: self.machine.run("ctr", "version").returncode == 0)

    def kill(self) -> None:
        """kill -9, as a power cut would; containers go on."""
        self.machine.run("kill", "-9", *self.machine.processes("containerd"))
        self.process.wait(60)
