"""`zlayer-cni attachments`: who is attached. Exit code 0, or 3 without a daemon."""

from __future__ import annotations

import json
import sys

from cni.cli import table
from cni.cli.ask import ask

SHORT_ID = 12  # characters of a container id, as the runtimes' own tools show it


def run(run_dir: str, as_json: bool) -> int:
    """Print the attachments; raises NoDaemon, Refused."""
    found = ask(run_dir, "attachments")
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    rows = [
        (
            each["network"],
            each["container_id"][:SHORT_ID],
            each["interface"],
            ", ".join(each["addresses"]),
            each["service"],
            "-" if each["isolation_network"] is None else each["isolation_network"] or '""',
            each["state"],
            each["pod"] or "-",
        )
        for each in table.harmless(found)
    ]
    head = ("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "SERVICE", "ISOLATION", "STATE", "POD")
    sys.stdout.write(table.render(head, rows))
    return 0
