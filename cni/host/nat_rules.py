"""Where the rules of other programs lead a packet that opens a flow: their DNAT, evaluated as values. Pure.

`nat_nft.py` and `nat_iptables.py` read the rules, `nat_reader.py` gets them from the kernel. A match that cannot be
evaluated may match or not; a rule that chooses at random (kube-proxy's endpoints) may match or not likewise. So the
result is every outcome that is possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Literal

_DEPTH = 16  # jumps within jumps; the kernel allows as many
_PROTOCOLS = {"6": "tcp", "17": "udp", "132": "sctp", "1": "icmp", "58": "ipv6-icmp", "icmpv6": "ipv6-icmp"}

Hook = Literal["prerouting", "output", "forward"]
Action = Literal["continue", "accept", "drop", "return", "jump", "goto", "translate"]


@dataclass(frozen=True, slots=True)
class Match:
    """One condition: the field is one of `values`. `saddr-type` and `daddr-type`: the kind of the address, of which
    only `local` is evaluated. Addresses are CIDRs or ranges, ports are numbers or ranges. `mark`: iptables' VALUE/MASK;
    a packet that no rule has translated has none. `unknown` is never evaluated.
    """

    field: Literal["src", "dst", "proto", "dport", "iif", "saddr-type", "daddr-type", "state", "mark", "unknown"]
    values: tuple[str, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where a packet is translated to. An empty address is the host's own (`redirect`); port 0 leaves the port."""

    address: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class NatRule:
    """One rule: what it does with the packets for which every match holds. `chain`: of jump and goto."""

    tests: tuple[Match, ...]
    action: Action
    chain: str = ""
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """A base chain: the hook at which it is called, its priority, and its IP versions. `name`: for the operator."""

    hook: Hook
    translates: bool
    priority: int
    versions: tuple[int, ...]
    chain: str
    chains: Mapping[str, Sequence[NatRule]]
    drops: bool = False  # by policy
    name: str = ""


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a flow. `source` is empty for an unknown one, `protocol` and `port` for any. `host`: the
    host's own addresses.
    """

    source: str
    destination: str
    protocol: str = ""
    port: int = 0
    host: frozenset[str] = frozenset()

    @property
    def version(self) -> int:
        """The IP version."""
        return ip_address(self.destination).version


@dataclass(frozen=True, slots=True)
class Way:
    """Where a packet may be led: `targets` in the order of the rules; `kept`, that it may keep its destination;
    `dropped`, the chains that may drop it.
    """

    targets: tuple[Target, ...] = ()
    kept: bool = True
    dropped: tuple[str, ...] = ()


@dataclass
class _Ends:
    targets: dict[Target, None] = field(default_factory=dict)
    accepted: bool = False
    dropped: bool = False


def translate(bases: Iterable[Base], packet: Packet, from_host: bool) -> Way:
    """Where the packet is led by DNAT. `from_host`: the host itself sends it."""
    hook: Hook = "output" if from_host else "prerouting"
    targets: dict[Target, None] = {}
    dropped: list[str] = []
    for base in _at(bases, hook, packet.version, translates=True):
        ends, passes = _walk(base.chains, base.chain, packet, 0)
        targets |= ends.targets
        dropped += [base.name] if ends.dropped else []
        if not passes and not ends.accepted:
            return Way(tuple(targets), False, tuple(dropped))
    return Way(tuple(targets), True, tuple(dropped))


def refused_by(bases: Iterable[Base], packet: Packet) -> str:
    """The base chain at the hook forward that drops the packet for certain; empty if none does."""
    for base in _at(bases, "forward", packet.version, translates=False):
        ends, passes = _walk(base.chains, base.chain, packet, 0)
        if not ends.accepted and (not passes or base.drops) and (ends.dropped or base.drops):
            return base.name
    return ""


def _at(bases: Iterable[Base], hook: Hook, version: int, translates: bool) -> list[Base]:
    found = [b for b in bases if (b.hook, b.translates) == (hook, translates) and version in b.versions]
    return sorted(found, key=lambda base: base.priority)


def _walk(
    chains: Mapping[str, Sequence[NatRule]], chain: str, packet: Packet, depth: int, ends: _Ends | None = None
) -> tuple[_Ends, bool]:
    """The ends that packets find in a chain, and whether some may pass on to the caller."""
    ends = ends if ends is not None else _Ends()
    for rule in chains.get(chain, ()):
        matches = _matches(rule, packet)
        if matches is False:
            continue
        passes = False
        match rule.action:
            case "translate":
                if rule.target is not None:
                    ends.targets[rule.target] = None
            case "accept":
                ends.accepted = True
            case "drop":
                ends.dropped = True
            case "continue":
                passes = True
            case "return":
                if matches:
                    return ends, True
                passes = True
            case "jump" | "goto":
                _, passes = _walk(chains, rule.chain, packet, depth + 1, ends) if depth < _DEPTH else (ends, True)
                if rule.action == "goto" and matches:
                    return ends, passes
        if matches and not passes:
            return ends, False
    return ends, True


def _matches(rule: NatRule, packet: Packet) -> bool | None:
    """Whether the packet matches: it does, it does not, or (None) it may."""
    answers = [_holds(test, packet) for test in rule.tests]
    return False if False in answers else None if None in answers else True


def _holds(test: Match, packet: Packet) -> bool | None:
    match test.field:
        case "src":
            answer = _any(_lies_in(packet.source, value) for value in test.values)
        case "dst":
            answer = _any(_lies_in(packet.destination, value) for value in test.values)
        case "proto":
            protocols = [_PROTOCOLS.get(value, value) for value in test.values]
            answer = packet.protocol in protocols if packet.protocol else None
        case "dport":
            answer = _any(_is_port(packet.port, value) for value in test.values)
        case "saddr-type":
            answer = _is_local(packet.source, packet, test.values)
        case "daddr-type":
            answer = _is_local(packet.destination, packet, test.values)
        case "state":
            answer = "new" in test.values
        case "mark":
            answer = all(value.partition("/")[0] in ("0", "0x0") for value in test.values)
        case _:
            return None
    return None if answer is None else answer is not test.negated


def _any(answers: Iterable[bool | None]) -> bool | None:
    found = list(answers)
    return True if True in found else None if None in found else False


def _lies_in(own: str, value: str) -> bool | None:
    if not own:
        return None
    address = ip_address(own)
    try:
        first, _, last = value.partition("-")
        if last:
            low, high = ip_address(first), ip_address(last)
            return low.version == address.version and int(low) <= int(address) <= int(high)
        return address in ip_network(value, strict=False)
    except ValueError:
        return None


def _is_port(own: int, value: str) -> bool | None:
    first, _, last = value.partition("-")
    if not own or not first.isdigit() or not (last or first).isdigit():
        return None
    return int(first) <= own <= int(last or first)


def _is_local(own: str, packet: Packet, values: Sequence[str]) -> bool | None:
    if not own or "local" not in values:
        return None
    return own in packet.host or ip_address(own).is_loopback
