"""`zlayer-cni attachments`: the attached containers. Exit code 0, or 3 without a daemon."""

from __future__ import annotations

import json
import sys

from cni.cli import table
from cni.cli.ask import ask


def run(run_dir: str, as_json: bool) -> int:
    """Print the attachments; raises NoDaemon, Refused."""
    attachments = ask(run_dir, "attachments")
    if as_json:
        sys.stdout.write(json.dumps(attachments, indent=2) + "\n")
        return 0
    attachments = table.escape_control(attachments)
    ids = table.short_ids(attachment["container_id"] for attachment in attachments)
    rows = [
        (
            attachment["network"],
            ids[attachment["container_id"]],
            attachment["interface"],
            ", ".join(attachment["addresses"]),
            attachment["service"],
            "-" if attachment["isolation_network"] is None else attachment["isolation_network"] or '""',
            attachment["state"],
            attachment["pod"] or "-",
        )
        for attachment in attachments
    ]
    head = ("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "SERVICE", "ISOLATION", "STATE", "POD")
    sys.stdout.write(table.render(head, rows))
    return 0
