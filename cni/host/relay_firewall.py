"""Whether this host's own firewalls let a relay's datagrams in, and out again on the link of the default route."""

from __future__ import annotations

from collections.abc import Sequence

from cni.errors import FenceFailed
from cni.host import closed_port, iptables, iptables_rules
from cni.host.closed_port import Arrival
from cni.host.forward_rules import Flow, closes
from cni.host.nft import Nft
from cni.host.nft_forward import hook_obstacles


def relay_obstacles(nft: Nft, port: int, device: str, own: str) -> list[str]:
    """What drops the datagrams of every relayed pair, as sentences with the remedy. `port`: one of the relay's;
    `device`: of the default route; `own`: the fence's table. What cannot be read counts as open."""
    try:
        tables = iptables.filters()
        arriving, passing = Flow(iif=device, proto="udp", dport=port), Flow(iif=device, oif=device, proto="udp")
        arrival = Arrival(arriving, "no pair is relayed", f"-p udp --dport {port}", f"udp dport {port}", 4)
        found = closed_port.closed_by(arrival, tables, hook_obstacles(nft, "input", arriving, own))
        denied = [f"FORWARD of {tool}" for tool, lines in tables.items() if _denies(tool, lines, passing)]
        denied += [f"the nftables chain {each.chain}" for each in hook_obstacles(nft, "forward", passing, own)]
    except FenceFailed:
        return []
    remedy = "accept forwarded UDP with `ct status dnat` there"
    return [
        *(f"{closed.text}; {closed.fix}" for closed in found),
        *(f"{what} drops forwarded UDP: no pair is relayed; {remedy}" for what in denied),
    ]


def _denies(tool: str, lines: Sequence[str], flow: Flow) -> bool:
    policy_drops = any(line.split()[:3] == ["-P", "FORWARD", "DROP"] for line in lines)
    return not tool.startswith("ip6") and closes(iptables_rules.parse(lines).rules_of, "FORWARD", flow, policy_drops)
