"""The family `inet`: what containers, and members elsewhere, may send to the node itself."""

from __future__ import annotations

from collections.abc import Iterable

from cni.daemon.fence.rules import Rule

# Tunnels that a host may terminate without authenticating the sender: L2TP and GTP-U (which match a number in the
# packet), AMT, GRE and MPLS in UDP, VXLAN and GPE, FOU, GUE, Geneve, TIPC, flannel's VXLAN. Not included: tunnels that
# authenticate their peers by a key (IPsec, WireGuard, OpenVPN).
_TUNNEL_PORTS = "{ 1701, 2152, 2268, 4754, 4789, 4790, 5555, 6080, 6081, 6118, 6635, 8472 }"
# ICMP, ICMPv6, TCP, UDP, SCTP: for the resolver and the daemon; no tunnel protocols.
_NODE_PROTOCOLS = "meta l4proto { 1, 58, 6, 17, 132 }"
# The node's sockets accept an ICMP error about a packet that they never sent: a socket bound to a port alone compares
# nothing else.
_ICMP_OF_NO_FLOW = Rule("ct state invalid meta l4proto { 1, 58 }", "drop", "ICMP of no flow")
FAMILIES = (("4", "ip"), ("6", "ip6"))


def to_host(opened: Iterable[Rule] = ()) -> list[Rule]:
    """The rules for containers of this node; `opened`: those of what the settings open."""
    # ICMP, ICMPv6, TCP, UDP, SCTP, for the resolver and the daemon; no tunnels. Protocols are numbers, here and above:
    # a minimal host has no /etc/protocols, and nft then refuses names.
    return [
        *not_its_flow(),
        Rule("ct direction reply ct state established,related", "accept", "reply to the node"),
        _ICMP_OF_NO_FLOW,
        Rule("ip daddr 127.0.0.0/8", "drop", "loopback of the host"),
        Rule("iifname . ip saddr @open4", "accept", "flat mesh to the host"),
        Rule("iifname . ip6 saddr @open6", "accept", "flat mesh to the host, IPv6"),
        Rule("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }", "accept", "neighbour discovery"),
        Rule(f"udp dport {_TUNNEL_PORTS}", "drop", "tunnel to the node"),
        Rule(f"ip daddr @node4 {_NODE_PROTOCOLS}", "accept", "node address"),
        Rule(f"ip6 daddr @node6 {_NODE_PROTOCOLS}", "accept", "node address, IPv6"),
        *opened,
        Rule("", "drop", "host address"),
    ]


def closed_to_host() -> list[Rule]:
    """A member of an isolation network elsewhere, or an edge peer, reaches the node's address here and replies to the
    node, and nothing else; an edge peer also what its list allows.
    """
    return [
        Rule("ct direction reply ct state established,related", "accept", "reply to the node, from elsewhere"),
        _ICMP_OF_NO_FLOW,
        Rule(f"udp dport {_TUNNEL_PORTS}", "drop", "tunnel to the node, from elsewhere"),
        Rule(f"ip daddr @node4 {_NODE_PROTOCOLS}", "accept", "node address, from elsewhere"),
        Rule(f"ip6 daddr @node6 {_NODE_PROTOCOLS}", "accept", "node address, from elsewhere, IPv6"),
        *edge_by_its_list("edge to the host"),
        Rule("", "drop", "host address, from elsewhere"),
    ]


def not_its_flow() -> list[Rule]:
    """An ICMP error belongs to the flow that it quotes; only an end of that flow may send one.

    nft cannot compare two fields of a packet, so the sets `same4` and `same6` hold each address paired with itself.
    """
    return [
        Rule(
            f"ct state related {ip} saddr . ct original {ip} saddr != @same{v} "
            f"{ip} saddr . ct reply {ip} saddr != @same{v}",
            "drop",
            f"ICMP{v} error about another's flow",
        )
        for v, ip in FAMILIES
    ]


def edge_by_its_list(name: str) -> list[Rule]:
    """An edge peer's own chain decides. The lookup does not use `net4` and `net6`, which hold it too: for every element
    that leads to a chain the kernel checks all of the map's, once for each rule that uses the map
    (nft_lookup_validate).
    """
    return [Rule("", "ip saddr vmap @edge4", name), Rule("", "ip6 saddr vmap @edge6", f"{name}, IPv6")]
