"""Debian's containerd inside a scratch machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .machine import Machine, wait_for
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
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
    runtime_type = "io.containerd.runc.v2"
    cni_conf_dir = "{directory}"
    cni_max_conf_num = 1
"""


class Containerd:
    """A private containerd.

    `handlers` maps a CRI runtime handler's name to the conflist that its pods get; "runc" is the default one, and the
    one that `ctr run --cni` uses.
    """

    def __init__(self, machine: Machine, handlers: dict[str, dict[str, Any]], log: Path) -> None:
        self.machine = machine
        self.log = log
        config = CONFIG
        for name, conflist in handlers.items():
            directory = "/etc/cni/net.d" if name == "runc" else f"/etc/cni/{name}.d"
            machine.write(f"{directory}/10-zlt.conflist", json.dumps(conflist))
            config += HANDLER.format(name=name, directory=directory)
        for helper in HELPERS.iterdir():
            machine.copy(helper, f"/run/zlt/bin/{helper.name}")
            machine.must("chmod", "755", f"/run/zlt/bin/{helper.name}")
        machine.write("/etc/containerd/config.toml", config)
        self.start()

    def start(self) -> None:
        """Start it (again) and wait until it answers."""
        self.process = self.machine.start("containerd", "-c", "/etc/containerd/config.toml", log=self.log)
        wait_for("containerd answers", lambda: self.machine.run("ctr", "version").returncode == 0)

    def kill(self) -> None:
        """kill -9, as a power cut would; containers go on."""
        self.machine.must("kill", "-9", *self.machine.processes("containerd"))
        self.process.wait(10)
