"""The rules of iptables' filter table as values, from the lines of `iptables -S`. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from cni.host.forward_rules import Condition, Position, Rule

_DEVICES_AND_ADDRESSES = {"-i": "iif", "-o": "oif", "-s": "src", "-d": "dst"}
_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}
_BY_OPTIONS = ("comment", "conntrack", "state", "tcp", "udp", "multiport")  # modules whose options are read below
_QUEUES = ("NFQUEUE", "QUEUE")  # a program decides


@dataclass(frozen=True, slots=True)
class Table:
    """The filter table: the rules of each chain, in order, and FORWARD's policy."""

    chains: dict[str, tuple[Rule, ...]]
    denies_by_policy: bool

    def rules_of(self, chain: str) -> Sequence[Rule]:
        """The chain's rules; empty if there is no such chain."""
        return self.chains.get(chain, ())

    def reached(self, chain: str) -> frozenset[str]:
        """The chain, and those that it leads to, itself or by others."""
        reached, todo = {chain}, [chain]
        while todo:
            targets = {rule.target for rule in self.rules_of(todo.pop()) if rule.target}
            todo += targets - reached
            reached |= targets
        return frozenset(reached)

    def is_only_forwards(self, chain: str) -> bool:
        """Whether only FORWARD leads to the chain, itself or by others; each of them has one rule that does."""
        callers = [rule.chain for rules in self.chains.values() for rule in rules if rule.target == chain]
        return len(callers) == 1 and (callers[0] == "FORWARD" or self.is_only_forwards(callers[0]))


def parse(lines: Sequence[str]) -> Table:
    """The table from the output of `iptables -S`; lines that are no rule of a chain are left out."""
    names = {line.split()[1] for line in lines if line.startswith(("-N ", "-P "))}
    chains: dict[str, list[Rule]] = {name: [] for name in names}
    for line in lines:
        if line.startswith("-A "):
            rule = _rule(line, names)
            chains.setdefault(rule.chain, []).append(rule)
    denies = any(line.split()[:3] == ["-P", "FORWARD", "DROP"] for line in lines)
    return Table({name: tuple(rules) for name, rules in chains.items()}, denies)


def without(table: Table, target: str) -> Table:
    """The table without the rules that lead to the chain `target`, and without that chain."""
    kept = {name: tuple(r for r in rules if r.target != target) for name, rules in table.chains.items()}
    return Table({name: rules for name, rules in kept.items() if name != target}, table.denies_by_policy)


def places_of(table: Table, target: str) -> list[Position]:
    """Where rules stand that lead to the chain `target`."""
    return [
        Position(name, at, rule)
        for name, rules in table.chains.items()
        for at, rule in enumerate(rules)
        if rule.target == target
    ]


def _rule(line: str, names: set[str]) -> Rule:
    _, chain, *words = shlex.split(line)
    conditions: list[Condition] = []
    verdict, target = "continue", ""
    negated = False
    while words:
        word = words.pop(0)
        if word == "!":
            negated = True
            continue
        if word in _DEVICES_AND_ADDRESSES:
            value = words.pop(0).replace("+", "*") if word in ("-i", "-o") else words.pop(0)
            conditions.append(Condition(_DEVICES_AND_ADDRESSES[word], (value,), negated))  # type: ignore[arg-type]
        elif word in ("--ctstate", "--state"):
            conditions.append(Condition("state", tuple(words.pop(0).split(",")), negated))
        elif word == "-p":
            conditions.append(Condition("proto", (words.pop(0),), negated))
        elif word in ("--dport", "--dports"):
            ports = words.pop(0).replace(":", "-").split(",")
            conditions.append(Condition("dport", tuple(ports), negated))
        elif word == "--comment":
            words.pop(0)
        elif word == "-m":
            if words.pop(0) not in _BY_OPTIONS:
                conditions.append(Condition("other"))
        elif word in ("-j", "-g"):
            verdict, target, conditions = _verdict(word, words.pop(0), names, conditions)
            words.clear()  # the options of the target
        else:
            conditions.append(Condition("other"))
        negated = False
    return Rule(chain, tuple(conditions), verdict, target, line)  # type: ignore[arg-type]


def _verdict(word: str, name: str, names: set[str], conditions: list[Condition]) -> tuple[str, str, list[Condition]]:
    if name in names:
        return ("goto" if word == "-g" else "jump"), name, conditions
    if name in _QUEUES:
        return "accept", "", [*conditions, Condition("other")]
    return _VERDICTS.get(name, "continue"), "", conditions
