"""`zlayer-cni attachments`: the attached containers. Exit code 0, or 3 without a daemon."""

from __future__ import annotations

import json
import sys

from cni.cli import table
from cni.cli.ask import ask

SHORT_ID = 12  # characters of a container id, as the runtimes' own tools show it


def run(run_dir: str, as_json: bool) -> int:
    """Print the attachments; raises NoDaemon, Refused."""
    attachments = ask(run_dir, "attachments")
    if as_json:
        sys.stdout.write(json.dumps(attachments, indent=2) + "\n")
        return 0
    rows = [
        (
            attachment["network"],
            attachment["container_id"][:SHORT_ID],
            attachment["interface"],
            ", ".join(attachment["addresses"]),
            attachment["service"],
            "-" if attachment["isolation_network"] is None else attachment["isolation_network"] or '""',
            attachment["state"],
            attachment["pod"] or "-",
        )
        for attachment in table.escape_control(attachments)
    ]
    head = ("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "SERVICE", "ISOLATION", "STATE", "POD")
    sys.stdout.write(table.render(head, rows))
    return 0
