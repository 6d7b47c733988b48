"""A template says everything about one plugin that the suite needs to know: its configuration and its variants.

It is a JSON document:

    versions      the CNI versions it speaks
    known         which table of known faults (`known.py`) applies, or null
    features      what it can do beyond the base; cases that need a missing feature are skipped, saying so
    reservations  how to read its address reservations (`probes.py`), or null
    conf          the configuration (cniVersion and name are filled in)
    files         files to write before the first call: path -> list of lines
    variants      name -> {"conf": merge patch (RFC 7396), "files": {...}}: other networks the cases ask for

Strings may hold @RUN_DIR@ and @DATA_DIR@.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent / "templates"

Json = dict[str, Any]


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396: null takes a key away, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def fill(value: Any, places: dict[str, str]) -> Any:
    """`value` with every @PLACE@ in its strings (keys too) replaced."""
    if isinstance(value, str):
        for place, text in places.items():
            value = value.replace(f"@{place}@", text)
        return value
    if isinstance(value, list):
        return [fill(item, places) for item in value]
    if isinstance(value, dict):
        return {fill(key, places): fill(item, places) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Template:
    """One plugin as the suite sees it."""

    versions: list[str]
    features: frozenset[str]
    known: str | None
    reservations: str | None
    conf: Json
    files: Json
    variants: dict[str, Json] = field(default_factory=dict)

    def has(self, variant: str) -> bool:
        return variant == "base" or variant in self.variants

    def files_of(self, variant: str) -> Json:
        """The files the variant's world needs: variants with the same files can share a world."""
        own = self.variants.get(variant, {}).get("files", {})
        return {**self.files, **own}

    def conf_of(self, variant: str) -> Json:
        conf: Json = merge(self.conf, self.variants.get(variant, {}).get("conf", {}))
        return conf


def load(name: str, changes: str = "") -> Template:
    """The template at path `name`, or of that name in templates/; `changes` is like "+gc,-status"."""
    path = Path(name) if Path(name).is_file() else HERE / (name if name.endswith(".json") else f"{name}.json")
    raw = json.loads(path.read_text())
    if base := raw.pop("extends", None):
        raw = merge(json.loads((path.parent / base).read_text()), raw)
    features = set(raw.get("features", []))
    for change in filter(None, (word.strip() for word in changes.split(","))):
        if change.startswith("-"):
            features.discard(change[1:])
        else:
            features.add(change.removeprefix("+"))
    return Template(
        versions=raw["versions"],
        features=frozenset(features),
        known=raw.get("known"),
        reservations=raw.get("reservations"),
        conf=raw["conf"],
        files=raw.get("files", {}),
        variants=raw.get("variants", {}),
    )
