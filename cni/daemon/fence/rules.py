"""The fence's shape: rules, chains, sets, and the chains of a network.

Family bridge goes by port, family inet by address (fence_bridge, fence_inet). By port, because one rule then covers
ARP, neighbour discovery, multicast, floods and wrong MACs, whatever bridge-nf-call-* says; by address for what is
routed. Membership is asked first and without state, so a flow ends with its membership; state only decides what
crosses the overlay's edge. A rule can only take away: `accept` ends this table's opinion, nobody else's.

Every rule's comment is its name: `networks` and `why` show it, the resync compares it, and a test leaves each rule out
in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from cni.daemon.fence.model import TABLE, FenceEdge, chain_of

# After defragmentation (-400); before connection tracking (-200), DNAT (-100) and everybody's filters: here a packet is
# as its sender made it.
EARLY = -310
FILTER = -10  # before everybody's filter (0)


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

    def hook_key(self) -> tuple[str, int] | None:
        """Hook and priority; None for a chain that others call."""
        words = self.hook.replace(";", "").split()
        return (words[words.index("hook") + 1], int(words[words.index("priority") + 1])) if words else None

    def rule_names(self) -> tuple[str, ...]:
        """Its rules' names, in order."""
        return tuple(rule.name for rule in self.rules)


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
    ("inet", "set", "neighbours", "type ifname . ether_addr"),
    ("inet", "set", "tunnels", "type ifname"),
    ("inet", "set", "node4", "type ipv4_addr"),
    ("inet", "set", "node6", "type ipv6_addr"),
    ("inet", "set", "home4", "type ifname . ipv4_addr"),
    ("inet", "set", "home6", "type ifname . ipv6_addr"),
    ("inet", "set", "open4", "type ifname . ipv4_addr"),
    ("inet", "set", "open6", "type ifname . ipv6_addr"),
    ("inet", "set", "same4", "type ipv4_addr . ipv4_addr"),
    ("inet", "set", "same6", "type ipv6_addr . ipv6_addr"),
    ("inet", "set", "far4", "type ipv4_addr; flags interval"),
    ("inet", "set", "far6", "type ipv6_addr; flags interval"),
    ("inet", "set", "connected4", "type ipv4_addr; flags interval"),
    ("inet", "set", "connected6", "type ipv6_addr; flags interval"),
    ("inet", "set", "closed4", "type ipv4_addr"),
    ("inet", "set", "closed6", "type ipv6_addr"),
    ("inet", "set", "edges4", "type ipv4_addr"),
    ("inet", "set", "edges6", "type ipv6_addr"),
    ("inet", "map", "edge4", "type ipv4_addr : verdict"),
    ("inet", "map", "edge6", "type ipv6_addr : verdict"),
    ("inet", "map", "net4", "type ipv4_addr : verdict"),
    ("inet", "map", "net6", "type ipv6_addr : verdict"),
)
NETWORK_SETS = (("bridge", "p", "ifname"), ("inet", "m4", "ipv4_addr"), ("inet", "m6", "ipv6_addr"))


def network_chains(network: str | None) -> list[Chain]:
    """One network: its ports reach its ports, its addresses its addresses."""
    name = chain_of(network)
    return [
        plain_chain(
            "bridge",
            name,
            Rule(f"oifname @{name}_p", "accept", "same network"),
            Rule("", "drop", "between networks"),
        ),
        plain_chain(
            "inet",
            name,
            Rule(f"ip daddr @{name}_m4", "accept", "same network"),
            Rule(f"ip6 daddr @{name}_m6", "accept", "same network, IPv6"),
            *(_elsewhere() if network is None else ()),
            Rule("", "drop", "between networks"),
        ),
    ]


def _elsewhere() -> tuple[Rule, ...]:
    """The flat mesh has no list of its members on other nodes: whoever is behind a peer and is of no network.

    A peer may be trusted with the whole overlay, this node's part included: nothing on a bridge here is elsewhere.
    """
    return (
        Rule("oifname != @inside ip daddr @far4 ip daddr != @closed4", "accept", "flat mesh elsewhere"),
        Rule("oifname != @inside ip6 daddr @far6 ip6 daddr != @closed6", "accept", "flat mesh elsewhere, IPv6"),
    )


def edge_chain(edge: FenceEdge) -> Chain:
    """What one edge peer may reach; nobody opens a flow to it."""
    found = []
    for cidr in edge.allowed:
        network = ip_network(cidr)
        ip = "ip" if network.version == 4 else "ip6"
        found.append(Rule(f"{ip} daddr {network}", "accept", f"edge to {network}"))
    return plain_chain("inet", chain_of(edge.network), *found, Rule("", "drop", "not allowed to an edge peer"))


def declare(chains: list[Chain]) -> list[str]:
    """The chains' text: all declared before any is filled, since they name each other; refilled if they exist."""
    where = f"{TABLE} "
    lines = [f"add chain {c.family} {where}{c.name}" + (f" {{ {c.hook} }}" if c.hook else "") for c in chains]
    for c in chains:
        lines.append(f"flush chain {c.family} {where}{c.name}")
        lines += [f"add rule {c.family} {where}{c.name} {rule.text()}" for rule in c.rules]
    return lines


def base_chain(family: str, name: str, priority: int, *rules: Rule, chain: str = "") -> Chain:
    """A chain the kernel calls at the hook `name`, and called so where it has no name of its own (`chain`)."""
    hook = f"type filter hook {name} priority {priority}; policy accept;"
    return Chain(family, chain or name, hook, rules)


def plain_chain(family: str, name: str, *rules: Rule) -> Chain:
    """A chain that others call."""
    return Chain(family, name, "", rules)


HAS_OPTIONS = "ip hdrlength > 5"


def ipv4_options(family: str) -> Chain:
    """For IPv4 packets that have options: no source routes.

    nft reads a packet's options all or none, and gives up at a route that has come some way (its pointer is not 4), or
    at an option it does not know; the kernel follows such a route. So what nft did not read is dropped, unless it is
    too short for a route beside something unreadable. `rr exists` says that nft did read them.
    """
    return plain_chain(
        family,
        "options4",
        Rule("ip option lsrr exists", "drop", "loose source route"),
        Rule("ip option ssrr exists", "drop", "strict source route"),
        Rule("ip hdrlength <= 7", "return", "short options"),
        Rule("ip option rr exists", "return", "record route"),
        Rule("", "drop", "unreadable options"),
    )
