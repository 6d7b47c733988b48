"""`zlayer-cni why SRC DST [PORT]`: whether a flow is allowed, and by which rule. Exit code 0 if it is, 1 if not, 2 if
an argument is unclear, 3 without a daemon."""

from __future__ import annotations

import json
import sys
from typing import Any

from cni.cli import ask, table
from cni.cli.networks import name_of

UNCLEAR = 2


def run(run_dir: str, src: str, dst: str, port: str, as_json: bool) -> int:
    """Print the answer; raises NoDaemon, NeedsRoot."""
    try:
        found = ask.ask(run_dir, "why", src=src, dst=dst, port=port)
    except ask.NeedsRoot:
        raise
    except ask.Refused as error:
        sys.stderr.write(f"zlayer-cni: {error}\n")
        return UNCLEAR
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if as_json else as_text(table.escape_control(found)))
    return 0 if found["allowed"] else 1


def as_text(found: dict[str, Any]) -> str:
    """A paragraph for each pair of addresses."""
    lines = []
    for path in found["paths"]:
        lines.append(f"{_answer(path)}  {_place(path['from'])} -> {_place(path['to'])}")
        lines.append(f"     {path['reason']}")
        if path["rule"]:
            rule = path["rule"]
            lines.append(f'     rule "{rule["name"]}" in chain {rule["chain"]} of table {rule["family"]} zlayer_cni')
        else:
            lines.append("     no rule of the fence has a say in it")
        lines += [f"     note: {note}" for note in path["notes"]]
    lines += [f"warning: {warning}" for warning in found["warnings"]]
    return "\n".join(lines) + "\n"


def _answer(path: dict[str, Any]) -> str:
    if not path["allowed"]:
        return "NO "
    certain = path.get("certain", True)  # a daemon before this version does not say
    return "yes" if certain else "yes, by this node's fence alone:"


def _place(place: dict[str, Any]) -> str:
    text: str = place["address"] or place["label"]
    if place["address"] and place["label"]:
        text += f" ({place['label']}"
        if place["isolation_network"] is not None or place["on_flat_mesh"]:
            text += f", {name_of(place['isolation_network'])}"
        text += ")"
    return text
