"""The network list that `install` writes, and what it does with one that is there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from cni import defaults
from cni.cli import chain, record, resources
from cni.cli.record import FLAGS, Record
from cni.cli.upkeep import CommandFailed, under

FILE = "10-zlayer.conflist"


class Plan(NamedTuple):
    """What becomes of the network list. `kept` has been changed by hand. `missing`: the chained plugins that are left
    out, because they are not installed: every ADD would fail."""

    path: Path
    text: str
    action: Literal["written", "unchanged", "kept"]
    missing: tuple[str, ...]


def plan(options: argparse.Namespace, given: Collection[str], before: Record) -> Plan:
    """What to do with the list, for complete options of which `given` are on the command line. Raises CommandFailed if
    a chained plugin does not speak the CNI version, and if the list was changed by hand and says something else than an
    option that is given."""
    path = under(options.root, options.conf_dir) / FILE
    bin_dir = under(options.root, options.bin_dir)
    chained = [str(plugin["type"]) for plugin in _template(options.cni_version)["plugins"][1:]]
    speak = chain.versions_of(str(bin_dir), chained)
    missing = tuple(kind for kind in chained if speak[kind] is None)
    there = {kind: versions for kind, versions in speak.items() if versions}
    if wrong := chain.version_faults(chained, options.cni_version, there, str(bin_dir)):
        raise CommandFailed(f"--cni-version {options.cni_version} with {bin_dir}: {'; '.join(wrong)}")
    text = text_for(options.network, options.cni_version, options.run_dir, options.data_dir, missing)
    try:
        present = path.read_text()
    except FileNotFoundError:
        return Plan(path, text, "written", missing)
    if present == text:
        return Plan(path, text, "unchanged", missing)
    seen = before.lists.get(str(Path(options.conf_dir, FILE)))
    if options.force or (_as_written(present) if seen is None else record.checksum(present) in seen):
        return Plan(path, text, "written", missing)
    if conflicts := _conflicts(present, options, given):
        raise CommandFailed(
            f"{path} was changed by hand, and {'; '.join(conflicts)}: change it there, or --force replaces the list"
        )
    return Plan(path, text, "kept", missing)


def earlier(options: argparse.Namespace) -> Record:
    """What an installation that kept no record was told, as far as its network list shows it; else the defaults."""
    conf_dir = options.conf_dir or defaults.CONF_DIR
    try:
        present = (under(options.root, conf_dir) / FILE).read_text()
    except OSError:
        return Record()
    return msgspec.convert({"conf_dir": conf_dir, **_values(present)}, Record) if _as_written(present) else Record()


def text_for(network: str, cni_version: str, run_dir: str, data_dir: str, without: Iterable[str]) -> str:
    """The text of the network list. `without`: the chained plugins to leave out."""
    conflist = _template(cni_version)
    conflist["name"] = network
    ours = conflist["plugins"][0]
    for key, value, default in (("runDir", run_dir, defaults.RUN_DIR), ("dataDir", data_dir, defaults.DATA_DIR)):
        if value != default:
            ours[key] = value
    left_out = set(without)
    conflist["plugins"] = [plugin for plugin in conflist["plugins"] if plugin["type"] not in left_out]
    return json.dumps(conflist, indent=2) + "\n"


def _template(cni_version: str) -> dict[str, Any]:
    name = FILE if cni_version == "1.0.0" else f"cni-{cni_version[:3]}/{FILE}"
    template: dict[str, Any] = json.loads(resources.conf(name))
    return template


def _as_written(present: str) -> bool:
    """Whether `install` writes just this list for some options: it is of a version that kept no record."""
    try:
        values = _values(present)
        kinds = {plugin["type"] for plugin in json.loads(present)["plugins"]}
        without = [
            plugin["type"] for plugin in _template(values["cni_version"])["plugins"] if plugin["type"] not in kinds
        ]
        return present == text_for(without=without, **values)
    except (ValueError, TypeError, KeyError, AttributeError, LookupError, OSError):
        return False


def _values(present: str) -> dict[str, str]:
    """What a list says about the options that are in it. Raises ValueError, TypeError, LookupError or AttributeError if
    it is no list of ours."""
    document = json.loads(present)
    ours = next((plugin for plugin in document["plugins"] if plugin["type"] == "zlayer-cni"), None)
    if ours is None:
        raise LookupError("no entry of ours")
    return {
        "network": str(document["name"]),
        "cni_version": str(document["cniVersion"]),
        "run_dir": str(ours.get("runDir", defaults.RUN_DIR)),
        "data_dir": str(ours.get("dataDir", defaults.DATA_DIR)),
    }


def _conflicts(present: str, options: argparse.Namespace, given: Collection[str]) -> list[str]:
    """The options on the command line that a list changed by hand does not have."""
    in_list = ("network", "cni_version", "run_dir", "data_dir")
    try:
        values = _values(present)
    except (ValueError, TypeError, AttributeError, LookupError):
        return [f"{FLAGS[name]} cannot be read in it" for name in in_list if name in given]
    return [
        f"does not have {FLAGS[name]} {getattr(options, name)}, but {values[name]}"
        for name in in_list
        if name in given and values[name] != getattr(options, name)
    ]
