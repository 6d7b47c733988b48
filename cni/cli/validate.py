"""`zlayer-cni validate FILE`: checks a network list, an entry of one, daemon settings, or network policies.

It uses the plugin's own parser, so the check cannot differ from the plugin. In addition an unknown key is an error
here, with the key that was probably meant.
"""

import difflib
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cni.cli import chain, runtimes
from cni.errors import CniError
from cni.netconf import configuration as c
from cni.netconf.capabilities import IMPLEMENTED, RUNTIME_KEYS, WITHOUT_EFFECT
from cni.netconf.decode import Fields, decode_json
from cni.netconf.environment import is_plain_name
from cni.netconf.policy import ANNOTATIONS_KEYS
from cni.netconf.types import DNS_KEYS, ROUTE_KEYS
from cni.netconf.versions import NEWEST, OLDEST, SUPPORTED, check_version

PLUGIN = "zlayer-cni"
GOOD, FAULTY, UNREADABLE = 0, 1, 2

LIST_KEYS = ("cniVersion", "cniVersions", "name", "plugins", "disableCheck", "disableGC", "loadOnlyInlinedPlugins")
ENTRY_KEYS = (*c.OWN_KEYS, *c.PLACE_KEYS, "type", "capabilities", "args")


_POLICIES = re.compile(
    rb"""^[\s{,-]*["']?kind["']?\s*:\s*["']?(NetworkPolicy|NetworkPolicyList|List)\b""", re.MULTILINE
)


class Report(msgspec.Struct):
    """The result of checking one file."""

    kind: str  # conflist, entry, overlayd, policies
    errors: list[str] = []
    warnings: list[str] = []

    @property
    def valid(self) -> bool:
        return not self.errors


def run(path: str, as_json: bool, bin_dir: str | None = None) -> int:
    """Check the file, or the files of policies in a directory, and print the result: 0 if all is valid, 1 if not, 2 if
    it cannot be read. `bin_dir`: the directory of the plugins; None: the runtime's, if this program is installed
    there."""
    if Path(path).is_dir():
        return _run_directory(path, as_json)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        root = " (this needs root)" if isinstance(error, PermissionError) and os.geteuid() else ""
        sys.stderr.write(f"{path}: {error.strerror}{root}\n")
        return UNREADABLE
    runtime = runtimes.containerd() or runtimes.DEFAULT
    here = next((place for place in runtime.bin_dirs if Path(place, PLUGIN).exists()), None)
    report = examine(path, data, bin_dir or here)
    sys.stdout.write(_as_json(path, report) if as_json else _as_text(path, report))
    return GOOD if report.valid else FAULTY


def _run_directory(path: str, as_json: bool) -> int:
    """Check the files of policies in a directory; the worst result, and 2 without such a file."""
    from cni.daemon.policy.files import SUFFIXES, files_of

    try:
        files = files_of(path)
    except OSError as error:
        sys.stderr.write(f"{path}: {error.strerror}\n")
        return UNREADABLE
    if not files:
        sys.stderr.write(f"{path}: a directory without a file of policies ({', '.join(SUFFIXES)})\n")
        return UNREADABLE
    return max(run(str(file), as_json) for file in files)


def examine(path: str, data: bytes, bin_dir: str | None = None) -> Report:
    """Check `data`. `path` is used for its suffix, and because the daemon reads its settings from it. `bin_dir`: the
    directory in which the plugins of a list must be; None: any."""
    if _POLICIES.search(data):
        return _policies(data)
    if not _looks_like_json(path, data):
        return _settings(path)
    report = Report("conflist")
    try:
        raw = decode_json(data)
    except CniError as error:
        report.errors.append(f"this is not JSON: {error.msg}")
        return report
    if not isinstance(raw, dict):
        report.errors.append("expected a JSON object")
    elif "plugins" in raw or path.endswith(".conflist"):
        _examine_list(raw, report, bin_dir)
        if path.endswith((".conf", ".json")) and "plugins" in raw:
            report.errors.append("the file's name: a runtime reads a list only from a file named *.conflist")
    elif "type" in {key.casefold() for key in raw}:
        report.kind = "entry"
        _examine_entry(raw, "", str(raw.get("name") or "example"), str(raw.get("cniVersion") or NEWEST), report)
    else:
        return _settings(path)
    return report


def _looks_like_json(path: str, data: bytes) -> bool:
    if path.endswith((".yaml", ".yml")):
        return False
    return data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") or path.endswith(
        (".conflist", ".conf", ".json")
    )


def _policies(data: bytes) -> Report:
    """Check a file of network policies, document by document."""
    from cni.daemon.policy import reader

    report = Report("policies")
    try:
        reader.read_text(data.decode())
    except (CniError, UnicodeDecodeError) as error:
        report.errors.append(_said(error) if isinstance(error, CniError) else f"the file is no UTF-8: {error}")
    return report


def _settings(path: str) -> Report:
    from cni.daemon import settings_reader

    report = Report("overlayd")
    try:
        settings_reader.load(path)
    except settings_reader.FaultySettings as error:
        report.errors += error.faults
    except CniError as error:
        report.errors.append(_said(error))
    return report


def _examine_list(raw: dict[str, object], report: Report, bin_dir: str | None) -> None:
    fields = Fields(raw)
    # The runtimes read the keys of a list exactly; case is ignored only inside the entries.
    for key in raw:
        if key not in LIST_KEYS:
            report.errors.append(f"{key}: unknown key{_nearest(key, LIST_KEYS)}")
    try:
        name, version = fields.text("name") or "", fields.text("cniVersion") or OLDEST
        entries = fields.objects("plugins")
    except CniError as error:
        report.errors.append(_said(error))
        return
    if not is_plain_name(name):
        report.errors.append(f"name: {json.dumps(name)} is not letters, digits, dots, dashes and underscores")
    _check_list_version(version, report)
    for key in ("disableCheck", "disableGC", "loadOnlyInlinedPlugins"):
        if raw.get(key, False) not in (True, False, "true", "false"):
            report.errors.append(f"{key}: expected true or false, found {json.dumps(raw[key])}")
    if not entries:
        report.errors.append("plugins: the list is empty, nothing would be attached")
    ours = 0
    for entry in entries:
        ours += _examine_member(entry, name, version, report)
    if entries and not ours:
        report.errors.append(f"plugins: none of them is {PLUGIN}")
    _examine_chain(entries, version, report, bin_dir)


def _examine_chain(entries: list[Fields], version: str, report: Report, bin_dir: str | None) -> None:
    """Check the plugins of a list together."""
    types = [str(entry.raw_value("type") or "") for entry in entries]
    report.errors += chain.type_faults(types) + chain.faults(types)
    others = [{} if kind == PLUGIN else entry.raw for kind, entry in zip(types, entries, strict=True)]
    report.errors += chain.capability_faults(others)
    if bin_dir is not None:
        plain = [kind for kind in types if kind and "/" not in kind]
        report.errors += chain.version_faults(types, version, chain.versions_of(bin_dir, plain), bin_dir)
    if len(types) > 1 and version in ("0.1.0", "0.2.0"):
        report.warnings.append(f"cniVersion: CNI {version} has no lists of plugins, they came with 0.3.0")


def _examine_member(entry: Fields, name: str, version: str, report: Report) -> bool:
    """Check one plugin of a list; returns whether it is ours. For other plugins only the type is checked."""
    kind = entry.raw_value("type")
    if not isinstance(kind, str) or not kind:
        report.errors.append(f"{entry.where('type')}: expected the name of a plugin, found {json.dumps(kind)}")
        return False
    if kind != PLUGIN:
        return False
    _examine_entry(entry.raw, f"{entry.path}.", name, version, report)
    return True


def _check_list_version(version: str, report: Report) -> None:
    try:
        check_version(version, "ADD")
    except CniError as error:
        report.errors.append(f"cniVersion: {_said(error)}")
        return
    if version == NEWEST:
        report.warnings.append(f"cniVersion: containerd before 2.0 refuses {version} results, 1.0.0 goes everywhere")


def _examine_entry(raw: dict[str, object], at: str, name: str, version: str, report: Report) -> None:
    fields = Fields(raw)
    known_version = version if version in SUPPORTED else NEWEST
    conf = c.interpret(
        c.Document(fields, name, known_version), "ADD", lambda error: report.errors.append(at + _said(error))
    )
    for path in conf.unknown:
        report.errors.append(f"{at}{path}: unknown key{_nearest(path.rpartition('.')[2], _known_beside(path))}")
    # The parser has warned of unknown keys already.
    report.warnings += [at + text for text in conf.warnings if not text.endswith(c.UNKNOWN_KEY)]
    capabilities = fields.raw_value("capabilities")
    if isinstance(capabilities, dict):
        for key, enabled in capabilities.items():
            if enabled is True and key not in IMPLEMENTED:
                what = WITHOUT_EFFECT.get(key, "chain the plugin that does it")
                report.warnings.append(f"{at}capabilities.{key}: not implemented here, {what}")


def _known_beside(path: str) -> Iterable[str]:
    """The keys that are valid in the place of an unknown one."""
    if path.startswith("routes["):
        return sorted(ROUTE_KEYS)
    inside = {
        "dns": DNS_KEYS,
        "overlayd": c.OVERLAYD_KEYS,
        "runtimeConfig": RUNTIME_KEYS,
        "annotations": ANNOTATIONS_KEYS,
    }
    parent = path.partition(".")[0]
    return sorted(inside[parent]) if parent in inside else ENTRY_KEYS


def _nearest(key: str, keys: Iterable[str]) -> str:
    by_folded = {key.casefold(): key for key in keys}
    near = difflib.get_close_matches(key.casefold(), by_folded, n=1)
    return f"; {by_folded[near[0]]} is meant?" if near else ""


def _said(error: CniError) -> str:
    return f"{error.msg}: {error.details}" if error.details else error.msg


def _as_json(path: str, report: Report) -> str:
    document = {"file": path, "kind": report.kind, "valid": report.valid}
    return json.dumps({**document, "errors": report.errors, "warnings": report.warnings}, indent=2) + "\n"


KINDS = {
    "conflist": "a network list",
    "entry": "one plugin's configuration",
    "overlayd": "daemon settings",
    "policies": "network policies",
}


def _as_text(path: str, report: Report) -> str:
    verdict = "good" if report.valid else "not good"
    lines = [f"{path}: {KINDS[report.kind]}, {verdict}"]
    lines += [f"  error    {text}" for text in report.errors]
    lines += [f"  warning  {text}" for text in report.warnings]
    return "\n".join(lines) + "\n"
