"""`zlayer-cni attachments`: the attached containers. Exit code 0, or 3 without a daemon."""

from __future__ import annotations

import sys

from cni import answers
from cni.cli import table
from cni.cli.ask import ask, print_json


def run(run_dir: str, as_json: bool) -> int:
    """Print the attachments; raises NoDaemon, Refused."""
    attachments = ask(run_dir, "attachments", list[answers.Attachment])
    if as_json:
        print_json(attachments)
    else:
        sys.stdout.write(as_text(table.escape_control(attachments)))
    return 0


def as_text(attachments: list[answers.Attachment]) -> str:
    """A line for each attachment."""
    ids = table.short_ids(attachment.container_id for attachment in attachments)
    rows = [
        (
            attachment.network,
            ids[attachment.container_id],
            attachment.interface,
            ", ".join(attachment.addresses),
            attachment.service,
            "-" if attachment.isolation_network is None else attachment.isolation_network or '""',
            attachment.state,
            attachment.pod or "-",
        )
        for attachment in attachments
    ]
    head = ("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "SERVICE", "ISOLATION", "STATE", "POD")
    return table.render(head, rows)
