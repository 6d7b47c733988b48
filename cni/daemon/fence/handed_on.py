"""Packets that the host sends from the hook output for other senders: IPVS's and transparent proxies'.

IPVS takes a packet in the hook input, at priorities 98 and 99, and sends it to the real server from the hook output;
the packet never passes the hook forward. So packets from containers are filtered in the hook input after IPVS, and
packets that IPVS took are filtered in the hook output by their source address, which is still the container's.
"""

from __future__ import annotations

from ipaddress import ip_network

from cni.daemon.fence.model import FenceNode
from cni.daemon.fence.rules import FILTER, Chain, Rule, base_chain, plain_chain

AFTER_IPVS = 110  # IPVS has 98 and 99; NAT has 100: after it, a packet for a real server on the node has its address
# By inner version: the protocol of the outer header, and where the inner source begins, in bits (IPIP, RFC 2003, 2473).
_INNER = (("4", 4, 96, 32), ("6", 41, 64, 128))


def output_chains(node: FenceNode) -> list[Chain]:
    """The base chain of the hook output, and one chain for each family of handed-on packets."""
    ranges = [(v, ip, cluster) for v, ip in (("4", "ip"), ("6", "ip6")) if (cluster := node.cluster(int(v)))]
    return [
        base_chain(
            "inet",
            "output",
            FILTER,
            # The kernel sends a redirect before the hook forward decides on the packet. The redirect would disclose
            # whether an address of another network is in use, and by which MAC. IPv6 has no send_redirects; IPv4's is
            # on for a link while it is on for `all` (IN_DEV_TX_REDIRECTS: one or the other), the kernel's default.
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
    """By source address: to the overlay by membership, elsewhere like forwarded packets."""
    return (
        Rule(f"{ip} daddr {cluster}", f"goto to_overlay{v}", "handed on to the overlay"),
        # IPVS's direct routing leaves the virtual address in the packet, so the packet does not show which member
        # receives it.
        Rule("oifname @inside", "drop", "handed on to a container by an address of others"),
        Rule(
            f"{ip} saddr . {ip} saddr != @same{v} {ip} saddr != @connected{v}",
            "goto tunnel_out",
            "from elsewhere, handed on to the outside",
        ),
        Rule("", "goto outward", "handed on to the outside"),
    )


def _tunnelled(ip: str, cluster: str, node: FenceNode) -> list[Rule]:
    """IPVS's tunnels hide the source address behind the host's. Drop a tunnel packet into the overlay that carries a
    packet of the overlay.
    """
    rules = []
    for inner, protocol, offset, width in _INNER:
        source = node.cluster(int(inner))
        if source is not None:
            network = ip_network(source)
            # The raw payload is first: nft 1.0.6 ends the process (an assertion in payload_expr_complete) when it lists
            # one behind `meta l4proto` of a tunnel. A range needs no whole number of bytes, as a prefix would.
            first, last = int(network.network_address), int(network.broadcast_address)
            match = f"@th,{offset},{width} {first:#x}-{last:#x} {ip} daddr {cluster} meta l4proto {protocol}"
            rules.append(Rule(match, "drop", f"IPv{inner} of the overlay in a tunnel, by {ip}"))
    return rules
