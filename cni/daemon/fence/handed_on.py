"""What the host hands on: packets of others that it sends from the hook output, IPVS's and transparent proxies'.

IPVS takes a packet in the hook input, at priorities 98 and 99, and sends it to the real server from the hook output:
the hook forward never sees it. So what comes from containers is judged in the hook input after IPVS, and what IPVS took
is judged in the hook output by its source, which is still the container's.
"""

from __future__ import annotations

from ipaddress import ip_network

from cni.daemon.fence.model import FenceNode
from cni.daemon.fence.rules import FILTER, Chain, Rule, base_chain, plain_chain

AFTER_IPVS = 110  # IPVS has 98 and 99, and NAT 100, at which a real server on the node itself is its address
# By inner version: the protocol of the outer header, and where the inner source begins, in bits (IPIP, RFC 2003, 2473).
_INNER = (("4", 4, 96, 32), ("6", 41, 64, 128))


def output_chains(node: FenceNode) -> list[Chain]:
    """The hook's chain, and one for each family of what is handed on."""
    ranges = [(v, ip, cluster) for v, ip in (("4", "ip"), ("6", "ip6")) if (cluster := node.cluster(int(v)))]
    return [
        base_chain(
            "inet",
            "output",
            FILTER,
            # A redirect is sent before the hook forward decides on the packet, so it would tell whether the other
            # network's address is in use, and by which MAC. IPv6 has no send_redirects; IPv4's is on for a link while
            # it is on for `all` (IN_DEV_TX_REDIRECTS: one or the other), which is the kernel's default.
            Rule("icmp type redirect oifname @inside", "drop", "redirect by the host"),
            Rule("icmpv6 type nd-redirect oifname @inside", "drop", "redirect by the host, IPv6"),
            *(
                Rule(f"{ip} saddr {cluster} fib saddr type != local", f"goto handed_on{v}", f"handed on, IPv{v}")
                for v, ip, cluster in ranges
            ),
            *(rule for _, ip, cluster in ranges for rule in _tunnelled(ip, cluster, node)),
        ),
        *(plain_chain("inet", f"handed_on{v}", *_handed_on(v, ip, cluster)) for v, ip, cluster in ranges),
    ]


def _handed_on(v: str, ip: str, cluster: str) -> tuple[Rule, ...]:
    """By the source: to the overlay by membership, elsewhere as if it were forwarded."""
    return (
        Rule(f"{ip} daddr {cluster}", f"goto to_overlay{v}", "handed on to the overlay"),
        # IPVS's direct routing leaves the virtual address in the packet: which member it is for is not to be seen.
        Rule("oifname @inside", "drop", "handed on to a container by an address of others"),
        Rule(
            f"{ip} saddr . {ip} saddr != @same{v} {ip} saddr != @connected{v}",
            "goto tunnel_out",
            "from elsewhere, handed on to the outside",
        ),
        Rule("", "goto outward", "handed on to the outside"),
    )


def _tunnelled(ip: str, cluster: str, node: FenceNode) -> list[Rule]:
    """IPVS's tunnels hide the source behind the host's: none into the overlay with a packet of the overlay's inside."""
    found = []
    for inner, protocol, offset, width in _INNER:
        source = node.cluster(int(inner))
        if source is not None:
            network = ip_network(source)
            prefix = int(network.network_address) >> (width - network.prefixlen)
            match = f"{ip} daddr {cluster} meta l4proto {protocol} @th,{offset},{network.prefixlen} {prefix:#x}"
            found.append(Rule(match, "drop", f"IPv{inner} of the overlay in a tunnel, by {ip}"))
    return found
