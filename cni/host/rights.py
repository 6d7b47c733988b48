"""The rights that a daemon in a container needs of its container, and which of them are missing.

A daemon outside of a container has those of its unit; `doctor` judges its capabilities alone.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cni.host import container, probe, sysctl

NETNS = "/run/netns"
TUN = "/dev/net/tun"
NEEDED = (  # without which no container is attached
    ("NET_ADMIN", 12, "no link, address or rule can be made"),
    ("SYS_ADMIN", 21, "the network namespace of no container can be entered"),
)
CAPABILITIES = (*NEEDED, ("NET_RAW", 13, "no address is announced, and iptables cannot be read"))
IMAGES = ("overlay", "fuse.fuse-overlayfs", "aufs")
"""The filesystems of a container's own root. A daemon in a PID namespace alone has the host's, and with that everything
that is mounted there."""
_TRIED = "ipv4/ip_forward"  # a setting that every kernel has


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount as the process sees it: its mount point, whether mounts made elsewhere reach it, and its filesystem."""

    point: str
    receives: bool
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Rights:
    """What a container has. An error is a text, "" for none; `tun` is None where no engine is started in it."""

    capabilities: int
    mounts: tuple[Mount, ...]
    sysctl: str
    tun: str | None
    directories: dict[str, str]


def missing_here(directories: Iterable[str], *, engine: bool) -> dict[str, str]:
    """`missing` of this process's container; nothing outside of a container. Raises OSError."""
    return missing(read(directories, engine=engine)) if container.own() else {}


@functools.lru_cache(1)
def refusal() -> str:
    """Why no container can be attached, by the capabilities of this process's container; "" if containers can. Asked
    once: a process gains no capability."""
    if not container.own():
        return ""
    effective = probe.capabilities()[1]
    return next((_lacking(name, effect) for name, number, effect in NEEDED if not effective >> number & 1), "")


def read(directories: Iterable[str], *, engine: bool) -> Rights:
    """The rights of this process. `directories`: the run and the data directory; `engine`: whether userspace engines
    are started in this container. Raises OSError."""
    return Rights(
        capabilities=probe.capabilities()[1],
        mounts=parse_mounts(Path("/proc/self/mountinfo").read_text().splitlines()),
        sysctl=_unwritable(sysctl.ROOT / _TRIED),
        tun=_unopened(TUN) if engine else None,
        directories={path: _unwritable(Path(path)) for path in directories},
    )


def missing(rights: Rights) -> dict[str, str]:
    """What is missing, by right, as a sentence with what to add. Pure."""
    found = {
        name: _lacking(name, effect) for name, number, effect in CAPABILITIES if not rights.capabilities >> number & 1
    }
    if rights.sysctl:
        text = f"the container cannot write kernel settings ({rights.sysctl}): mount the host's /proc/sys/net, writable"
        found["sysctl"] = f"{text}, at /host/proc/sys/net"
    if rights.tun:
        found["tun"] = f"the container cannot open {TUN} ({rights.tun}), and so starts no WireGuard engine: mount it"
    netns, is_image = mount_of(NETNS, rights.mounts), mount_of("/", rights.mounts).kind in IMAGES
    if netns.point == "/" and is_image:
        found["netns"] = f"{NETNS} of the host is not mounted in the container: pods are not entered by path"
    elif not netns.receives and (netns.point == NETNS or is_image):
        text = f"{NETNS} is mounted without mountPropagation HostToContainer"
        found["netns"] = f"{text}: pods that start after the daemon are not entered by path"
    for path, error in rights.directories.items():
        if error:
            found[path] = f"the container cannot write {path} ({error})"
        elif is_image and mount_of(path, rights.mounts).point == "/":
            found[path] = f"{path} of the host is not mounted in the container: what it holds ends with the container"
    return found


def _lacking(name: str, effect: str) -> str:
    return f"the container lacks the capability {name}: {effect}"


def parse_mounts(lines: Sequence[str]) -> tuple[Mount, ...]:
    """The mounts of /proc/PID/mountinfo (proc_pid_mountinfo(5)). Pure."""
    mounts = []
    for line in lines:
        fields = line.split(" ")
        optional = fields[6 : fields.index("-", 6)]
        receives = any(each.startswith(("shared:", "master:")) for each in optional)
        mounts.append(Mount(fields[4].replace("\\040", " "), receives, fields[fields.index("-", 6) + 1]))
    return tuple(mounts)


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount:
    """The mount on which a path is: the deepest, the last one of the same mount point. Pure."""
    found = Mount("/", receives=False)
    for mount in mounts:
        inside = mount.point in ("/", path) or path.startswith(f"{mount.point}/")
        if inside and len(mount.point) >= len(found.point):
            found = mount
    return found


def _unwritable(path: Path) -> str:
    """Why a path cannot be written; "" if it can."""
    if os.access(path, os.W_OK):
        return ""
    if not path.exists():
        return f"{path}: {os.strerror(errno.ENOENT)}"
    read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    return f"{path}: {os.strerror(errno.EROFS if read_only else errno.EACCES)}"


def _unopened(path: str) -> str:
    """Why a device cannot be opened; "" if it can."""
    try:
        with contextlib.closing(open(path, "rb+", buffering=0)):  # noqa: PTH123
            return ""
    except OSError as error:
        return error.strerror or str(error)
