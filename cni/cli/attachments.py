"""`zlayer-cni attachments`: the attached containers. Exit code 0, or 3 without a daemon."""

from __future__ import annotations

import argparse
import sys

from cni import answers
from cni.cli import table
from cni.cli.ask import ask, print_json

FLAT = "-"


def run(options: argparse.Namespace) -> int:
    """Print the attachments that are asked for; raises NoDaemon, Refused."""
    attachments = [
        each
        for each in ask(options.run_dir, "attachments", list[answers.Attachment])
        if options.service in (None, each.service) and is_asked(options.network, each.isolation_network)
    ]
    if options.json:
        print_json(attachments)
    else:
        width = 0 if options.output_form == "wide" else None
        sys.stdout.write(as_text(table.escape_control(attachments), width))
    return 0


def is_asked(asked: str | None, network: str | None) -> bool:
    """Whether a filter lets an isolation network through; `-` is the flat mesh."""
    return asked is None or (network is None if asked == FLAT else network == asked)


def as_text(attachments: list[answers.Attachment], width: int | None = None) -> str:
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
    return table.render(head, rows, width)
