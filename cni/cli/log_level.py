"""`zlayer-cni log-level [LEVEL]`: the level of the running daemon's log, until its next start. Exit code 0, or 3
without a daemon."""

from __future__ import annotations

import sys

from cni import answers, plugin_protocol
from cni.cli.ask import ask, print_json


def run(run_dir: str, level: str, as_json: bool) -> int:
    """Set the level if there is one, and print it; raises NoDaemon, Refused."""
    found = ask(run_dir, "log-level", answers.LogLevel, {plugin_protocol.NEW_LOG_LEVEL: level})
    if as_json:
        print_json(found)
    else:
        until = "" if found.level == found.configured else f"; {found.configured} again after the daemon's next start"
        sys.stdout.write(f"{found.level}{until}\n")
    return 0
