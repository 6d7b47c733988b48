"""The rules of one of iptables' tables, from the lines of `iptables -S`, as values of `nat_rules.py`. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from cni.host.nat_rules import Action, Base, Hook, Match, NatRule, Target

_HOOKS: dict[str, tuple[tuple[Hook, str, int], ...]] = {
    "nat": (("prerouting", "PREROUTING", -100), ("output", "OUTPUT", -100)),
    "filter": (("forward", "FORWARD", 0),),
}
_TESTS = {"-s": "src", "-d": "dst", "-p": "proto", "-i": "iif", "--src-type": "saddr-type", "--dst-type": "daddr-type"}
_PORTS = ("--dport", "--dports", "--destination-port", "--destination-ports")
_STATES = ("--ctstate", "--state")
_SILENT = ("comment", "conntrack", "state", "tcp", "udp", "sctp", "multiport", "addrtype", "nfacct")  # read below
_IGNORED = ("--comment", "--nfacct-name")
_ACTIONS: dict[str, Action] = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}
_TARGET = re.compile(r"\[?([0-9a-fA-F:.]*?)\]?(?::(\d+))?")


def bases(lines: Sequence[str], version: int, table: str, tool: str) -> list[Base]:
    """The base chains of the table `nat` or `filter`, from the output of `tool -t table -S`."""
    names = {line.split()[1] for line in lines if line.startswith(("-N ", "-P "))}
    denying = {line.split()[1] for line in lines if line.startswith("-P ") and line.split()[2] == "DROP"}
    chains: dict[str, list[NatRule]] = {name: [] for name in names}
    for line in lines:
        if line.startswith("-A "):
            _, chain, *words = shlex.split(line)
            chains.setdefault(chain, []).append(_rule(words, names))
    return [
        Base(hook, table == "nat", priority, (version,), chain, chains, chain in denying, f"{tool} {chain}")
        for hook, chain, priority in _HOOKS[table]
        if chain in names
    ]


def _rule(words: list[str], names: set[str]) -> NatRule:
    tests: list[Match] = []
    negated = False
    while words:
        word = words.pop(0)
        if word == "!":
            negated = True
            continue
        if word in _TESTS:
            value = words.pop(0)
            value = value.lower() if word.startswith("--") else value
            tests.append(Match(_TESTS[word], tuple(value.split(",")), negated))  # type: ignore[arg-type]
        elif word in _PORTS:
            tests.append(Match("dport", tuple(words.pop(0).replace(":", "-").split(",")), negated))
        elif word in _STATES:
            tests.append(Match("state", tuple(words.pop(0).lower().split(",")), negated))
        elif word in _IGNORED:
            words.pop(0)
        elif word == "-m":
            module = words.pop(0)
            if module not in _SILENT and not (module == "recent" and "--set" in words):  # which notes the source
                tests.append(Match("unknown"))
        elif word == "--mark":
            tests[-1] = Match("mark", (words.pop(0),), negated)
        elif word in ("-j", "-g"):
            return _ending(tuple(tests), word, words, names)
        negated = False
    return NatRule(tuple(tests), "continue")


def _ending(tests: tuple[Match, ...], word: str, words: list[str], names: set[str]) -> NatRule:
    """A rule's target: its name and its options."""
    name, options = words[0], dict(zip(words[1::2], words[2::2], strict=False))
    if name in names:
        return NatRule(tests, "goto" if word == "-g" else "jump", chain=name)
    if name == "DNAT" and (found := _TARGET.fullmatch(options.get("--to-destination", ""))) is not None:
        return NatRule(tests, "translate", target=Target(found[1], int(found[2] or 0)))
    if name == "REDIRECT":
        port = options.get("--to-ports", "")
        return NatRule(tests, "translate", target=Target("", int(port) if port.isdigit() else 0))
    return NatRule(tests, _ACTIONS.get(name, "continue"))
