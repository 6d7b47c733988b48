"""The fence's building blocks: rules, chains, sets, and the chains of a network.

Family `bridge` (bridge.py) matches by port, family `inet` (inet.py) by address. By port, because one rule then covers
ARP, neighbour discovery, multicast, floods and wrong MACs, whatever bridge-nf-call-* is set to; by address for routed
packets. Membership is checked first and without connection state, so a flow ends with its membership; state decides
only what crosses the overlay's edge. A rule can only remove reachability: `accept` ends the evaluation of this table
and of no other.

Every rule's comment is its name: `networks` and `why` show it, the comparison with the kernel uses it, and a test
leaves each rule out in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from cni.daemon.fence.model import TABLE, FenceEdge, chain_of

# After defragmentation (-400); before connection tracking (-200), DNAT (-100) and the usual filter priority (0): the
# packet is still as its sender made it.
EARLY = -310
FILTER = -10  # before the usual filter priority (0)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its match, its verdict, and its name."""

    match: str
    verdict: str
    name: str

    def text(self) -> str:
        """The rule in nft's language. A rule that drops has a counter."""
        counted = "counter drop" if self.verdict == "drop" else self.verdict
        return " ".join(filter(None, (self.match, counted, f'comment "{self.name}"')))


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain: its table's family, name, hook (empty for a chain that other chains call) and rules."""

    family: str
    name: str
    hook: str
    rules: tuple[Rule, ...]

    def hook_key(self) -> tuple[str, int] | None:
        """Hook and priority; None for a chain that other chains call."""
        words = self.hook.replace(";", "").split()
        return (words[words.index("hook") + 1], int(words[words.index("priority") + 1])) if words else None

    def rule_names(self) -> tuple[str, ...]:
        """The names of the chain's rules, in order."""
        return tuple(rule.name for rule in self.rules)


SETS: tuple[tuple[str, str, str, str], ...] = (
    ("bridge", "set", "ports", "type ifname"),
    ("bridge", "set", "loops", "type ifname . ifname"),
    ("bridge", "set", "bridges", "type ifname"),
    ("bridge", "set", "gateways", "type ether_addr"),
    ("bridge", "set", "macs", "type ifname . ether_addr"),
    ("bridge", "set", "src4", "type ifname . ether_addr . ipv4_addr"),
    ("bridge", "set", "src6", "type ifname . ether_addr . ipv6_addr"),
    ("bridge", "set", "target6", "typeof iifname . @th,64,128"),
    ("bridge", "set", "option6", "typeof iifname . @th,192,64"),
    ("bridge", "set", "ends4", "type ipv4_addr"),
    ("bridge", "set", "ends6", "type ipv6_addr"),
    ("bridge", "set", "asked6", "typeof @th,64,128"),
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
    ("inet", "set", "reach4", "type ipv4_addr"),
    ("inet", "set", "reach6", "type ipv6_addr"),
    *(("inet", "set", f"{name}4", "type ipv4_addr . inet_service") for name in ("tcp", "udp", "sctp")),
    *(("inet", "set", f"{name}6", "type ipv6_addr . inet_service") for name in ("tcp", "udp", "sctp")),
    ("inet", "set", "ends6", "type ipv6_addr"),
    ("inet", "set", "from4", "type ipv4_addr; flags interval"),
    ("inet", "set", "from6", "type ipv6_addr; flags interval"),
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
    """The chains of one network: its ports reach its ports, its addresses reach its addresses."""
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
    """The flat mesh has no list of its members on other nodes: an address behind a peer that is in no isolation network
    belongs to it.

    A peer's allowed IPs may be the whole overlay, this node's part included: nothing on a bridge here is elsewhere.
    """
    return (
        Rule("oifname != @inside ip daddr @far4 ip daddr != @closed4", "accept", "flat mesh elsewhere"),
        Rule("oifname != @inside ip6 daddr @far6 ip6 daddr != @closed6", "accept", "flat mesh elsewhere, IPv6"),
    )


def edge_chain(edge: FenceEdge) -> Chain:
    """The destinations that one edge peer may reach; no flow to an edge peer may be opened."""
    allowed = []
    for cidr in edge.allowed:
        network = ip_network(cidr)
        ip = "ip" if network.version == 4 else "ip6"
        allowed.append(Rule(f"{ip} daddr {network}", "accept", f"edge to {network}"))
    return plain_chain("inet", chain_of(edge.network), *allowed, Rule("", "drop", "not allowed to an edge peer"))


def declare(chains: list[Chain]) -> list[str]:
    """The chains' nft text: all are declared before any is filled, since they refer to each other; existing ones are
    flushed and refilled.
    """
    lines = [f"add chain {c.family} {TABLE} {c.name}" + (f" {{ {c.hook} }}" if c.hook else "") for c in chains]
    for c in chains:
        lines.append(f"flush chain {c.family} {TABLE} {c.name}")
        lines += [f"add rule {c.family} {TABLE} {c.name} {rule.text()}" for rule in c.rules]
    return lines


def base_chain(family: str, name: str, priority: int, *rules: Rule, chain: str = "") -> Chain:
    """A chain that the kernel calls at the hook `name`. Its name is the hook's, unless `chain` gives another."""
    hook = f"type filter hook {name} priority {priority}; policy accept;"
    return Chain(family, chain or name, hook, rules)


def plain_chain(family: str, name: str, *rules: Rule) -> Chain:
    """A chain that other chains call."""
    return Chain(family, name, "", rules)


HAS_OPTIONS = "ip hdrlength > 5"


def ipv4_options(family: str) -> Chain:
    """For IPv4 packets with options: drops source routes.

    nft parses all of a packet's options or none; it fails at a source route that has been used (its pointer is not 4)
    and at an option that it does not know. The kernel follows such a route. So options that nft could not parse are
    dropped, unless they are too short to hold a route beside something unreadable. `rr exists` says that nft parsed
    them.
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
