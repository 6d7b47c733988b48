"""`zlayer-cni version`: of this program, and of the daemon that runs. Exit code 0 without a daemon, too."""

from __future__ import annotations

import platform
import sys

from cni import __version__, answers
from cni.cli import ask
from cni.plugin import client


def run(run_dir: str, as_json: bool) -> int:
    """Print the versions."""
    try:
        daemon: str | None = ask.ask(run_dir, "status", answers.Running).version
    except (ask.NoDaemon, ask.Refused):
        daemon = None
    versions = answers.Versions(
        tool=__version__, daemon=daemon, cni=list(client.SUPPORTED_VERSIONS), python=platform.python_version()
    )
    if as_json:
        ask.print_json(versions)
        return 0
    sys.stdout.write(f"tool    {versions.tool} (Python {versions.python})\n")
    sys.stdout.write(f"daemon  {daemon or 'none answers'}\n")
    sys.stdout.write(f"CNI     {', '.join(versions.cni)}\n")
    return 0
