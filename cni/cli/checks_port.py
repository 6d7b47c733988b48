"""The doctor's check of WireGuard's port: whether the host's own firewalls let the packets of peers in. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cni.cli.checks_machine import Finding
from cni.host.closed_port import closed_by, of_peers
from cni.host.nft_forward import Obstacle


def wireguard_port(port: int, tables: Mapping[str, Sequence[str]], native: Sequence[Obstacle]) -> list[Finding]:
    """Whether peers can call this node. `tables`: the output of `-S` of each iptables; `native`: the native nftables
    chains that drop the packet."""
    closed = closed_by(of_peers(port), tables, native)
    findings = [Finding("wireguard", "fail", each.text, each.fix) for each in closed]
    text = f"the host's firewalls let UDP to port {port} in: other nodes can call this one"
    return findings or [Finding("wireguard", "ok", text)]
