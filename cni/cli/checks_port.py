"""The doctor's check of WireGuard's port: whether the host's own firewalls let the packets of peers in. Pure.

The packet in question is UDP to the port, of a new flow, from any machine, by any device but lo, not translated. A
condition that is not evaluated may match or not; only what is dropped in every case counts as closed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cni.cli.checks_machine import Finding
from cni.host import iptables_rules
from cni.host.forward_rules import closes
from cni.host.nft_forward import Obstacle, to_port


def wireguard_port(port: int, tables: Mapping[str, Sequence[str]], native: Sequence[Obstacle]) -> list[Finding]:
    """Whether peers can call this node. `tables`: the output of `-S` of each iptables; `native`: the native nftables
    chains that drop the packet."""
    findings = [_closed_by(obstacle, port) for obstacle in native]
    closed = [tool for tool, lines in tables.items() if _is_closed(port, lines)]
    if closed:
        text = f"INPUT of {' and '.join(closed)} drops UDP to port {port}: other nodes cannot call this one"
        fix = f"allow it, for instance: {closed[0]} -I INPUT -p udp --dport {port} -j ACCEPT"
        findings.append(Finding("wireguard", "fail", text, fix))
    text = f"the host's firewalls let UDP to port {port} in: other nodes can call this one"
    return findings or [Finding("wireguard", "ok", text)]


def _closed_by(obstacle: Obstacle, port: int) -> Finding:
    how = f"its rule `{obstacle.rule}`" if obstacle.rule else "policy"
    text = f"the nftables chain {obstacle.chain} of another program drops UDP to port {port}, by {how}: other nodes"
    fix = f"allow it, for instance: nft insert rule {obstacle.chain} udp dport {port} accept"
    if obstacle.chain.split()[1] == "firewalld":
        fix = f"`firewall-cmd --permanent --add-port={port}/udp`, then `firewall-cmd --reload`"
    return Finding("wireguard", "fail", f"{text} cannot call this one", fix)


def _is_closed(port: int, lines: Sequence[str]) -> bool:
    policy_drops = any(line.split()[:3] == ["-P", "INPUT", "DROP"] for line in lines)
    return closes(iptables_rules.parse(lines).rules_of, "INPUT", to_port(port), policy_drops)
