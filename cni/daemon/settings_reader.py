"""Reads the daemon's YAML into `Settings`; a fault is told with key, value and line.

The file is the one of `--config FILE`; else `overlayd.yaml` in the data directory; else, for the default data directory
only, /etc/zlayer-cni/overlayd.yaml; else the defaults of `Settings` apply.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml

from cni import defaults
from cni.daemon import settings_checks
from cni.daemon.model import yaml_lines
from cni.daemon.settings import (
    AttachKind,
    Cluster,
    Dns,
    Engine,
    Etcd,
    Hidden,
    Isolation,
    Kubernetes,
    LogFormat,
    LogLevel,
    Metrics,
    Nat,
    ServiceSettings,
    Settings,
    StaticPeer,
    Underlay,
    Unsigned,
)
from cni.errors import InvalidConfig
from cni.printable import printable
from cni.secret import Secret

SYSTEM_FILE = "/etc/zlayer-cni/overlayd.yaml"

MOST_FAULTS = 20
JUDGES = {
    "cluster_cidr": ("cluster_cidr6", "slice_cidr", "service_cidr"),
    "cluster_cidr6": ("slice_cidr", "service_cidr"),
    "wireguard_engine": ("underlay",),
}
"""Keys by which others are judged: without the former there is no verdict on the latter."""
NOT_QUOTED = ("cluster",)
"""Below these keys no error quotes a value: it may be a secret in the wrong place."""


class FaultySettings(InvalidConfig):
    """Settings that were read and cannot be used; `faults`: each with key, value and line."""

    def __init__(self, name: str, faults: Sequence[str]) -> None:
        super().__init__(f"{name}: {'; '.join(faults)}")
        self.faults = tuple(faults)


def load(path: str) -> Settings:
    """The settings in the file `path`. Raises InvalidConfig that names the file and the fault."""
    try:
        text = Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"cannot read {path}: {error}") from error
    return parse(text, path)


def locate(config: str | None, data_dir: str | None) -> str | None:
    """The file that a daemon started with these options reads (see the module's docstring); None if there is none."""
    if config is not None:
        return config
    candidates = [Path(data_dir or defaults.DATA_DIR, "overlayd.yaml")]
    if data_dir in (None, defaults.DATA_DIR):
        candidates.append(Path(SYSTEM_FILE))
    return next((str(candidate) for candidate in candidates if candidate.is_file()), None)


def find(config: str | None, data_dir: str | None) -> Settings:
    """The settings of a daemon started with these options. Raises InvalidConfig."""
    path = locate(config, data_dir)
    return load(path) if path is not None else Settings()


def parse(text: str, name: str = "settings") -> Settings:
    """The settings of the YAML `text`. Raises InvalidConfig that names key and value, or the line, on one line."""
    try:
        return _parse(text, name)
    except FaultySettings:
        raise
    except InvalidConfig as error:
        # A quoted value may have line breaks and escapes, which would forge lines of the log.
        raise InvalidConfig(printable(error.msg), error.details) from error


def _parse(text: str, name: str) -> Settings:
    try:
        document = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidConfig(f"{name}: not YAML: {_on_one_line(error)}") from error
    if document is None:
        return Settings()
    if not isinstance(document, dict):
        raise InvalidConfig(f"{name}: a mapping of keys to values is wanted, not {_kind(document)}")
    faults, rest = _convertible(document)
    settings = msgspec.convert(rest, Settings, dec_hook=_secret)
    faults += settings_checks.faults(settings)
    if faults:
        places = yaml_lines.Places(text, _Loader)
        raise FaultySettings(name, [printable(fault + places.line_of(fault)) for fault in faults])
    return msgspec.structs.replace(settings, instance_id=str(settings.instance_id))


def _convertible(document: dict[Any, Any]) -> tuple[list[str], dict[Any, Any]]:
    """Every fault of types and names, and the document without the faulty keys and those that are judged by them."""
    faults: dict[str, str] = {}
    rest = copy.deepcopy(document)
    while True:
        try:
            msgspec.convert(rest, Settings, dec_hook=_secret)
            break
        except msgspec.ValidationError as error:
            fault = _explain(str(error), rest)
        path = yaml_lines.path_of(fault)
        again = path in faults
        faults.setdefault(path, fault)
        if len(faults) == MOST_FAULTS or not yaml_lines.remove(rest, path, whole=again):
            return list(faults.values()), {}
    for key in {path.partition(".")[0] for path in faults} & JUDGES.keys():
        for judged in JUDGES[key]:
            rest.pop(judged, None)
    return list(faults.values()), rest


class _Loader(yaml.SafeLoader):
    """Plain YAML that refuses duplicate keys: the library alone takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{_name(key.value)} stands there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _on_one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        context = f", {_unquoted(error.context)}" if error.context else ""
        return f"line {mark.line + 1}, column {mark.column + 1}: {_unquoted(error.problem or '')}{context}"
    return f"a value that cannot be read ({type(error).__name__})"


def _unquoted(text: str) -> str:
    """The YAML reader's message without its quotations of the file, which may be a password. A single character and
    the name of a token stay."""
    quoted = r" ?(?:'([^']*)'|\"([^\"]*)\")"
    return re.sub(quoted, lambda m: m[0] if re.fullmatch(r"\\?.|<[a-z ]+>", m[1] or m[2] or "") else "", text)


def _secret(kind: type, value: object) -> object:
    """The decoder that msgspec calls for custom types. Raises ValueError whose text does not have the value."""
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise ValueError("Expected `str`")


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "a list"
    return "a text" if isinstance(value, str) else "a plain value"


def _name(key: object) -> str:
    """A key of the file for a message, cut after the characters that a valid key can have (40 at most)."""
    match = re.match(r"[A-Za-z0-9_.-]{1,40}", str(key))
    return match[0] if match else "a key"


def _explain(message: str, document: Any) -> str:
    """msgspec's message with the offending value added; a mapping is not quoted, because it may have secrets."""
    location = re.search(r" - at `(?:key` in `)?\$\.?(.*)`$", message, re.DOTALL)
    where, text = (location[1], message[: location.start()]) if location else ("", message)
    at = f"{where}." if where else ""
    named = re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", text, re.DOTALL)
    if named:
        return f"{at}{_name(named[2])}: " + (
            f"unknown key{_nearest(where, named[2])}" if "unknown" in named[1] else "is missing"
        )
    if location and "at `key` in" in location[0]:
        return f"{at or 'the file: '}a key that is no name"
    value: Any = document
    for step in re.findall(r"[^.\[\]]+", where):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, ValueError, TypeError):
            break
    if text.startswith("Invalid enum value"):
        kinds = {"log_level": LogLevel, "underlay": Underlay, "cluster.unsigned_nodes": Unsigned, "dns.hidden": Hidden}
        kinds |= {"log_format": LogFormat, "attach": AttachKind, "services[].attach": AttachKind}
        text = "expected one of " + ", ".join(get_args(kinds.get(re.sub(r"\[\d+\]", "[]", where), Engine)))
    text = _in_our_words(re.sub(", got `[a-z]+`$", "", text))
    quotable = not isinstance(value, dict | list) and not where.startswith(NOT_QUOTED)
    return f"{where}: {text}, got {value!r}" if quotable else f"{where}: {text}"


def _in_our_words(text: str) -> str:
    """msgspec's `Expected ...` in the words of YAML."""
    kinds = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "array": "a list"}
    kinds |= {"object": "keys with values", "null": "nothing"}
    text = re.sub(r"`([a-z]+)`", lambda match: kinds.get(match[1], match[0]), text)
    text = re.sub(
        r"^Expected (.*?) (>=|<=) ", lambda m: f"expected {m[1]} of at {'least' if m[2] == '>=' else 'most'} ", text
    )
    return (
        text.replace("Expected ", "expected ", 1)
        .replace(" | ", " or ")
        .replace("of length >= ", "of at least the length ")
    )


def _nearest(where: str, key: str) -> str:
    """A hint at the valid key that resembles an unknown key of the mapping `where`; empty if none does."""
    mappings: dict[str, type] = {"dns": Dns, "metrics": Metrics, "peers": StaticPeer, "cluster": Cluster}
    mappings |= {"cluster.etcd": Etcd, "cluster.kubernetes": Kubernetes, "nat": Nat, "services": ServiceSettings}
    mappings["isolation"] = Isolation
    valid = [field.encode_name for field in msgspec.structs.fields(mappings.get(where.partition("[")[0], Settings))]
    near = difflib.get_close_matches(key, valid, n=1)
    return f"; {near[0]} is meant?" if near else ""
