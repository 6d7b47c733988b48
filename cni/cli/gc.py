"""`zlayer-cni gc`: releases dead attachments, or lists them. Exit code 0, or 3 without a daemon."""

from __future__ import annotations

import sys

from cni import answers, plugin_protocol
from cni.cli import table
from cni.cli.ask import ask, print_json


def run(run_dir: str, dry_run: bool, as_json: bool) -> int:
    """Print the released attachments, or those that would be; raises NoDaemon, Refused."""
    garbage = ask(run_dir, "gc", answers.Garbage, {plugin_protocol.DRY_RUN: "1"} if dry_run else {})
    if as_json:
        print_json(garbage)
    else:
        sys.stdout.write(as_text(table.escape_control(garbage)))
    return 0


def as_text(garbage: answers.Garbage) -> str:
    """A line for each attachment, and one for each link without a record."""
    dead = garbage.candidates or garbage.released
    ids = table.short_ids(attachment.container_id for attachment in dead)
    rows = [
        (
            attachment.network,
            ids[attachment.container_id],
            attachment.interface,
            ", ".join(attachment.addresses),
            attachment.pod or "-",
            attachment.reason,
        )
        for attachment in dead
    ]
    if not rows:
        text = "there is nothing to release\n"
    else:
        text = "would release:\n" if garbage.dry_run else "released:\n"
        text += table.render(("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "POD", "WHY"), rows)
    strays = [f"{name}: a link without a record; the daemon removes it at its next start\n" for name in garbage.strays]
    return text + "".join(strays)
