"""Whether a daemon with these settings could start beside what is on record, found out without touching anything.

It is asked before a running daemon is ended for another one: `overlayd --check`, `overlayd --take-over`, `install`.
"""

from __future__ import annotations

from pathlib import Path

from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.daemon.state.store import Copy

STORE_NAME = "state.db"


def check(settings: Settings) -> None:
    """Raises CniError with what keeps a daemon with these settings from starting."""
    State(Copy(Path(settings.run_dir) / STORE_NAME), settings)
