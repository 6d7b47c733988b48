"""Calls that were recorded on real runtimes, made ready to be made again at the plugin under test."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .template import Json

FOLDER = Path(__file__).resolve().parent.parent.parent / "recordings"

# What belongs to the recorded plugin rather than to the runtime.
PLUGIN_KEYS = {"type", "bridge", "hairpinMode", "ipMasq", "isGateway", "ipam", "snat", "capabilities"}


@dataclass(frozen=True)
class Call:
    """One recorded call. `named` is its place in its file, for test ids."""

    scenario: str
    number: int
    plugin: str
    verb: str
    env: dict[str, str]
    stdin: Json
    rc: int
    stdout: Any
    fault: str | None
    netns: bool | None

    @property
    def named(self) -> str:
        return f"{self.scenario}-{self.number}-{self.plugin}-{self.verb}"

    @property
    def path(self) -> str:
        return self.env.get("CNI_NETNS", "")

    def conf(self, own: Json) -> Json:
        """The recorded configuration with the plugin's own keys in place of the recorded plugin's."""
        kept = {key: value for key, value in self.stdin.items() if key not in PLUGIN_KEYS}
        return {**own, **kept}


def load() -> dict[str, list[Call]]:
    """All recordings: scenario -> its calls in order."""
    found = {}
    for path in sorted(FOLDER.glob("*.json")):
        document = json.loads(path.read_text())
        found[path.stem] = [
            Call(
                path.stem,
                number,
                raw["type"],
                raw["command"],
                raw["env"],
                raw["stdin"] or {},
                raw["rc"],
                raw["stdout"],
                raw["fault"],
                raw["netns_exists"],
            )
            for number, raw in enumerate(document["calls"])
        ]
    return found
