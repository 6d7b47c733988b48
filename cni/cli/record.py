"""What `install` remembers in the program's directory: its options, its links, and the network lists as it wrote them.

An option that is not given means its value of the last installation, so an upgrade is `install` alone. A network list
with another checksum was changed by hand.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import msgspec

from cni import defaults
from cni.cli import files

NAME = "installed.json"
FLAGS = {
    "bin_dir": "--bin-dir",
    "conf_dir": "--conf-dir",
    "run_dir": "--run-dir",
    "data_dir": "--data-dir",
    "network": "--network",
    "cni_version": "--cni-version",
    "service": "--no-service",
}


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The last installation. `links`: the directories with links of the plugin; `lists`: by the path of each network
    list, the checksums of its last two texts: an installation may be killed before it writes the second. Paths as
    programs see them whose root directory is the `--root` of the installation."""

    bin_dir: str = defaults.BIN_DIR
    conf_dir: str = defaults.CONF_DIR
    run_dir: str = defaults.RUN_DIR
    data_dir: str = defaults.DATA_DIR
    network: str = defaults.NETWORK
    cni_version: str = "1.0.0"
    service: bool = True
    links: tuple[str, ...] = ()
    lists: dict[str, tuple[str, ...]] = {}


def load(programs: Path) -> Record | None:
    """The record in the program's directory; None if there is none that can be read."""
    try:
        return msgspec.json.decode((programs / NAME).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None


def save(programs: Path, record: Record) -> None:
    """Replace the record. Raises OSError."""
    files.write(programs / NAME, msgspec.json.format(msgspec.json.encode(record)).decode() + "\n")


def checksum(text: str) -> str:
    """The checksum of a network list."""
    return hashlib.sha256(text.encode()).hexdigest()


def given(options: argparse.Namespace) -> frozenset[str]:
    """The options that are on the command line."""
    return frozenset(name for name in FLAGS if getattr(options, name, None) is not None)


def completed(options: argparse.Namespace, record: Record) -> argparse.Namespace:
    """The options, with those of the record where they are not given."""
    values = {name: getattr(record, name) for name in FLAGS if name not in given(options)}
    return argparse.Namespace(**{**vars(options), **values})


def as_before(options: argparse.Namespace, record: Record) -> list[str]:
    """The options that count because they were given to an earlier installation, and are no defaults."""
    default = Record()
    words = []
    for name, flag in FLAGS.items():
        value = getattr(record, name)
        if name not in given(options) and value != getattr(default, name):
            words.append(flag if isinstance(value, bool) else f"{flag} {value}")
    return words
