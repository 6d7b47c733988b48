"""Network policies as rules: values of cni/daemon/policy in, chains and sets out.

The base chains judge each flow by its ends, which connection tracking knows for both directions of the flow: the
client's own address (`ct original saddr`), and the address and port of the server behind every translation
(`ct reply saddr`, `proto-src`). So a packet of an established flow is judged like the first one, in both directions:
a flow that policies no longer allow ends with the transaction that changes them, and one that they still allow goes
on. The maps `pol_in` and `pol_out` lead from a pod's address to the chain of the policies that select it; one chain for
each set of policies, whose rules `return` what is allowed.

Frames between two ports of one bridge never reach the family inet where bridge-nf-call is 0. If one of the ports is
isolated, the chain `policies_redirect` hands their unicast packets to the host, which routes them back onto the bridge:
the family inet then judges them whatever that setting is. What cannot be routed (group frames, link-local packets) has
no flow that a policy could allow; the chain `policies_bridge` drops it, without ARP and neighbour discovery.

These chains exist only while policies isolate a port of this node.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cni.daemon.fence.model import FenceNode
from cni.daemon.fence.rules import EARLY, FILTER, Chain, Rule, base_chain, plain_chain
from cni.daemon.fence.to_host import FAMILIES
from cni.daemon.policy import model as policies
from cni.daemon.policy.decide import rule_name
from cni.daemon.policy.model import NUMBERS, BlockPeer, Direction, PodPeer, Policy, PortMatch

PREFIX = "pol_"
"""The names of all sets of policies, and of the chains that other chains call, begin with it."""
UNKNOWN = f"{PREFIX}unknown"
"""The chain of a pod that the daemon has not heard of: it refuses everything."""

_AFTER_THE_FENCE = FILTER + 1
_AFTER_IDENTITY = EARLY + 1
_LONGEST = 96  # characters of a comment: with table and chain it is the prefix of a sampled packet, of at most 127
_DISCOVERY = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
_UNICAST = "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00"

MAPS: tuple[tuple[str, str, str, str], ...] = (
    ("bridge", "set", "pol_ports", "type ifname"),
    ("bridge", "set", "pol_macs", "type ether_addr"),
    ("bridge", "set", "pol_into", "type ifname"),
    ("bridge", "set", "pol_from", "type ifname"),
    ("bridge", "map", "pol_host", "type ifname : ether_addr"),
    ("inet", "map", "pol_in4", "type ipv4_addr : verdict"),
    ("inet", "map", "pol_in6", "type ipv6_addr : verdict"),
    ("inet", "map", "pol_out4", "type ipv4_addr : verdict"),
    ("inet", "map", "pol_out6", "type ipv6_addr : verdict"),
)
"""The sets and maps that hold this node's ports, as rows of `rules.SETS`."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The policies that isolate a pod in one direction, which is all that its chain depends on."""

    direction: Direction
    policies: tuple[policies.PolicyName, ...]

    @property
    def chain(self) -> str:
        """The name of the chain; empty for no policies."""
        if not self.policies:
            return ""
        text = "\0".join(f"{namespace}/{name}" for namespace, name in self.policies)
        kind = "in" if self.direction == "ingress" else "out"
        return f"{PREFIX}{kind}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@functools.lru_cache(8192)
def set_of_peer(peer: PodPeer, v: str) -> str:
    """The name of the set with the addresses that a selector selects."""
    return f"{PREFIX}sel{v}_{_digest(repr(peer))}"


@functools.lru_cache(8192)
def set_of_name(protocol: str, name: str, v: str) -> str:
    """The name of the set with the addresses and ports that a named port means."""
    return f"{PREFIX}name{v}_{_digest(f'{protocol} {name}')}"


def base_chains(node: FenceNode) -> list[Chain]:
    """The chains that judge packets by the maps, and the chain of unknown pods."""
    ranges = [(ip, cluster) for v, ip in FAMILIES if (cluster := node.cluster(int(v)))]
    return [
        *_bridge_chains(),
        base_chain(
            "inet",
            "forward",
            _AFTER_THE_FENCE,
            # With bridge-nf-call 1 bridged packets pass here too, and these are of no flow.
            Rule(f"{_DISCOVERY} iifname . oifname @loops", "accept", "bridged discovery"),
            Rule("", "goto judge", "by policies"),
            chain="policies",
        ),
        base_chain(
            "inet",
            "output",
            _AFTER_THE_FENCE,
            *(
                Rule(f"{ip} saddr {cluster} fib saddr type != local", "goto judge", f"handed on, by policies, {ip}")
                for ip, cluster in ranges
            ),
            chain="policies_output",
        ),
        plain_chain("inet", "judge", *_judge()),
        plain_chain("inet", "judge_untracked", *_judge_untracked()),
        plain_chain("inet", UNKNOWN, Rule("", "drop", "pod not known yet")),
    ]


def _judge() -> Iterator[Rule]:
    yield Rule("ct state { invalid, untracked }", "goto judge_untracked", "of no tracked flow")
    # The packet of an ICMP error has no ports; it belongs to the flow that it quotes.
    yield Rule("ct state related meta l4proto { 1, 58 }", "accept", "error about a tracked flow")
    for v, ip in FAMILIES:
        yield Rule(f"ct original {ip} saddr . ct reply {ip} saddr @same{v}", "accept", f"a pod to itself, IPv{v}")
    for v, ip in FAMILIES:
        yield Rule("", f"ct original {ip} saddr vmap @pol_out{v}", f"egress, IPv{v}")
        yield Rule("", f"ct reply {ip} saddr vmap @pol_in{v}", f"ingress, IPv{v}")


def _judge_untracked() -> Iterator[Rule]:
    """Without a flow a packet shows no client, so only what every policy of the pod allows passes."""
    for v, ip in FAMILIES:
        yield Rule("", f"{ip} saddr vmap @pol_out{v}", f"egress of no flow, IPv{v}")
        yield Rule("", f"{ip} daddr vmap @pol_in{v}", f"ingress of no flow, IPv{v}")


def _bridge_chains() -> list[Chain]:
    redirect = "ether daddr set iifname map @pol_host meta pkttype set host"
    routed = f"{_UNICAST} ether daddr != @gateways"
    return [
        base_chain(
            "bridge",
            "prerouting",
            _AFTER_IDENTITY,
            Rule("iifname @pol_ports", "goto by_host", "from an isolated pod"),
            Rule("ether daddr @pol_macs", "goto by_host", "to an isolated pod"),
            chain="policies_redirect",
        ),
        plain_chain(
            "bridge",
            "by_host",
            Rule(f"ether type ip {routed}", redirect, "IPv4 by the host"),
            Rule(_DISCOVERY, "accept", "neighbour discovery"),
            Rule("ip6 saddr fe80::/10", "accept", "link-local source"),
            Rule("ip6 daddr fe80::/10", "accept", "link-local target"),
            Rule(f"ether type ip6 {routed}", redirect, "IPv6 by the host"),
        ),
        base_chain(
            "bridge",
            "forward",
            _AFTER_IDENTITY,
            Rule("ether type arp", "accept", "ARP"),
            Rule(_DISCOVERY, "accept", "neighbour discovery"),
            # Addressed to the bridge and bridged nevertheless: br_netfilter has translated the destination to a pod of
            # this bridge, and passes the packet to the hook forward of the family inet.
            Rule("meta pkttype host ether type { ip, ip6 }", "accept", "translated on the bridge, judged as routed"),
            Rule("oifname @pol_into", "drop", "ingress: no flow, on the bridge"),
            Rule("iifname @pol_from", "drop", "egress: no flow, on the bridge"),
            chain="policies_bridge",
        ),
    ]


def chain(signature: Signature, selecting: Iterable[Policy]) -> Chain:
    """The chain of a set of policies: what one of them allows returns, the rest is dropped."""
    rules = []
    selecting = list(selecting)
    for policy in selecting:
        for index, rule in enumerate(policy.rules(signature.direction) or ()):
            name = rule_name(policy, signature.direction, index)
            for number, match in enumerate(_matches(rule, signature.direction)):
                rules.append(Rule(match, "return", fitted(f"{name}#{number}")))
    dropped = dropping(signature.direction, (policy.title for policy in selecting))
    return plain_chain("inet", signature.chain, *rules, Rule("", "drop", dropped))


def dropping(direction: Direction, titles: Iterable[str]) -> str:
    """The name of the rule that drops what none of these policies allows."""
    return fitted(f"{direction}: {', '.join(titles)}")


def _matches(rule: policies.Rule, direction: Direction) -> Iterator[str]:
    peer_end = "original" if direction == "ingress" else "reply"
    sides: list[tuple[str, str]] = [("", "")]
    if rule.peers is not None:
        sides = [side for peer in rule.peers for side in _of_peer(peer, f"ct {peer_end}")]
    ports = list(_of_ports(rule.ports))
    for side, version in dict.fromkeys(sides):
        for port, port_version in ports:
            if not (version and port_version and version != port_version):
                yield f"{side} {port}".strip()


def _of_peer(peer: policies.Peer, end: str) -> Iterator[tuple[str, str]]:
    """What recognizes a peer, with the IP version that this needs."""
    if isinstance(peer, PodPeer):
        for v, ip in FAMILIES:
            yield f"{end} {ip} saddr @{set_of_peer(peer, v)}", v
        return
    v, ip = ("6", "ip6") if ":" in peer.cidr else ("4", "ip")
    within = f"meta nfproto ipv{v}" if peer.cidr.endswith("/0") else f"{end} {ip} saddr {peer.cidr}"
    without = f"{end} {ip} saddr != {{ {', '.join(_apart(peer))} }}" if peer.excepted else ""
    yield f"{within} {without}".strip(), v


def _apart(peer: BlockPeer) -> list[str]:
    """The excepted networks without those inside others: a set of ranges has no overlaps."""
    from ipaddress import collapse_addresses, ip_network

    return [str(network) for network in collapse_addresses(map(ip_network, peer.excepted))]  # type: ignore[type-var]


def _of_ports(ports: tuple[PortMatch, ...] | None) -> Iterator[tuple[str, str]]:
    """What recognizes the ports, with the IP version that this needs."""
    if ports is None:
        yield "", ""
        return
    for protocol, number in NUMBERS.items():
        of_protocol = [port for port in ports if port.protocol == protocol]
        for first, last in _ranges(port for port in of_protocol if not port.name):
            numbers = "" if (first, last) == (1, 65535) else f" ct reply proto-src {_spelled(first, last)}"
            yield f"meta l4proto {number}{numbers}", ""
        for name in sorted({port.name for port in of_protocol if port.name}):
            for v, ip in FAMILIES:
                place = f"ct reply {ip} saddr . ct reply proto-src"
                yield f"meta l4proto {number} {place} @{set_of_name(protocol, name, v)}", v


def _ranges(ports: Iterable[PortMatch]) -> list[tuple[int, int]]:
    """The ranges of ports without overlaps."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted((port.first, port.last) for port in ports):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _spelled(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def fitted(text: str) -> str:
    """A comment that the kernel accepts: a long one ends with a hash of all of it."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 13]} {_digest(text)[:12]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
