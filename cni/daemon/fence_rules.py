"""The fence's chains, rule by rule. Read from the top: who it is, where it may go, what the node lets in.

Family bridge goes by port, family inet by address. By port, because one rule then covers ARP, neighbour discovery,
multicast, floods and wrong MACs; and because this must hold whatever bridge-nf-call-* says. By address for what is
routed. Membership is asked first and without state, so a flow ends with its membership; state only decides what
crosses the overlay's edge. A rule can only take away: `accept` ends this table's opinion, nobody else's.

Every rule's comment is its name: `networks` and `why` show it, CHECK compares it, and a test leaves each out in turn.
A comment that says "backs up X" is for a rule the test cannot miss while X stands.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni.daemon.fence_values import FLAT, TABLE, Node, chain_of

# Before conntrack's defragmentation (-400) nothing can be matched by port; after it, and before connection tracking
# (-200), DNAT (-100) and everybody's filters, a packet is as its sender made it.
EARLY = -310
FILTER = -10  # before everybody's filter (0)

LINK_LOCAL_GROUP = "01:80:c2:00:00:00"
TUNNEL_PORTS = "{ 4754, 4789, 4790, 5555, 6080, 6081, 6635, 8472 }"  # GRE, VXLAN, GPE, FOU, GUE, Geneve, MPLS, flannel


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what it matches, the verdict, and its name."""

    match: str
    verdict: str
    name: str

    def text(self) -> str:
        """As nft reads it. What drops is counted."""
        counted = "counter drop" if self.verdict == "drop" else self.verdict
        return " ".join(filter(None, (self.match, counted, f'comment "{self.name}"')))


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain: its table's family, name, hook (empty: it is called by others) and rules."""

    family: str
    name: str
    hook: str
    rules: tuple[Rule, ...]


SETS: tuple[tuple[str, str, str, str], ...] = (
    ("bridge", "set", "ports", "type ifname"),
    ("bridge", "set", "bridges", "type ifname"),
    ("bridge", "set", "gateways", "type ether_addr"),
    ("bridge", "set", "macs", "type ifname . ether_addr"),
    ("bridge", "set", "src4", "type ifname . ether_addr . ipv4_addr"),
    ("bridge", "set", "src6", "type ifname . ether_addr . ipv6_addr"),
    ("bridge", "set", "target6", "typeof iifname . @th,64,128"),
    ("bridge", "set", "option6", "typeof iifname . @th,192,64"),
    ("bridge", "map", "net", "type ifname : verdict"),
    ("inet", "set", "inside", "type ifname"),
    ("inet", "set", "loops", "type ifname . ifname"),
    ("inet", "set", "tunnels", "type ifname"),
    ("inet", "set", "node4", "type ipv4_addr"),
    ("inet", "set", "node6", "type ipv6_addr"),
    ("inet", "set", "home4", "type ifname . ipv4_addr"),
    ("inet", "set", "home6", "type ifname . ipv6_addr"),
    ("inet", "set", "open4", "type ifname . ipv4_addr"),
    ("inet", "set", "open6", "type ifname . ipv6_addr"),
    ("inet", "set", "same4", "type ipv4_addr . ipv4_addr"),
    ("inet", "set", "same6", "type ipv6_addr . ipv6_addr"),
    ("inet", "map", "net4", "type ipv4_addr : verdict"),
    ("inet", "map", "net6", "type ipv6_addr : verdict"),
)
NETWORK_SETS = (("bridge", "p", "ifname"), ("inet", "m4", "ipv4_addr"), ("inet", "m6", "ipv6_addr"))


def bridge_chains(node: Node) -> list[Chain]:
    """What holds on every bridge of ours, port by port."""
    by_name = [Rule("meta ibrname @bridges", "drop", "unknown port")] if node.bridge_names else []
    return [
        _base(
            "bridge",
            "prerouting",
            EARLY,
            Rule("iifname @ports", "goto port", "port"),
            Rule('iifname "zl-*"', "drop", "port of our name"),
            Rule("ether daddr @gateways", "drop", "unknown port to gateway"),
            *by_name,
        ),
        _plain(
            "bridge",
            "port",
            # First, so that the bridge learns no MAC but the port's own.
            Rule("iifname . ether saddr != @macs", "drop", "foreign MAC"),
            Rule("ether type arp", "goto port_arp", "ARP"),
            Rule("ether type ip", "goto port_ip", "IPv4"),
            Rule("ether type ip6", "goto port_ip6", "IPv6"),
            # `ether type` sees a tag even where the kernel took it off the frame; `meta protocol` would not.
            Rule("", "drop", "EtherType or VLAN tag"),
        ),
        _plain(
            "bridge",
            "port_arp",
            Rule(
                "arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation { request, reply } "
                "iifname . arp saddr ether . arp saddr ip @src4",
                "accept",
                "own ARP",
            ),
            Rule(
                "arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation request "
                "iifname . arp saddr ether @macs arp saddr ip 0.0.0.0",
                "accept",
                "ARP probe",  # RFC 5227: teaches nobody anything
            ),
            Rule("", "drop", "ARP for another"),
        ),
        _plain(
            "bridge",
            "port_ip",
            Rule("iifname . ether saddr . ip saddr != @src4", "drop", "foreign IPv4 source"),
            Rule("ip option lsrr exists", "drop", "loose source route"),
            Rule("ip option ssrr exists", "drop", "strict source route"),
            Rule("icmp type { redirect, router-advertisement }", "drop", "ICMP redirect or router"),
            Rule("udp sport 67 udp dport 68", "drop", "DHCP server"),
        ),
        _plain("bridge", "port_ip6", *_port_ip6()),
        # Frames to 01:80:c2:00:00:0x skip prerouting, and the bridge learns their source (br_handle_local_finish).
        _base(
            "bridge",
            "input",
            EARLY,
            Rule(
                f"ether daddr & ff:ff:ff:ff:ff:f0 == {LINK_LOCAL_GROUP} iifname @ports",
                "drop",
                "bridge control frame",
            ),
            Rule(
                f'ether daddr & ff:ff:ff:ff:ff:f0 == {LINK_LOCAL_GROUP} iifname "zl-*"',
                "drop",
                "bridge control frame, unknown port",
            ),
        ),
        _base(
            "bridge",
            "forward",
            EARLY,
            Rule("iifname @ports", "goto between", "from a port"),
            Rule("oifname @ports", "drop", "unknown port to a port"),
            Rule('oifname "zl-*"', "drop", "unknown port to a port of our name"),
        ),
        _plain(
            "bridge",
            "between",
            Rule("", "iifname vmap @net", "its network"),
            Rule("", "drop", "port of no network"),
        ),
        _base(
            "bridge",
            "postrouting",
            EARLY,
            Rule("oifname @ports", "goto to_port", "to a port"),
            Rule("ether saddr @gateways", "drop", "gateway to unknown port"),
            Rule('oifname "zl-*"', "drop", "to a port of our name"),
        ),
        _plain(
            "bridge",
            "to_port",
            # A frame whose MAC the bridge does not know goes to every port: only its owner may hear it.
            Rule(
                "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 oifname . ether daddr != @macs",
                "drop",
                "flooded to another",
            ),
        ),
    ]


def _port_ip6() -> tuple[Rule, ...]:
    """IPv6 from a port.

    Neighbour discovery is taken only in the one form that cannot hide anything: no extension header, no fragment, at
    most one option, which is the port's own MAC. Receivers read it behind headers and out of fragments (br_netfilter
    even puts the fragments together for them, undoing RFC 6980), and would be taught another's address that way.
    """
    discovery = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
    bare = "ip6 nexthdr ipv6-icmp"
    return (
        Rule("exthdr rt exists", "drop", "IPv6 routing header"),
        # A first fragment must show what it is (RFC 7112); of ICMPv6 only echoes are large enough to need fragments.
        Rule(
            "frag frag-off 0 frag nexthdr { 0, 43, 44, 51, 60, 135 }",
            "drop",
            "fragment with hidden header",
        ),
        Rule(
            "frag frag-off 0 frag nexthdr ipv6-icmp icmpv6 type != { echo-request, echo-reply }",
            "drop",
            "fragmented ICMPv6",
        ),
        Rule("icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect }", "drop", "router or redirect"),
        Rule(
            f"ip6 saddr :: {bare} icmpv6 type nd-neighbor-solicit ip6 length 24-32 iifname . @th,64,128 @target6",
            "accept",
            "address probe",
        ),
        Rule("ip6 saddr :: icmpv6 type { 131, 132, 143 }", "accept", "multicast report of none"),
        Rule("iifname . ether saddr . ip6 saddr != @src6", "drop", "foreign IPv6 source"),
        Rule(
            f"{bare} icmpv6 type nd-neighbor-solicit ip6 length 24",
            "accept",
            "solicitation",
        ),
        Rule(
            f"{bare} icmpv6 type nd-neighbor-solicit ip6 length 32 iifname . @th,192,64 @option6",
            "accept",
            "solicitation with own MAC",
        ),
        Rule(
            f"{bare} icmpv6 type nd-neighbor-advert ip6 length 24 iifname . @th,64,128 @target6",
            "accept",
            "own advertisement",
        ),
        Rule(
            f"{bare} icmpv6 type nd-neighbor-advert ip6 length 32 iifname . @th,64,128 @target6 "
            "iifname . @th,192,64 @option6",
            "accept",
            "own advertisement with own MAC",
        ),
        Rule(discovery, "drop", "neighbour discovery for another"),
        Rule("udp sport 547 udp dport 546", "drop", "DHCPv6 server"),
        # What the kernel cannot take apart here, a receiver may.
        Rule("meta l4proto 0-255", "accept", "own IPv6"),
        Rule("", "drop", "unreadable IPv6"),
    )


def inet_chains(node: Node) -> list[Chain]:
    """What holds for packets that are routed, or that are for the node."""
    four, six = node.cluster(4), node.cluster(6)
    return [
        _base("inet", "prerouting", EARLY, *_prerouting(four, six)),
        _plain(
            "inet",
            "from_container",
            Rule("ip daddr 127.0.0.0/8", "drop", "loopback of the host"),
            Rule("iifname . ip saddr != @home4", "drop", "unknown IPv4 source"),
            Rule("ip6 saddr != :: iifname . ip6 saddr != @home6", "drop", "unknown IPv6 source"),
            Rule(
                "meta pkttype { broadcast, multicast } fib daddr type local",
                "drop",
                "host address in a group frame",
            ),
            Rule("ip option lsrr exists", "drop", "loose source route, routed leg"),
            Rule("ip option ssrr exists", "drop", "strict source route, routed leg"),
            Rule("exthdr rt exists", "drop", "IPv6 routing header, routed leg"),
            Rule("icmp type { redirect, router-advertisement }", "drop", "ICMP redirect or router, routed leg"),
            Rule("icmpv6 type { nd-router-advert, nd-redirect }", "drop", "router or redirect, routed leg"),
        ),
        _plain("inet", "from_tunnel", Rule("ip daddr 127.0.0.0/8", "drop", "loopback of the host")),
        _base("inet", "forward", FILTER, *_forward(four, six)),
        *([_to_overlay("4", "ip", four)] if four else []),
        *([_to_overlay("6", "ip6", six)] if six else []),
        _plain("inet", "outward", *_not_its_flow()),
        _base("inet", "input", FILTER, Rule("iifname @inside", "goto to_host", "from containers")),
        _plain("inet", "to_host", *_to_host()),
        _mss(),
        *([_masquerade(four, six)] if node.masquerade else []),
    ]


def _prerouting(four: str | None, six: str | None) -> list[Rule]:
    return [
        Rule("iifname @inside", "goto from_container", "from containers"),
        Rule("iifname @tunnels", "goto from_tunnel", "from a tunnel"),
        *([Rule(f'iifname != "lo" ip saddr {four}', "drop", "overlay IPv4 source from elsewhere")] if four else []),
        *([Rule(f'iifname != "lo" ip6 saddr {six}', "drop", "overlay IPv6 source from elsewhere")] if six else []),
    ]


def _forward(four: str | None, six: str | None) -> list[Rule]:
    """Bridged packets come here too where bridge-nf-call-* is 1; then in and out are one bridge."""
    return [
        # The family bridge has decided these, port by port; they have no one address to go by.
        Rule("iifname . oifname @loops meta pkttype { broadcast, multicast }", "accept", "bridged group frame"),
        Rule("iifname . oifname @loops ip6 saddr fe80::/10", "accept", "bridged link-local"),
        *([Rule(f"ip daddr {four}", "goto to_overlay4", "to the overlay")] if four else []),
        *([Rule(f"ip6 daddr {six}", "goto to_overlay6", "to the overlay, IPv6")] if six else []),
        Rule("iifname @inside", "goto outward", "to the outside"),
    ]


def _to_overlay(v: str, ip: str, cluster: str) -> Chain:
    """To an overlay address: by membership if it comes from one, else as one of the openings at the edge."""
    return _plain(
        "inet",
        f"to_overlay{v}",
        Rule("iifname @tunnels ct state related meta l4proto { icmp, ipv6-icmp }", "accept", "router on the way"),
        Rule("", f"{ip} saddr vmap @net{v}", "its network"),
        Rule(f"{ip} saddr {cluster}", "drop", "unknown overlay source"),
        Rule(f"{ip} daddr @{FLAT}_m{v}", "accept", "to the flat mesh"),
        Rule(f"{ip} daddr . {ip} daddr != @same{v}", "drop", "to an unknown overlay address"),
        Rule("ct direction reply ct state established,related", "accept", "reply to a member"),
        Rule("ct status dnat", "accept", "published port"),
        Rule("", "drop", "stranger to a member"),
    )


def _not_its_flow() -> list[Rule]:
    """An ICMP error goes with the flow it quotes; only that flow's own end may send one.

    nft compares no two fields of a packet, so the sets `same4` and `same6` hold each address beside itself.
    """
    return [
        Rule(
            f"ct state related {ip} saddr . ct original {ip} saddr != @same{v} "
            f"{ip} saddr . ct reply {ip} saddr != @same{v}",
            "drop",
            f"ICMP{v} error about another's flow",
        )
        for v, ip in (("4", "ip"), ("6", "ip6"))
    ]


def _to_host() -> list[Rule]:
    node_protocols = "meta l4proto { icmp, ipv6-icmp, tcp, udp, sctp }"  # the resolver and the daemon, no tunnels
    return [
        *_not_its_flow(),
        Rule("ct direction reply ct state established,related", "accept", "reply to the node"),
        Rule("ip daddr 127.0.0.0/8", "drop", "loopback of the host, translated"),
        Rule("iifname . ip saddr @open4", "accept", "flat mesh to the host"),
        Rule("iifname . ip6 saddr @open6", "accept", "flat mesh to the host, IPv6"),
        Rule("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }", "accept", "neighbour discovery"),
        Rule(f"udp dport {TUNNEL_PORTS}", "drop", "tunnel to the node"),
        Rule(f"ip daddr @node4 {node_protocols}", "accept", "node address"),
        Rule(f"ip6 daddr @node6 {node_protocols}", "accept", "node address, IPv6"),
        Rule("", "drop", "host address"),
    ]


def _mss() -> Chain:
    """TCP learns the path's MTU at its first packet: overlays are narrow and ICMP is often lost."""
    syn = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
    return Chain(
        "inet",
        "mss",
        "type filter hook forward priority -150; policy accept;",
        (Rule("iifname @inside", syn, "MSS outbound"), Rule("oifname @inside", syn, "MSS inbound")),
    )


def _masquerade(four: str | None, six: str | None) -> Chain:
    """What leaves the overlay takes the node's address. The first NAT to speak wins, so others' rules do no harm."""
    way_out = 'oifname != @inside oifname != @tunnels oifname != "lo"'
    rules = []
    if four:
        rules.append(Rule(f"ip saddr {four} ip daddr != {{ {four}, 224.0.0.0/4 }} {way_out}", "masquerade", "egress"))
    if six:
        match = f"ip6 saddr {six} ip6 daddr != {{ {six}, ff00::/8 }} {way_out}"
        rules.append(Rule(match, "masquerade", "egress, IPv6"))
    return Chain("inet", "postrouting", "type nat hook postrouting priority 100; policy accept;", tuple(rules))


def network_chains(network: str | None) -> list[Chain]:
    """One network: its ports reach its ports, its addresses its addresses."""
    name = chain_of(network)
    return [
        _plain(
            "bridge",
            name,
            Rule(f"oifname @{name}_p", "accept", "same network"),
            Rule("", "drop", "between networks"),
        ),
        _plain(
            "inet",
            name,
            Rule(f"ip daddr @{name}_m4", "accept", "same network"),
            Rule(f"ip6 daddr @{name}_m6", "accept", "same network, IPv6"),
            Rule("", "drop", "between networks"),
        ),
    ]


def declare(chains: list[Chain]) -> list[str]:
    """The chains' text: all declared before any is filled, since they name each other; refilled if they exist."""
    where = f"{TABLE} "
    lines = [
        f"add chain {c.family} {where}{c.name}" + (f" {{ {c.hook} }}" if c.hook else "") for c in chains
    ]
    for c in chains:
        lines.append(f"flush chain {c.family} {where}{c.name}")
        lines += [f"add rule {c.family} {where}{c.name} {rule.text()}" for rule in c.rules]
    return lines


def _base(family: str, name: str, priority: int, *rules: Rule) -> Chain:
    hook = f"type filter hook {name} priority {priority}; policy accept;"
    return Chain(family, name, hook, rules)


def _plain(family: str, name: str, *rules: Rule) -> Chain:
    return Chain(family, name, "", rules)
