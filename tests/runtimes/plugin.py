"""The plugin under test, and what only it can tell."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .machine import Machine, PluginUnusable, told

OURS = "zlayer-cni"
NO_DAEMON = 3  # the exit code of our commands when no daemon answers
HELPERS = Path(__file__).with_name("helpers")


@dataclass(frozen=True)
class Plugin:
    """A CNI plugin and the conflist it is tested with; the conflist's first plugin is the one under test."""

    path: Path
    conflist: dict[str, Any]

    @property
    def is_ours(self) -> bool:
        """Whether tests of our own configuration keys and annotations apply."""
        return bool(self.conflist["plugins"][0]["type"] == OURS)

    @property
    def network(self) -> str:
        """The network's name."""
        return str(self.conflist["name"])

    def with_first(self, **keys: Any) -> dict[str, Any]:
        """The conflist with keys of the plugin under test changed."""
        changed = copy.deepcopy(self.conflist)
        changed["plugins"][0].update(keys)
        return changed

    def with_chain(self, *, before: list[str] = [], after: list[str] = []) -> dict[str, Any]:  # noqa: B006
        """The conflist with helper plugins chained before or after."""
        changed = copy.deepcopy(self.conflist)
        changed["plugins"][:0] = [{"type": name} for name in before]
        changed["plugins"] += [{"type": name} for name in after]
        return changed

    def another(self, number: int, **keys: Any) -> dict[str, Any]:
        """The conflist of one more network, `zlt-NUMBER`, with keys of the plugin under test changed."""
        changed = self.with_first(**keys)
        changed["name"] = f"zlt-{number}"
        if not self.is_ours:  # the reference has to be told what is the network's own
            ranges = [[{"subnet": f"10.88.{number}.0/24"}]]
            changed["plugins"][0] |= {"bridge": f"zlt-br{number}"}
            changed["plugins"][0]["ipam"]["ranges"] = ranges
        return changed

    def speaks(self, machine: Machine, version: str) -> bool:
        """Whether every plugin of the conflist, asked by VERSION, knows this version of CNI."""
        for entry in self.conflist["plugins"]:
            words = (f"/run/zlt/bin/{entry['type']}",)
            question = json.dumps({"cniVersion": version})
            answer = machine.must(*words, stdin=question, env={"CNI_COMMAND": "VERSION"})
            if version not in json.loads(answer)["supportedVersions"]:
                return False
        return True

    def leases(self, machine: Machine) -> list[Any]:
        """What the plugin itself believes to be attached, as far as there is a way to ask."""
        if self.is_ours:
            done = machine.run(f"/run/zlt/plugin/{self.path.name}", "attachments", "--json")
            if done.returncode == NO_DAEMON and not machine.daemon_seen:
                return []
            if done.returncode:
                raise PluginUnusable(told(done))
            machine.daemon_seen = True
            listed = json.loads(done.stdout)
            return list(listed["attachments"] if isinstance(listed, dict) else listed)
        where = f"/var/lib/cni/networks/{self.network}"
        files = machine.must("sh", "-c", f"ls {where} 2>/dev/null || true").split()
        return [name for name in files if name[0].isdigit()]
