"""`zlayer-cni networks`: isolation networks, their members, and packets that the fence dropped. Exit code 0, or 3
without a daemon."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from cni.cli import table
from cni.cli.ask import ask

FLAT = "(flat mesh)"


def run(run_dir: str, as_json: bool) -> int:
    """Print the networks; raises NoDaemon, Refused."""
    found = ask(run_dir, "networks")
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if as_json else as_text(table.escape_control(found)))
    return 0


def name_of(network: str | None) -> str:
    """A network's name for display; the empty name is shown in quotes."""
    return FLAT if network is None else network or '""'


def as_text(found: dict[str, Any]) -> str:
    """Members by network, then the rules that dropped packets."""
    text = "" if found["fence"]["in_force"] else f"the fence is NOT IN FORCE: {found['fence']['trouble']}\n\n"
    rows: list[tuple[object, ...]] = []
    ids = table.short_ids(m["container_id"] for network in found["networks"] for m in network["members"])
    for network in found["networks"]:
        name = name_of(network["isolation_network"])
        rows += [_member(name, ids, member) for member in network["members"]]
        rows += [(name, "(another node)", "-", address, "-", "-") for address in network["remote_members"]]
        if not network["members"] and not network["remote_members"]:
            rows.append((name, "-", "-", "-", "-", "-"))
    text += table.render(("NETWORK", "CONTAINER", "INTERFACE", "ADDRESSES", "SERVICE", "POD"), rows)
    dropped = [_drop(each) for each in found["drops"] if each["packets"]]
    if not dropped:
        return text + "\nnothing was dropped\n"
    return text + "\n" + table.render(("DROPPED PACKETS", "BYTES", "RULE", "WHERE"), dropped)


def _member(name: str, ids: Mapping[str, str], member: dict[str, Any]) -> tuple[object, ...]:
    return (
        name,
        ids[member["container_id"]],
        member["interface"],
        ", ".join(member["addresses"]),
        member["service"],
        member["pod"] or "-",
    )


def _drop(each: dict[str, Any]) -> tuple[object, ...]:
    where = f"from {name_of(each['isolation_network'])}" if each["of_a_network"] else each["chain"]
    return (each["packets"], each["bytes"], each["rule"], f"{each['family']} {where}")
