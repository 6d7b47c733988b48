"""The way out: a packet for the overlay leaves the node by one of the overlay's bridges or tunnels; else the fence
drops and counts it.

The rules are at the hook postrouting and match the final destination address and output device: after other programs'
DNAT, after rerouting in the hook output, and after IPVS. So they cover forwarded packets and the host's own, and do not
depend on a route: without the tunnel's route, a default route would lead the packet to the uplink, unencrypted.
"""

from __future__ import annotations

from cni.daemon.fence.model import FenceNode
from cni.daemon.fence.rules import FILTER, Chain, Rule, base_chain, plain_chain

NO_TUNNEL = "overlay without a tunnel"
ROUTED = "by the host's routes"
CONNECTED = "from no member of this node"


def leaving_chains(node: FenceNode) -> list[Chain]:
    """The base chain of the hook, and one chain for each family of the cluster's ranges."""
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
        # The host itself too: no address of the host's is a container's.
        Rule(f"{ip} daddr @connected{v} {ip} saddr . {ip} saddr != @same{v}", "accept", CONNECTED),
        Rule(
            f"{ip} daddr @connected{v} ct direction reply ct status dnat ct state established",
            "accept",
            "a published port's reply to a connected network",
        ),
        last,
    )
