"""The directories in which containerd looks for plugins and network lists, by its configuration."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from cni import defaults

CONFIG = "/etc/containerd/config.toml"
_TABLES = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")  # configuration versions 2 and 3


class Directories(NamedTuple):
    """The directories of a runtime, and the source of that information."""

    bin_dirs: tuple[str, ...]
    conf_dir: str
    source: str


DEFAULT = Directories((defaults.BIN_DIR,), defaults.CONF_DIR, "its defaults")


def containerd(root: str = "/") -> Directories | None:
    """The directories in the configuration, or the defaults; None if there is no readable configuration."""
    path = Path(root) / CONFIG.lstrip("/")
    try:
        return directories(tomllib.loads(path.read_text()), str(path))
    except (OSError, ValueError):
        return None


def directories(config: dict[str, Any], source: str) -> Directories:
    """The CNI directories of a containerd configuration, of version 2 or 3."""
    cni: dict[str, Any] = {}
    for name in _TABLES:
        of_plugin = config.get("plugins", {}).get(name)
        section = of_plugin.get("cni") if isinstance(of_plugin, dict) else None
        cni |= section if isinstance(section, dict) else {}
    many, one, lists = cni.get("bin_dirs"), cni.get("bin_dir"), cni.get("conf_dir")
    several = tuple(str(directory) for directory in many) if isinstance(many, list) else ()
    return Directories(several or (str(one or defaults.BIN_DIR),), str(lists or defaults.CONF_DIR), source)


def complaints(directories: Directories | None, bin_dir: str, conf_dir: str) -> list[str]:
    """The directories that a runtime which uses `directories` would not search; sentences with the remedy."""
    sentences = []
    if directories is not None and not any(same(bin_dir, directory) for directory in directories.bin_dirs):
        where = directories.bin_dirs[0]
        sentences.append(
            f"containerd looks for plugins in {where}, not in {bin_dir} ({directories.source}): --bin-dir {where}"
        )
    if directories is not None and not same(conf_dir, directories.conf_dir):
        where = directories.conf_dir
        sentences.append(
            f"containerd looks for network lists in {where}, not in {conf_dir} ({directories.source}):"
            f" --conf-dir {where}"
        )
    return sentences


def same(one: str, other: str) -> bool:
    """Whether two paths name the same directory."""
    return Path(one).resolve() == Path(other).resolve()
