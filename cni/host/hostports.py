"""The host's ports that are forwarded into containers, as found in NAT rules. Read only.

`portmap` writes iptables rules, or a table of its own with its nftables backend. Both are read, also if another program
wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from cni.host import iptables

TABLE = "cni_hostport"  # of portmap's nftables backend
_TARGET = re.compile(r"\[?([0-9a-fA-F:.]+?)\]?:(\d+)")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """One translation: protocol, the host's address (empty: any) and port, the container's address and port."""

    protocol: str
    host_address: str
    host_port: int
    address: str
    port: int


def from_iptables(saved: str) -> list[Forwarded]:
    """The translations in `iptables -t nat -S`: every DNAT rule with a protocol, a port and a target with a port."""
    return [forwarded for line in saved.splitlines() if (forwarded := _of_line(line.split())) is not None]


def _of_line(words: list[str]) -> Forwarded | None:
    if "DNAT" not in words:
        return None
    given = {word: words[n + 1] for n, word in enumerate(words[:-1]) if word.startswith("-")}
    target = _TARGET.fullmatch(given.get("--to-destination", ""))
    if target is None or not given.get("--dport", "").isdigit() or "-p" not in given:
        return None
    address = given.get("-d", "")
    try:
        if address and ip_network(address, strict=False).num_addresses > 1:
            address = ""
    except ValueError:
        return None
    return Forwarded(given["-p"], address.partition("/")[0], int(given["--dport"]), target[1], int(target[2]))


def from_nft(listing: Mapping[str, Any] | None) -> list[Forwarded]:
    """The translations in the listing of a table (libnftables-json(5)): rules with one port and one target."""
    rules = [item["rule"] for item in (listing or {}).get("nftables", ()) if "rule" in item]
    return [forwarded for rule in rules if (forwarded := _of_rule(rule.get("expr", ()))) is not None]


def _of_rule(expressions: Any) -> Forwarded | None:
    protocol, host_address, host_port = "", "", 0
    for expression in expressions:
        match = expression.get("match", {})
        payload = match.get("left", {}).get("payload", {}) if isinstance(match.get("left"), Mapping) else {}
        if payload.get("field") == "dport" and isinstance(match["right"], int):
            protocol, host_port = payload["protocol"], match["right"]
        elif payload.get("field") == "daddr" and isinstance(match["right"], str):
            host_address = match["right"]
        target = expression.get("dnat")
        if isinstance(target, Mapping) and host_port and isinstance(target.get("port"), int):
            return Forwarded(protocol, host_address, host_port, str(target["addr"]), target["port"])
    return None


def iptables_rules() -> Iterable[str]:
    """The nat tables of iptables and ip6tables as text; a command that is missing or fails is left out."""
    return map("\n".join, iptables.of_both_families(table="nat").values())
