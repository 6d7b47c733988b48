"""The way out: what is for the overlay leaves the node by a bridge or a tunnel of ours, or is dropped and counted.

Judged at the hook postrouting, by the address a packet has and the device it leaves by in the end: behind others' DNAT,
a rerouting in the hook output, and IPVS. So it holds for what the host forwards and for what it sends itself, and it
does not depend on a route: without the tunnel's, a default route would lead the packet to the uplink, unencrypted.
"""

from __future__ import annotations

from cni.daemon.fence.model import FenceNode
from cni.daemon.fence.rules import FILTER, Chain, Rule, base_chain, plain_chain

NO_TUNNEL = "overlay without a tunnel"
ROUTED = "by the host's routes"
CONNECTED = "from the node to a network it is on"


def leaving_chains(node: FenceNode) -> list[Chain]:
    """The hook's chain, and one for each family of the cluster's ranges."""
    ranges = [(v, ip, cluster) for v, ip in (("4", "ip"), ("6", "ip6")) if (cluster := node.cluster(int(v)))]
    entry = [Rule(f"{ip} daddr {cluster}", f"goto leaving{v}", f"IPv{v} for the overlay") for v, ip, cluster in ranges]
    return [
        base_chain("inet", "postrouting", FILTER, *entry, chain="leaving"),
        *(plain_chain("inet", f"leaving{v}", *_leaving(v, ip, node.routed)) for v, ip, _ in ranges),
    ]


def _leaving(v: str, ip: str, routed: bool) -> tuple[Rule, ...]:
    last = Rule("", "accept", ROUTED) if routed else Rule("", "drop", NO_TUNNEL)
    return (
        Rule("oifname @inside", "accept", "by a bridge of ours"),
        Rule("oifname @tunnels", "accept", "by a tunnel of ours"),
        Rule('oifname "lo"', "accept", "for the node itself"),
        # Only what the host sends itself has a source that is the host's: SNAT comes later (100).
        Rule(f"fib saddr type local {ip} daddr @connected{v}", "accept", CONNECTED),
        Rule(f"{ip} daddr @connected{v} {ip} saddr . {ip} saddr != @same{v}", "accept", "from no member of this node"),
        Rule(
            f"{ip} daddr @connected{v} ct direction reply ct status dnat ct state established",
            "accept",
            "a published port's reply to a connected network",
        ),
        last,
    )
