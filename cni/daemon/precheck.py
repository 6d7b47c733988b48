"""Checks, read-only, whether a daemon with these settings could start on the existing records.

`overlayd --check`, `overlayd --take-over` and `install` run the check before they end a running daemon.
"""

from __future__ import annotations

from pathlib import Path

from cni.daemon.events import Events
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.daemon.state.store import Copy

STORE_NAME = "state.db"


def check(settings: Settings) -> None:
    """Raises CniError with the reason if a daemon with these settings could not start."""
    State(Copy(Path(settings.run_dir) / STORE_NAME), settings, Events())
