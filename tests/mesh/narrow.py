"""A path with a narrow link in its middle: two routers between a node and the rest of its underlay."""

from __future__ import annotations

from .fleet import Node, run

NO_ERRORS = (
    "table inet zlt_errors { chain out { type filter hook output priority 0; policy accept; "
    "icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }"
)
# Each router drops what the other one has fragmented.
NO_FRAGMENTS = (
    "table ip zlt_fragments { chain in { type filter hook prerouting priority -450; policy accept; "
    "ip frag-off & 0x3fff != 0 counter drop; }; }"
)


class Narrow:
    """The routers in front of one node; the node keeps its address, and its own link stays wide."""

    def __init__(self, node: Node, mtu: int, silent: bool = True, fragments: bool = False) -> None:
        """`mtu`: bytes, of the link between the routers; `silent`: they let no ICMP error out; `fragments`: they let
        fragments pass."""
        self.node = node
        self.near, self.far = (f"{node.name}-{side}" for side in ("near", "far"))
        port = f"n{node.number}"
        for name in (self.near, self.far):
            run("ip", "netns", "add", name)
            node.fleet.namespaces.append(name)
        # The node's cable ends at the far router, and the near router takes its place on the underlay.
        run("ip", "-n", node.fleet.underlay, "link", "set", port, "nomaster", "netns", self.far)
        made = ("link", "add", "wide", "type", "veth", "peer", "name", port, "netns", node.fleet.underlay)
        run("ip", "-n", self.near, *made)
        run("ip", "-n", node.fleet.underlay, "link", "set", port, "master", "under0", "up")
        run("ip", "-n", self.far, "link", "set", port, "name", "wide")
        run("ip", "-n", self.near, "link", "add", "mid", "type", "veth", "peer", "name", "mid", "netns", self.far)
        for name, mine, other in ((self.near, 1, 2), (self.far, 2, 1)):
            for words in ("link set lo up", "link set wide up", "link set mid up"):
                run("ip", "-n", name, *words.split())
            run("ip", "-n", name, "address", "add", f"192.168.77.{mine}/30", "dev", "mid")
            inward = f"{node.underlay}/32"
            here, there = ("mid", "wide") if name == self.near else ("wide", "mid")
            via = {"mid": ("via", f"192.168.77.{other}"), "wide": ()}
            run("ip", "-n", name, "route", "add", inward, *via[here], "dev", here)
            run("ip", "-n", name, "route", "add", "198.51.100.0/24", *via[there], "dev", there)
            keys = ["ip_forward=1", "conf.wide.proxy_arp=1", "conf.all.rp_filter=0", "conf.wide.rp_filter=0"]
            for key in keys:
                run("ip", "netns", "exec", name, "sysctl", "-qw", f"net.ipv4.{key}")
            run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.conf.mid.rp_filter=0")
            for rules in (NO_ERRORS if silent else "", "" if fragments else NO_FRAGMENTS):
                if rules:
                    run("ip", "netns", "exec", name, "nft", rules)
        self.carries(mtu)

    def carries(self, mtu: int) -> None:
        """The link between the routers carries packets of `mtu` bytes from now on."""
        for name in (self.near, self.far):
            run("ip", "-n", name, "link", "set", "mid", "mtu", str(mtu))
