"""`zlayer-cni gc`: releases dead attachments, or lists them. Exit code 0, or 3 without a daemon."""

from __future__ import annotations

import json
import sys
from typing import Any

from cni.cli import table
from cni.cli.ask import ask


def run(run_dir: str, dry_run: bool, as_json: bool) -> int:
    """Print the released attachments, or those that would be; raises NoDaemon, Refused."""
    found = ask(run_dir, "gc", **({"dry_run": "1"} if dry_run else {}))
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if as_json else as_text(table.escape_control(found)))
    return 0


def as_text(found: dict[str, Any]) -> str:
    """A line for each attachment, and one for each link without a record."""
    dead = found["candidates"] or found["released"]
    ids = table.short_ids(each["container_id"] for each in dead)
    rows = [
        (
            each["network"],
            ids[each["container_id"]],
            each["interface"],
            ", ".join(each["addresses"]),
            each["pod"] or "-",
            each["reason"],
        )
        for each in dead
    ]
    if not rows:
        text = "there is nothing to release\n"
    else:
        text = "would release:\n" if found["dry_run"] else "released:\n"
        text += table.render(("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "POD", "WHY"), rows)
    strays = [f"{name}: a link that no record knows; it goes when the daemon next starts\n" for name in found["strays"]]
    return text + "".join(strays)
