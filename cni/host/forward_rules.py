"""Which rule of a firewall's FORWARD or INPUT drops what, found by evaluating the rules as values. Pure.

`iptables_rules.py` and `nft_forward.py` read the rules. A rule is a list of conditions and a verdict; a condition that
this module cannot evaluate may match or not. The packets are those that open a flow: connection state `new`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Literal, NamedTuple

ANY_NAME = "*"
_TRANSLATED = ("dnat", "snat")
_PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "ipv6-icmp", "132": "sctp", "icmpv6": "ipv6-icmp"}
_DEPTH = 16  # jumps within jumps; the kernel allows as many


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: the packet's input or output device, source or destination, protocol or destination port, or the
    connection's state or translation (`status`), is one of `values`. `other`: anything else. A device name may end in
    `*`; a port may be a range, `FIRST-LAST`.
    """

    kind: Literal["iif", "oif", "src", "dst", "proto", "dport", "state", "status", "other"]
    values: tuple[str, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `verdict`: accept, drop, return, or continue; or jump or goto, with `target`. `text`: as the operator
    sees it.
    """

    chain: str
    conditions: tuple[Condition, ...]
    verdict: Literal["accept", "drop", "return", "continue", "jump", "goto"]
    target: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """The packets in question: those that have these devices, addresses, protocol and port; empty or 0 for any. None
    comes from `lo`. `untranslated`: no NAT rule matched them.
    """

    iif: str = ""
    oif: str = ""
    src: str = ""
    dst: str = ""
    proto: str = ""
    dport: int = 0
    untranslated: bool = False


class Position(NamedTuple):
    """A place in a chain: before its rule number `at`, from 0 on. `rule` is that rule, if it drops every packet."""

    chain: str
    at: int
    rule: Rule | None


Chains = Callable[[str], Sequence[Rule]]
"""The rules of a chain; empty for a name that is no chain."""
_Outcome = frozenset[str]  # of accept, drop, pass (to the next rule of the caller)
_DROPPED, _PASSED = frozenset({"drop"}), frozenset({"pass"})


def denial(chains: Chains, chain: str, flow: Flow, may_enter: Callable[[str], bool] = lambda _: True) -> Position:
    """Where the first rule stands that drops every packet of the flow that reaches it; the end of `chain` if none does.

    A rule that leads to a chain which accepts some and drops the rest: the place is in that chain, if `may_enter` says
    so, else before the rule.
    """
    return _denial(chains, chain, flow, may_enter, 0)


def _denial(chains: Chains, chain: str, flow: Flow, may_enter: Callable[[str], bool], depth: int) -> Position:
    rules = chains(chain)
    for at, rule in enumerate(rules):
        if _matches(rule, flow):
            outcome = _outcome(chains, rule, flow, depth)
            if rule.target and outcome > _DROPPED and "pass" not in outcome and may_enter(rule.target):
                return _denial(chains, rule.target, flow, may_enter, depth + 1)
            if "pass" not in outcome or rule.verdict in ("return", "goto"):
                return Position(chain, at, rule if "drop" in outcome else None)
        elif rule.verdict == "accept" and _names(rule, flow):
            return Position(chain, at, None)  # made for these packets
    return Position(chain, len(rules), None)


def closes(chains: Chains, chain: str, flow: Flow, policy_drops: bool) -> bool:
    """Whether a base chain drops every packet of the flow, whatever the conditions that cannot be evaluated say."""
    ends = _outcome_of_chain(chains, chain, flow, 0)
    return "accept" not in ends and ("pass" not in ends or policy_drops)


def drops_before(chains: Chains, chain: str, flow: Flow, end: Position) -> list[Rule]:
    """The rules before `end` that drop packets of the flow: some of them, or all that meet the rule's conditions."""
    dropping: list[Rule] = []
    for rule in _reached(chains, chain, flow, end, 0):
        if rule.verdict == "drop" and rule not in dropping:
            dropping.append(rule)
    return dropping


def _reached(chains: Chains, chain: str, flow: Flow, end: Position, depth: int) -> Iterator[Rule]:
    """The rules that some packet of the flow may reach and match, in order, before `end`."""
    for at, rule in enumerate(chains(chain)):
        if (chain, at) == end[:2]:
            return
        matches = _matches(rule, flow)
        if matches is False:
            continue
        yield rule
        if rule.target and depth < _DEPTH:
            yield from _reached(chains, rule.target, flow, end, depth + 1)
        if matches and "pass" not in _outcome(chains, rule, flow, depth):
            return


def _outcome(chains: Chains, rule: Rule, flow: Flow, depth: int) -> _Outcome:
    """What becomes of packets that match the rule."""
    match rule.verdict:
        case "accept" | "drop":
            return frozenset({rule.verdict})
        case "continue" | "return":
            return _PASSED
        case _:
            return _outcome_of_chain(chains, rule.target, flow, depth + 1) if depth < _DEPTH else _PASSED


def _outcome_of_chain(chains: Chains, chain: str, flow: Flow, depth: int) -> _Outcome:
    ends: set[str] = set()
    for rule in chains(chain):
        matches = _matches(rule, flow)
        if matches is False:
            continue
        outcome = _outcome(chains, rule, flow, depth)
        leaves = rule.verdict in ("return", "goto")  # what passes goes on behind the jump to this chain
        ends |= outcome if leaves else outcome - _PASSED
        if matches and (leaves or "pass" not in outcome):
            return frozenset(ends)
    return frozenset(ends | _PASSED)


def _matches(rule: Rule, flow: Flow) -> bool | None:
    """Whether packets of the flow match: all, none, or (None) perhaps some."""
    answers = [_holds(condition, flow) for condition in rule.conditions]
    return False if False in answers else None if None in answers else True


def _names(rule: Rule, flow: Flow) -> bool:
    """Whether the rule names the flow's own devices or addresses, beside what cannot be evaluated."""
    own = {"iif": flow.iif, "oif": flow.oif, "src": flow.src, "dst": flow.dst}
    answers = [(own.get(condition.kind, ""), _holds(condition, flow)) for condition in rule.conditions]
    return any(name and holds for name, holds in answers) and all(holds is not False for _, holds in answers)


def _holds(condition: Condition, flow: Flow) -> bool | None:
    match condition.kind:
        case "iif":
            answers = [_is_named(flow.iif, value, forwarded_in=True) for value in condition.values]
        case "oif":
            answers = [_is_named(flow.oif, value) for value in condition.values]
        case "src":
            answers = [_lies_in(flow.src, value) for value in condition.values]
        case "dst":
            answers = [_lies_in(flow.dst, value) for value in condition.values]
        case "proto":
            answers = [_is_protocol(flow.proto, value) for value in condition.values]
        case "dport":
            answers = [_is_port(flow.dport, value) for value in condition.values]
        case "state":
            answers = [_is_state(value, flow.untranslated) for value in condition.values]
        case "status":
            answers = [False if flow.untranslated and value in _TRANSLATED else None for value in condition.values]
        case _:
            return None
    answer = True if True in answers else None if None in answers else False
    return None if answer is None else answer is not condition.negated


def _is_named(name: str, value: str, forwarded_in: bool = False) -> bool | None:
    if value == ANY_NAME:
        return True
    if not name:
        return False if forwarded_in and value == "lo" else None
    if value.endswith("*"):
        return True if name.startswith(value[:-1]) else None if value.startswith(name.rstrip("*")) else False
    return None if name.endswith("*") and value.startswith(name[:-1]) else name == value


def _lies_in(own: str, value: str) -> bool | None:
    try:
        network = ip_network(value, strict=False)
    except ValueError:
        return None
    if not own:
        return True if network.prefixlen == 0 else None
    mine = ip_network(own)
    if isinstance(mine, IPv4Network) and isinstance(network, IPv4Network):
        return mine.subnet_of(network) or (None if mine.overlaps(network) else False)
    if isinstance(mine, IPv6Network) and isinstance(network, IPv6Network):
        return mine.subnet_of(network) or (None if mine.overlaps(network) else False)
    return False


def _is_protocol(own: str, value: str) -> bool | None:
    return _PROTOCOLS.get(value, value) == own if own else None


def _is_port(own: int, value: str) -> bool | None:
    first, _, last = value.partition("-")
    if not own or not first.isdigit() or not (last or first).isdigit():
        return None
    return int(first) <= own <= int(last or first)


def _is_state(value: str, untranslated: bool) -> bool | None:
    state = value.lower()
    if state in ("new", "established", "related", "invalid", "untracked"):
        return state == "new"
    return False if untranslated and state in _TRANSLATED else None  # DNAT and SNAT are no states of their own
