"""Whether the host's own firewalls let packets to a port of the node in: those of WireGuard's peers, and containers'
questions to the node's DNS server. Pure.

The packets in question are UDP to the port, of a new flow, not translated. A condition that is not evaluated may match
or not; only what is dropped in every case counts as closed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cni.host import iptables_rules
from cni.host.forward_rules import Flow, closes
from cni.host.nft_forward import DEVICES, Obstacle


@dataclass(frozen=True, slots=True)
class Arrival:
    """Packets that arrive. `effect`: what fails if they are dropped; `iptables` and `nft`: the match of a rule that
    lets them in; `version`: the IP version, 0 for both.
    """

    flow: Flow
    effect: str
    iptables: str
    nft: str
    version: int = 0


@dataclass(frozen=True, slots=True)
class ClosedPort:
    """A firewall that drops the packets: a sentence about it, and the remedy."""

    text: str
    fix: str


def of_peers(port: int) -> Arrival:
    """What WireGuard's peers send, from any machine, by any device but lo."""
    flow = Flow(proto="udp", dport=port, untranslated=True)
    match = f"udp dport {port}"
    return Arrival(flow, "other nodes cannot call this one", f"-p udp --dport {port}", match)


def of_containers(port: int, cluster: str) -> Arrival:
    """What containers of the range `cluster` ask the node's DNS server."""
    flow = Flow(iif=DEVICES, src=cluster, proto="udp", dport=port, untranslated=True)
    effect = "containers cannot ask the node's DNS server"
    match = f'iifname "{DEVICES}" udp dport {port}'
    return Arrival(flow, effect, f"-i zl-+ -p udp --dport {port}", match, 6 if ":" in cluster else 4)


def closed_by(arrival: Arrival, tables: Mapping[str, Sequence[str]], native: Sequence[Obstacle]) -> list[ClosedPort]:
    """The firewalls that drop the packets. `tables`: the output of `-S` of each iptables; `native`: the native nftables
    chains that drop the packets."""
    found = [_of_nftables(obstacle, arrival) for obstacle in native]
    closed = [tool for tool, lines in tables.items() if _is_asked(tool, arrival) and _is_closed(arrival, lines)]
    if closed:
        text = f"INPUT of {' and '.join(closed)} drops UDP to port {arrival.flow.dport}: {arrival.effect}"
        found.append(ClosedPort(text, f"allow it, for instance: {closed[0]} -I INPUT {arrival.iptables} -j ACCEPT"))
    return found


def _is_asked(tool: str, arrival: Arrival) -> bool:
    return arrival.version in (0, 6 if tool.startswith("ip6") else 4)


def _of_nftables(obstacle: Obstacle, arrival: Arrival) -> ClosedPort:
    how = f"its rule `{obstacle.rule}`" if obstacle.rule else "policy"
    port = arrival.flow.dport
    text = f"the nftables chain {obstacle.chain} of another program drops UDP to port {port}, by {how}"
    fix = f"allow it, for instance: nft insert rule {obstacle.chain} {arrival.nft} accept"
    if obstacle.chain.split()[1] == "firewalld":
        fix = f"`firewall-cmd --permanent --add-port={port}/udp`, then `firewall-cmd --reload`"
        if arrival.flow.src:
            source = f"--zone=trusted --add-source={arrival.flow.src}"
            fix = f"`firewall-cmd --permanent {source}`, then `firewall-cmd --reload`"
    return ClosedPort(f"{text}: {arrival.effect}", fix)


def _is_closed(arrival: Arrival, lines: Sequence[str]) -> bool:
    policy_drops = any(line.split()[:3] == ["-P", "INPUT", "DROP"] for line in lines)
    return closes(iptables_rules.parse(lines).rules_of, "INPUT", arrival.flow, policy_drops)
