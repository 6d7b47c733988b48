"""`isolation.reach` and `isolation.from`: flows that pass between networks because the operator lists an end of them.

The rules exist only if something is listed. A flow to a listed destination is recognized by the destination of its
first packet (`ct original`), so by a service's virtual address as well as by an endpoint's own address; a flow of a
listed sender by its source. Answers pass by the same rule. Both need an end that the fence knows, so an address that
is not in use stays closed.

Between two ports of one bridge, the family bridge decides before the family inet, and it sees no flows. With
bridge-nf-call 1 the chain `listed` marks a frame of such a flow in its priority (SO_PRIORITY, which the kernel sets to
0 on the way out of a container), the family bridge lets that frame pass, and the family inet judges it. With 0 such a
flow stays closed. ARP and neighbour discovery pass between a listed container (the sets `ends`) and every other one.
"""

from __future__ import annotations

from collections.abc import Iterable

from cni.daemon.fence.rules import Chain, Rule, base_chain, plain_chain

_AFTER_TRACKING = -150  # connection tracking has -200, DNAT -100
MARK = "5a43:10"  # of the frame's priority, as a class of traffic control that no qdisc has
_PORTS = (("tcp", 6), ("udp", 17), ("sctp", 132))
_ANSWER = "ct direction reply ct state established"
_DISCOVERY = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
_NOT_IN_USE = "to an address not in use: backs up the family bridge"
_NO_NODE = "to no node: backs up the chains leaving4 and leaving6"
NAME = "isolation.reach"
SENDER = "isolation.from"


def openings_chains(families: Iterable[tuple[str, str]]) -> list[Chain]:
    """The chains, for the families of the overlay as ("4", "ip")."""
    families = list(families)
    marks = [Rule("", f"jump mark{v}", f"IPv{v} of a listed flow") for v, _ in families]
    return [
        base_chain("inet", "prerouting", _AFTER_TRACKING, *(_of_containers(rule) for rule in marks), chain="listed"),
        *(chain for v, ip in families for chain in _of_family(v, ip)),
    ]


def _of_containers(rule: Rule) -> Rule:
    return Rule("iifname @inside", rule.verdict, rule.name)


def _of_family(v: str, ip: str) -> list[Chain]:
    listed = _destinations(v, ip)
    mark = f"meta priority set {MARK}"
    sender = f"ct original {ip} saddr @from{v}"
    return [
        plain_chain("inet", f"reach{v}", *(Rule(match, "accept", name) for match, name in listed)),
        plain_chain(
            "inet",
            f"open{v}",
            # An end that is in use: of this node, or behind a tunnel. Edge peers have lists of their own.
            Rule(f"{ip} saddr @edges{v}", "return", "from an edge peer"),
            Rule(f"{ip} daddr @edges{v}", "return", "to an edge peer"),
            Rule(
                f"oifname @inside {ip} daddr . {ip} daddr != @same{v}",
                "return",
                f"to an address not in use: backs up the family bridge, IPv{v}",
            ),
            Rule(f"oifname != @inside {ip} daddr != @far{v}", "return", f"to no node: backs up the chain leaving{v}"),
            *(_discovery() if v == "6" else ()),
            Rule(f"ct direction original {ip} saddr @from{v}", "accept", SENDER),
            Rule(f"{_ANSWER} {sender}", "accept", "answer to isolation.from"),
            Rule(f"ct direction original {ip} saddr . {ip} saddr @same{v}", f"jump reach{v}", "from a container"),
            Rule(f"ct direction original {ip} saddr @far{v}", f"jump reach{v}", "from another node"),
            Rule(_ANSWER, f"jump reach{v}", "answer of what is listed"),
        ),
        plain_chain(
            "inet",
            f"mark{v}",
            *(Rule(f"ct direction original {match}", mark, f"mark: {name}") for match, name in listed),
            *(Rule(f"{_ANSWER} {match}", mark, f"mark: answer, {name}") for match, name in listed),
            Rule(f"ct direction original {ip} saddr @from{v}", mark, f"mark: {SENDER}"),
            Rule(f"{_ANSWER} {sender}", mark, f"mark: answer, {SENDER}"),
        ),
    ]


def _destinations(v: str, ip: str) -> list[tuple[str, str]]:
    """What recognizes a flow to a listed destination, and the name of the rule."""
    by_port = [
        (f"meta l4proto {number} ct original {ip} daddr . ct original proto-dst @{name}{v}", f"{NAME}, {name}")
        for name, number in _PORTS
    ]
    return [(f"ct original {ip} daddr @reach{v}", NAME), *by_port]


def to_host(families: Iterable[tuple[str, str]]) -> list[Rule]:
    """For the chain `to_host`: a listed destination that is the host itself, an API server for example."""
    return [Rule("ct direction original", f"jump reach{v}", f"{NAME} at the host, IPv{v}") for v, _ in families]


def between_ports() -> tuple[Rule, ...]:
    """For the family bridge: what the family inet judges after this one, and how two ends learn each other's MAC."""
    unicast = "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00"
    return (
        Rule(f"{unicast} meta priority {MARK}", "accept", "of a listed flow"),
        Rule("ether type arp arp saddr ip @ends4", "accept", "ARP by a listed container"),
        Rule("ether type arp arp daddr ip @ends4", "accept", "ARP for a listed container"),
        Rule(f"{_DISCOVERY} ip6 saddr @ends6", "accept", "discovery by a listed container"),
        Rule(f"{_DISCOVERY} ip6 daddr @ends6", "accept", "discovery, to a listed container"),
        Rule("icmpv6 type nd-neighbor-solicit @th,64,128 @asked6", "accept", "discovery of a listed container"),
    )


def _discovery() -> tuple[Rule, ...]:
    """For the family inet, which sees bridged neighbour discovery with bridge-nf-call 1; it belongs to no flow."""
    bridged = f"{_DISCOVERY} iifname . oifname @loops"
    return (
        Rule(f"{bridged} ip6 saddr @ends6", "accept", "bridged discovery by a listed container"),
        Rule(f"{bridged} ip6 daddr @ends6", "accept", "bridged discovery, to a listed container"),
    )
