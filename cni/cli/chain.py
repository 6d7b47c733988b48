"""Whether the plugins of a network list can work in a row. Pure, but for `versions_of`.

A list that a runtime takes may still be one with which every ADD fails: a second plugin that makes the container's
interface, one that changes an interface before there is any, one that is not installed or does not speak the list's CNI
version. The known plugins are those of the CNI project (containernetworking/plugins).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cni.host import program

PLUGIN = "zlayer-cni"
MAKERS = frozenset({"bridge", "ptp", "macvlan", "ipvlan", "vlan", "host-device", "dummy", "tap"})
"""They make the interface with the container's name, as ours does."""
CHAINED = frozenset({"portmap", "firewall", "bandwidth", "tuning", "sbr", "vrf"})
"""They change what an earlier plugin of the list made, and fail without its result."""
IPAM = frozenset({"host-local", "dhcp", "static"})

Versions = Mapping[str, tuple[str, ...] | None]
"""The CNI versions of installed plugins: None: it is not there; empty: it does not say."""


def faults(types: Sequence[str]) -> list[str]:
    """What is wrong with the order and the kinds of the plugins, each with its place in the list."""
    problems, made_by = [], ""
    for n, kind in enumerate(types):
        at = f"plugins[{n}] ({kind})"
        if kind in IPAM:
            problems.append(f"{at}: it gives out addresses for another plugin, and has no place in a list")
        elif kind in CHAINED and not made_by:
            problems.append(f"{at}: it changes what an earlier plugin made, so it must come after {PLUGIN}")
        elif kind in MAKERS or kind == PLUGIN:
            if made_by:
                problems.append(f"{at}: every ADD fails, because {made_by} has made the container's interface already")
            made_by = made_by or f"plugins[{n}] ({kind})"
    return problems


def type_faults(types: Sequence[str]) -> list[str]:
    """The types that no runtime runs: a plugin's type is the name of a file."""
    return [
        f"plugins[{n}].type: {kind!r} is not a file's name"
        for n, kind in enumerate(types)
        if "/" in kind or kind in (".", "..")
    ]


def capability_faults(entries: Sequence[Mapping[str, object]]) -> list[str]:
    """The `capabilities` with which a runtime refuses the whole list: the values must be true or false."""
    problems = []
    for n, entry in enumerate(entries):
        capabilities = entry.get("capabilities")
        if capabilities is None:
            continue
        if not isinstance(capabilities, dict):
            problems.append(f"plugins[{n}].capabilities: expected an object, found {json.dumps(capabilities)}")
            continue
        problems += [
            f"plugins[{n}].capabilities.{key}: expected true or false, found {json.dumps(value)}"
            for key, value in capabilities.items()
            if not isinstance(value, bool)
        ]
    return problems


def version_faults(types: Sequence[str], version: str, speak: Versions, bin_dir: str) -> list[str]:
    """The plugins that are not installed, or do not speak the list's CNI version."""
    problems = []
    for n, kind in enumerate(types):
        versions = speak.get(kind, ())
        if versions is None:
            problems.append(f"plugins[{n}] ({kind}): there is no {bin_dir}/{kind}, so every ADD fails")
        elif versions and version not in versions:
            newest = versions[-1]
            problems.append(
                f"plugins[{n}] ({kind}): every ADD fails, because it speaks CNI up to {newest}, not {version}"
            )
    return problems


def versions_of(bin_dir: str, types: Iterable[str]) -> Versions:
    """Ask the installed plugins for their CNI versions."""
    speak: dict[str, tuple[str, ...] | None] = {}
    for kind in dict.fromkeys(types):
        path = Path(bin_dir, kind)
        speak[kind] = _ask(path) if path.exists() else None
    return speak


def _ask(path: Path) -> tuple[str, ...]:
    try:
        code, out, _ = program.run_once([str(path)], {"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"1.0.0"}')
        document = json.loads(out) if code == 0 else {}
        return tuple(str(version) for version in document.get("supportedVersions", ()))
    except (OSError, ValueError, AttributeError, TypeError):
        return ()
