"""Whether the host's own firewalls let the packets of WireGuard's peers in. Pure.

The packet in question is UDP to the port, of a new flow, from any machine, by any device but lo, not translated. A
condition that is not evaluated may match or not; only what is dropped in every case counts as closed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cni.host import iptables_rules
from cni.host.forward_rules import closes
from cni.host.nft_forward import Obstacle, to_port


@dataclass(frozen=True, slots=True)
class ClosedPort:
    """A firewall that drops the packets: a sentence about it, and the remedy."""

    text: str
    fix: str


def closed_by(port: int, tables: Mapping[str, Sequence[str]], native: Sequence[Obstacle]) -> list[ClosedPort]:
    """The firewalls that drop UDP to the port. `tables`: the output of `-S` of each iptables; `native`: the native
    nftables chains that drop the packet."""
    found = [_of_nftables(obstacle, port) for obstacle in native]
    closed = [tool for tool, lines in tables.items() if _is_closed(port, lines)]
    if closed:
        text = f"INPUT of {' and '.join(closed)} drops UDP to port {port}: other nodes cannot call this one"
        found.append(ClosedPort(text, f"allow it, for instance: {closed[0]} -I INPUT -p udp --dport {port} -j ACCEPT"))
    return found


def _of_nftables(obstacle: Obstacle, port: int) -> ClosedPort:
    how = f"its rule `{obstacle.rule}`" if obstacle.rule else "policy"
    text = f"the nftables chain {obstacle.chain} of another program drops UDP to port {port}, by {how}: other nodes"
    fix = f"allow it, for instance: nft insert rule {obstacle.chain} udp dport {port} accept"
    if obstacle.chain.split()[1] == "firewalld":
        fix = f"`firewall-cmd --permanent --add-port={port}/udp`, then `firewall-cmd --reload`"
    return ClosedPort(f"{text} cannot call this one", fix)


def _is_closed(port: int, lines: Sequence[str]) -> bool:
    policy_drops = any(line.split()[:3] == ["-P", "INPUT", "DROP"] for line in lines)
    return closes(iptables_rules.parse(lines).rules_of, "INPUT", to_port(port), policy_drops)
