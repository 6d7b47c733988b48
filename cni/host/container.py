"""Whether a process runs in a container that ends with it, and so ends the programs that it has started."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

IN_POD = "ZLAYER_NODE_NAME"  # the DaemonSet gives its containers this variable
GROUP = re.compile(r"(cri-containerd|crio|docker|libpod|nerdctl)-.+|[0-9a-f]{64}")  # a container's own control group


def own() -> str:
    """What this process is in, for a message; "" if it is in no container."""
    return container_of(os.getpid(), _groups("self"), bool(os.environ.get(IN_POD)))


def of(pid: int) -> str:
    """What the process `pid`, which this one sees, is in; "" if it is in no container."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return ""
    inside = next((line.split()[-1] for line in lines if line.startswith("NSpid:")), str(pid))
    return container_of(int(inside), _groups(str(pid)), is_in_pod=False)


def container_of(pid: int, groups: Sequence[str], is_in_pod: bool) -> str:
    """What a process is in that ends with it; "" if nothing is known. `pid`: in its own PID namespace; `groups`: the
    lines of its /proc/PID/cgroup (cgroups(7)). Pure.

    A process that is the first of its PID namespace takes every other one of that namespace with it. A runtime kills a
    container's control group when the container's first process has ended, whatever PID namespace that has.
    """
    if is_in_pod:
        return "a container of a Pod"
    if any(GROUP.fullmatch(line.rpartition("/")[2]) for line in groups):
        return "a container by its control group"
    return "a container: it is the first process of its PID namespace" if pid == 1 else ""


def ends_with_this(pid: int) -> bool:
    """Whether the process `pid`, which this one sees, ends with this process, which is in a container: by the PID
    namespace, or by the control group."""
    return os.getpid() == 1 or _groups(str(pid)) == _groups("self")


def _groups(process: str) -> list[str]:
    try:
        return Path("/proc", process, "cgroup").read_text().splitlines()
    except OSError:
        return []
