"""The file that a daemon was started with, and what a restart would change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from cni.daemon import settings_reader
from cni.daemon.settings import Settings
from cni.errors import InvalidConfig


@dataclass(frozen=True)
class SettingsFile:
    """The options of a start that decide its settings. `overrides`: the settings that were given as options."""

    config: str | None
    data_dir: str | None
    overrides: Mapping[str, str]

    def read(self) -> Settings:
        """The settings of a daemon that starts now. Raises InvalidConfig."""
        return msgspec.structs.replace(settings_reader.find(self.config, self.data_dir), **self.overrides)

    def notes(self, running: Settings) -> list[str]:
        """What the operator must know of a daemon that was started with the settings `running`: the file has changed
        since, or no daemon can start with it."""
        try:
            fresh = self.read()
        except InvalidConfig as error:
            return [f"the daemon cannot be started again: {error.msg}"]
        keys = [name for name in Settings.__struct_fields__ if getattr(fresh, name) != getattr(running, name)]
        if running.takes_pod_cidr and fresh.takes_pod_cidr:
            keys = [name for name in keys if name not in ("service_cidr", "slice_cidr")]  # of the Node, not of the file
        if not keys:
            return []
        path = settings_reader.locate(self.config, self.data_dir) or "the YAML, which is gone,"
        return [f"{path} has changed since the daemon started; restart the daemon to apply: {', '.join(keys)}"]
