"""The family `inet`: packets that are routed, packets for the node, and packets that leave; by address. In the order
that a packet passes the chains.
"""

from __future__ import annotations

from cni.daemon.fence import openings
from cni.daemon.fence.handed_on import AFTER_IPVS, output_chains
from cni.daemon.fence.leaving import leaving_chains
from cni.daemon.fence.model import FLAT, FenceNode
from cni.daemon.fence.rules import EARLY, FILTER, HAS_OPTIONS, Chain, Rule, base_chain, ipv4_options, plain_chain
from cni.daemon.fence.to_host import FAMILIES, closed_to_host, edge_by_its_list, not_its_flow, to_host


def inet_chains(node: FenceNode) -> list[Chain]:
    """The chains for packets that are routed, and for packets to the node."""
    four, six = node.cluster(4), node.cluster(6)
    families = [(v, ip) for v, ip in FAMILIES if node.cluster(int(v))]
    return [
        base_chain("inet", "prerouting", EARLY, *_prerouting(node)),
        plain_chain(
            "inet",
            "from_container",
            Rule("iifname . ip saddr != @home4", "drop", "unknown IPv4 source"),
            Rule("ip6 saddr != :: iifname . ip6 saddr != @home6", "drop", "unknown IPv6 source"),
            Rule(
                "meta pkttype { broadcast, multicast } fib daddr type local",
                "drop",
                "host address in a group frame",
            ),
            Rule(HAS_OPTIONS, "jump options4", "IPv4 options"),
            Rule("icmp type { redirect, router-advertisement }", "drop", "ICMP redirect or router, routed leg"),
            Rule("exthdr rt exists", "drop", "IPv6 routing header, routed leg"),
            Rule(
                "icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect }",
                "drop",
                "router or redirect, routed leg",
            ),
            Rule("udp sport 67 udp dport 68", "drop", "DHCP server, routed leg"),
            Rule("udp sport 547 udp dport 546", "drop", "DHCPv6 server, routed leg"),
        ),
        ipv4_options("inet"),
        plain_chain(
            "inet",
            "from_tunnel",
            Rule("ip daddr 127.0.0.0/8", "drop", "loopback of the host"),
            # A peer's allowed IPs may be the whole overlay, this node's part included.
            *(
                Rule(f"{ip} saddr . {ip} saddr @same{v}", "drop", f"IPv{v} of our own by a tunnel")
                for v, ip in FAMILIES
            ),
        ),
        base_chain("inet", "forward", FILTER, *_forward(node)),
        # The kernel routes link-local addresses, back onto the link they came from (ip6_forward). A bridged packet has
        # a container's MAC as destination; a packet that the host routes had a MAC of the host's.
        plain_chain(
            "inet",
            "link_local",
            Rule("iifname . ether daddr @neighbours", "accept", "bridged link-local"),
            Rule("", "drop", "link-local by way of the host"),
        ),
        *([_to_overlay("4", "ip", four, node), _from_connected("4", "ip")] if four else []),
        *([_to_overlay("6", "ip6", six, node), _from_connected("6", "ip6")] if six else []),
        *(openings.openings_chains(families) if node.openings else []),
        plain_chain("inet", "outward", *not_its_flow(), _of_no_flow(node.masquerade)),
        plain_chain(
            "inet",
            "tunnel_out",
            Rule("ct direction reply ct state established,related", "accept", "reply to the outside, from elsewhere"),
            *edge_by_its_list("edge to the outside"),
            Rule("", "drop", "tunnel to the outside"),
        ),
        base_chain(
            "inet",
            "input",
            FILTER,
            Rule(f"{_way_in(node.routed)} ip saddr @closed4", "goto closed_to_host", "from a member elsewhere"),
            Rule(f"{_way_in(node.routed)} ip6 saddr @closed6", "goto closed_to_host", "from a member elsewhere, IPv6"),
        ),
        base_chain(
            "inet",
            "input",
            AFTER_IPVS,
            Rule("iifname @inside", "goto to_host", "from containers"),
            chain="input_late",
        ),
        plain_chain("inet", "to_host", *to_host(openings.to_host(families) if node.openings else ())),
        *output_chains(node),
        plain_chain("inet", "closed_to_host", *closed_to_host()),
        *leaving_chains(node),
        _mss(),
        *([tunnel_source] if (tunnel_source := _tunnel_source(node)) is not None else []),
        *([_masquerade(four, six)] if node.masquerade else []),
    ]


def _way_in(routed: bool) -> str:
    """How a packet from another node is recognized: by a tunnel, or by any device but the overlay's bridges."""
    return "iifname != @inside" if routed else "iifname @tunnels"


def _prerouting(node: FenceNode) -> list[Rule]:
    ranges = [(v, ip, cluster) for v, ip in FAMILIES if (cluster := node.cluster(int(v)))]
    routed = [Rule(f"{ip} saddr @far{v}", "goto from_tunnel", f"from another node, IPv{v}") for v, ip, _ in ranges]
    return [
        Rule("iifname @inside", "goto from_container", "from containers"),
        Rule("iifname @tunnels", "goto from_tunnel", "from a tunnel"),
        *(routed if node.routed else []),
        *(
            Rule(
                f'iifname != "lo" {ip} saddr {cluster} {ip} saddr != @connected{v}',
                "drop",
                f"overlay IPv{v} source from elsewhere",
            )
            for v, ip, cluster in ranges
        ),
        # A routed port that the fence does not know, or knows no more; bridges and tunnels of ours were admitted above.
        Rule('iifname "zl-*"', "drop", "port of our name, routed"),
    ]


def _forward(node: FenceNode) -> list[Rule]:
    """Bridged packets pass here too where bridge-nf-call-* is 1; then input and output device are the same bridge."""
    four, six = node.cluster(4), node.cluster(6)
    routed = [
        Rule(f"{_way_in(True)} {ip} saddr {cluster}", "goto tunnel_out", f"from another node to the outside, IPv{v}")
        for v, ip in FAMILIES
        if (cluster := node.cluster(int(v)))
    ]
    return [
        # The family bridge has decided on these, port by port; they have no single destination address to match.
        Rule("meta pkttype { broadcast, multicast } iifname . oifname @loops", "accept", "bridged group frame"),
        Rule("ip6 saddr fe80::/10 iifname @inside", "goto link_local", "link-local source"),
        Rule("ip6 daddr fe80::/10 iifname @inside", "goto link_local", "link-local target"),
        *([_to_connected("4", "ip", "to a connected network")] if four else []),
        *([Rule(f"ip daddr {four}", "goto to_overlay4", "to the overlay")] if four else []),
        *([_to_connected("6", "ip6", "to a connected network, IPv6")] if six else []),
        *([Rule(f"ip6 daddr {six}", "goto to_overlay6", "to the overlay, IPv6")] if six else []),
        Rule("iifname @inside", "goto outward", "to the outside"),
        Rule("iifname @tunnels", "goto tunnel_out", "from a tunnel to the outside"),
        *(routed if node.routed else []),
        # No container has an address outside the overlay. With accept_source_route a packet has the host's address
        # here, and gets the container's only after these chains.
        Rule("oifname @inside", "drop", "to a container by an address of others"),
    ]


_NOT_OURS_IN = "iifname != @inside iifname != @tunnels"
_NOT_OURS_OUT = "oifname != @inside oifname != @tunnels"


def _to_connected(v: str, ip: str, name: str) -> Rule:
    """What the host routes between two devices of its own. Containers and tunnels are excluded: for them the addresses
    of a connected network inside the overlay's range belong to the overlay.
    """
    return Rule(f"{ip} daddr @connected{v} {_NOT_OURS_IN} {_NOT_OURS_OUT}", "accept", name)


def _from_connected(v: str, ip: str) -> Chain:
    """From a connected network inside the overlay's range to the overlay. Its addresses may equal those of remote
    members, so they prove no membership.
    """
    return plain_chain(
        "inet",
        f"from_connected{v}",
        Rule(
            "ct direction reply ct state related meta l4proto { 1, 58 }",
            "accept",
            "error of a router on a connected network",
        ),
        Rule("ct direction original ct status dnat", "accept", "published port, from a connected network"),
        Rule("", "drop", "connected network to a member"),
    )


def _to_overlay(v: str, ip: str, cluster: str, node: FenceNode) -> Chain:
    """To an overlay address: by membership if the source is a member, else by the exceptions at the overlay's edge."""
    routed = node.routed
    return plain_chain(
        "inet",
        f"to_overlay{v}",
        *((Rule("", f"jump open{v}", "what the settings open"),) if node.openings else ()),
        Rule(
            f"ct state related meta l4proto {{ 1, 58 }} {_way_in(routed)} {ip} saddr != @closed{v}",
            "accept",
            "error of a router on the way",
        ),
        Rule(
            f"ct direction reply ct state established {ip} daddr @edges{v} oifname @tunnels",
            "accept",
            "reply to an edge peer",
        ),
        Rule(
            f"{ip} daddr @connected{v} {_NOT_OURS_OUT} iifname @inside "
            "ct direction reply ct status dnat ct state established",
            "accept",
            "published port's reply to a connected network",
        ),
        Rule(
            f"{ip} saddr @connected{v} {_NOT_OURS_IN}" + (f" {ip} saddr != @far{v}" if routed else ""),
            f"goto from_connected{v}",
            "from a connected network",
        ),
        Rule("", f"{ip} saddr vmap @net{v}", "its network"),
        # By address alone: prerouting accepts such a source only from a tunnel or, with `underlay: routed`, from
        # another node; and what IPVS hands on has no input device.
        Rule(f"{ip} saddr @far{v}", f"goto {FLAT}", "from the flat mesh elsewhere"),
        Rule(f"{ip} saddr {cluster}", "drop", "unknown overlay source"),
        Rule(f"{ip} daddr @{FLAT}_m{v}", "accept", "to the flat mesh"),
        # A NodePort whose pod is on another node. For a member of a network there, its own node's fence decides; an
        # edge peer has no such node.
        Rule(
            f"ct direction original ct status dnat oifname != @inside {ip} daddr @far{v} {ip} daddr != @edges{v}",
            "accept",
            "published port elsewhere",
        ),
        Rule(f"{ip} daddr . {ip} daddr != @same{v}", "drop", "to an unknown overlay address"),
        Rule("ct direction reply ct state established,related", "accept", "reply to a member"),
        Rule("ct status dnat", "accept", "published port"),
        Rule("", "drop", "stranger to a member"),
    )


def _of_no_flow(masquerade: bool) -> Rule:
    """A packet of no tracked flow is not translated either; and the owner of the flow that such an ICMP error quotes is
    unknown.

    Without masquerade replies may return by another path, so valid packets may be of a flow that this node never saw.
    """
    which = "ct state invalid oifname != @inside"
    return Rule(which if masquerade else f"{which} meta l4proto {{ 1, 58 }}", "drop", "of no flow, to the outside")


def _mss() -> Chain:
    """Clamps TCP's MSS to the path's MTU in the first packet: overlay MTUs are small, and ICMP is often filtered."""
    syn, clamp = "tcp flags & (syn | rst) == syn", "tcp option maxseg size set rt mtu"
    return Chain(
        "inet",
        "mss",
        "type filter hook forward priority -150; policy accept;",
        (
            Rule(f"{syn} iifname @inside", clamp, "MSS outbound"),
            Rule(f"{syn} oifname @inside", clamp, "MSS inbound"),
        ),
    )


def _masquerade(four: str | None, six: str | None) -> Chain:
    """Packets that leave the overlay take the node's address. The first NAT rule that matches a flow wins, so other
    programs' rules do no harm.
    """
    way_out = 'oifname != @inside oifname != @tunnels oifname != "lo"'
    rules = []
    if four:
        match = f"ip daddr != {{ {four}, 224.0.0.0/4 }} {way_out}"
        # A member's address is always masqueraded; a host's address on a connected network is left to the host.
        rules.append(Rule(f"ip saddr . ip saddr @same4 {match}", "masquerade", "egress of a member"))
        rules.append(Rule(f"ip saddr {four} ip saddr != @connected4 {match}", "masquerade", "egress"))
    if six:
        match = f"ip6 daddr != {{ {six}, ff00::/8 }} {way_out}"
        rules.append(Rule(f"ip6 saddr . ip6 saddr @same6 {match}", "masquerade", "egress of a member, IPv6"))
        rules.append(Rule(f"ip6 saddr {six} ip6 saddr != @connected6 {match}", "masquerade", "egress, IPv6"))
    return Chain("inet", "postrouting", "type nat hook postrouting priority 100; policy accept;", tuple(rules))


def _tunnel_source(node: FenceNode) -> Chain | None:
    """The sources of packets into a tunnel, which no later rule of another program translates. A container's stays,
    because the other node's fence decides by it.

    The host's own packets take the node's overlay address, if they have another address of the host: a socket that is
    bound to it, or DNAT in the hook output after the source was chosen. No peer allows such a source.

    What other machines send through the host has no local source address, and keeps its own; so does what has a source
    in the overlay's range, unless the host has it on a connected network.
    """
    rules = []
    for v, ip in (("4", "ip"), ("6", "ip6")):
        own = [address for address in node.addresses if (":" in address) == (v == "6")]
        cluster = node.cluster(int(v))
        if not cluster:
            continue
        # Before kube-proxy's masquerade of NodePorts, which would make a member an address of this node. Answers come
        # back to this node in any case.
        match = f"oifname @tunnels {ip} saddr . {ip} saddr @same{v}"
        rules.append(Rule(match, f"snat {ip} to {ip} saddr", f"a container's own source, IPv{v}"))
        if not own:
            continue
        local, take = "oifname @tunnels fib saddr type local", f"snat {ip} to {own[0]}"
        rules.append(Rule(f"{local} {ip} saddr != {cluster}", take, f"source of the host's packets, IPv{v}"))
        rules.append(Rule(f"{local} {ip} saddr @connected{v}", take, f"source on a connected network, IPv{v}"))
    hook = "type nat hook postrouting priority 99; policy accept;"
    return Chain("inet", "tunnel_source", hook, tuple(rules)) if rules else None
