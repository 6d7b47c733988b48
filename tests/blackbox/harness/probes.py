"""Looking behind the plugin: which addresses it holds reserved. One function for each way of keeping them."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .world import World


def host_local(world: World, network: str) -> set[str]:
    """host-local's store: one file for each address."""
    found = set()
    for entry in (world.data_dir / "networks" / network).glob("*"):
        try:
            found.add(str(ipaddress.ip_address(entry.name)))
        except ValueError:
            continue
    return found


def zlayer(world: World, network: str) -> set[str]:
    """What `zlayer-cni attachments --json` lists for the network."""
    words = " ".join([*map(str, world.command), "attachments", "--json", "--run-dir", str(world.run_dir)])
    listed = json.loads(world.sh(words) or "[]")
    rows = listed.get("attachments", []) if isinstance(listed, dict) else listed
    found = set()
    for row in rows:
        if row.get("network") == network:
            for key in ("ips", "addresses", "ip", "address"):
                value = row.get(key)
                values = [value] if isinstance(value, str) else value or []
                found |= {str(ipaddress.ip_interface(item).ip) for item in values}
    return found


PROBES: dict[str, Callable[[World, str], set[str]]] = {"host-local": host_local, "zlayer": zlayer}
