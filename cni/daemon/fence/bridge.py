"""The family `bridge`: a port's identity, and which ports reach each other. In the order that a frame passes the
chains.
"""

from __future__ import annotations

from cni.daemon.fence import openings
from cni.daemon.fence.model import TABLE, FenceNode
from cni.daemon.fence.rules import EARLY, HAS_OPTIONS, Chain, Rule, base_chain, declare, ipv4_options, plain_chain

_BY_BRIDGE = Rule("meta ibrname @bridges", "drop", "unknown port")
_REPORTED = 3  # groups of a report that is dropped, at most: those of the link-local address and two others
_CONTROL = "01:80:c2:00:00:00"  # to 0f: frames for the bridge itself (IEEE 802.1D, 7.12.6)


def trial_of_bridge_names() -> str:
    """A text that the kernel accepts if it has `meta ibrname` (CONFIG_NFT_BRIDGE_META)."""
    chain = base_chain("bridge", "prerouting", EARLY, _BY_BRIDGE)
    lines = [f"add table bridge {TABLE}", f"add set bridge {TABLE} bridges {{ type ifname; }}", *declare([chain])]
    return "\n".join(lines) + "\n"


def bridge_chains(node: FenceNode) -> list[Chain]:
    """The chains for every port of the overlay's bridges."""
    return [
        base_chain(
            "bridge",
            "prerouting",
            EARLY,
            Rule("iifname @ports", "goto port", "port"),
            Rule('iifname "zl-*"', "drop", "port of our name"),
            Rule("ether daddr @gateways", "drop", "unknown port to gateway"),
            *((_BY_BRIDGE,) if node.bridge_names else ()),
        ),
        plain_chain(
            "bridge",
            "port",
            # First, so that the bridge learns only the port's own MAC.
            Rule("iifname . ether saddr != @macs", "drop", "foreign MAC"),
            Rule("ether type arp", "goto port_arp", "ARP"),
            Rule("ether type ip", "goto port_ip", "IPv4"),
            Rule("ether type ip6", "goto port_ip6", "IPv6"),
            # `ether type` matches a VLAN tag even where the kernel has removed it from the frame; `meta protocol`
            # does not.
            Rule("", "drop", "EtherType or VLAN tag"),
        ),
        plain_chain(
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
                "ARP probe",  # RFC 5227: no receiver learns an address from it
            ),
            Rule("", "drop", "ARP for another"),
        ),
        plain_chain(
            "bridge",
            "port_ip",
            Rule("iifname . ether saddr . ip saddr != @src4", "drop", "foreign IPv4 source"),
            Rule(HAS_OPTIONS, "jump options4", "IPv4 options"),
            Rule("icmp type { redirect, router-advertisement }", "drop", "ICMP redirect or router"),
            Rule("udp sport 67 udp dport 68", "drop", "DHCP server"),
        ),
        ipv4_options("bridge"),
        plain_chain("bridge", "port_ip6", *_port_ip6()),
        # Frames to 01:80:c2:00:00:0x skip prerouting, and the bridge learns their source (br_handle_frame). LLDP frames
        # skip this hook as well. So the daemon creates bridges with no_linklocal_learn; this rule backs that up.
        base_chain(
            "bridge",
            "input",
            EARLY,
            Rule(
                f"ether daddr & ff:ff:ff:ff:ff:f0 == {_CONTROL} iifname @ports",
                "drop",
                "bridge control frame: backs up no_linklocal_learn",
            ),
        ),
        base_chain(
            "bridge",
            "forward",
            EARLY,
            Rule("iifname @ports", "goto between", "from a port"),
            Rule("oifname @ports", "drop", "unknown port to a port"),
        ),
        plain_chain(
            "bridge",
            "between",
            # Ports are in hairpin mode: a container that heard its own address probe would give the address up.
            Rule(
                "ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 iifname . oifname @loops",
                "drop",
                "group frame back to its port",
            ),
            *(openings.between_ports() if node.openings else ()),
            Rule("", "iifname vmap @net", "its network"),
            Rule("", "drop", "port of no network"),
        ),
        base_chain(
            "bridge",
            "postrouting",
            EARLY,
            Rule("oifname @ports", "goto to_port", "to a port"),
            Rule("ether saddr @gateways", "drop", "gateway to unknown port"),
            Rule('oifname "zl-*"', "drop", "to a port of our name"),
        ),
        plain_chain(
            "bridge",
            "to_port",
            # The bridge floods a frame for an unknown MAC to every port; only the port that has the MAC may pass it on.
            Rule(
                "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 oifname . ether daddr != @macs",
                "drop",
                "flooded to another",
            ),
        ),
    ]


def _port_ip6() -> tuple[Rule, ...]:
    """IPv6 from a port.

    Neighbour discovery passes only in the one form that can hide nothing: no extension header, no fragment, at most one
    option, which is the port's own MAC. Receivers parse it behind extension headers and after reassembly (br_netfilter
    even reassembles the fragments for them, which defeats RFC 6980), and would learn another port's address that way.
    """
    discovery = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
    none = "ip6 saddr :: ip6 daddr ff00::/8"  # to groups only: a unicast one would be routed back onto the bridge
    bare = "ip6 nexthdr 58"  # ICMPv6; a minimal host has no /etc/protocols to look a name up in
    return (
        Rule("exthdr rt exists", "drop", "IPv6 routing header"),
        # A first fragment must contain the upper-layer header (RFC 7112), or discovery could hide in the second. Since
        # Linux 5.11 receivers, and br_netfilter's defragmentation, refuse such fragments themselves.
        Rule(
            "frag frag-off 0 frag nexthdr { 0, 43, 44, 51, 60, 135 }",
            "drop",
            "fragment with hidden header: backs up Linux 5.11",
        ),
        Rule("icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect }", "drop", "router or redirect"),
        *(
            Rule(_solicited_node_report(records), "drop", f"multicast report of {records} solicited-node groups")
            for records in range(1, _REPORTED + 1)
        ),
        Rule(
            f"{none} {bare} icmpv6 type nd-neighbor-solicit ip6 length 24-32 iifname . @th,64,128 @target6",
            "accept",
            "address probe",
        ),
        Rule(f"{none} icmpv6 type {{ 131, 132, 143 }}", "accept", "multicast report of none"),
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
        # A receiver may parse what the kernel cannot parse here.
        Rule("meta l4proto 0-255", "accept", "own IPv6"),
        Rule("", "drop", "unreadable IPv6"),
    )


def _solicited_node_report(records: int) -> str:
    """A match of an MLDv2 report (RFC 9777, 5.2) that has this number of records, each without sources or auxiliary
    data, for a solicited-node group (ff02::1:ff00:0/104).

    An interface that comes up sends such a report for its addresses, and the bridge would flood it to all ports under
    the kernel's lock of links: 21 ms beside 1,000 ports. A report of these groups is for bridges that keep group
    membership (RFC 4541), and the overlay's bridges keep none: they flood every group.
    """
    record = "0x000000ff0200000000000000000001ff"  # length of auxiliary data, number of sources, 13 octets of the group
    matches = [f"@th,{72 + 160 * number},128 {record}" for number in range(records)]
    return f"icmpv6 type 143 @th,48,16 {records} {' '.join(matches)}"
