"""The rules as the kernel should have them, in its own encoding, and what is wrong with those it has. Pure.

What the kernel makes of our text is learned from a table in a network namespace of its own (host/nft.py, `rules_of`):
once for the rules of the node, with one network among them, from which the rules of every other network follow by its
name. So a rule that was rewritten under its own name is found, by a daemon that has just begun as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cni.daemon.fence import ruleset
from cni.daemon.fence.model import TABLE, FenceEdge, FenceNode, chain_of
from cni.daemon.fence.rules import NETWORK_SETS, edge_chain
from cni.host.nft_rules import ChainSeen, RuleSeen, Tables, TableSeen

_TEMPLATE = "\0template"  # no network of a container is called so: NUL stands in no configuration


@dataclass(frozen=True, slots=True)
class Fault:
    """One difference: the chain or set it is in, empty for the table. `rebuild`: loading the rules again does not
    mend it; `hook`: the chain hangs elsewhere, and must go before it can come back."""

    family: str
    place: str
    text: str
    rebuild: bool = False
    hook: bool = False


def scratch_text(node: FenceNode, edges: Iterable[FenceEdge]) -> str:
    """What is to be loaded to learn the rules: no elements, for those are in no rule."""
    text = ruleset.base(node) + ruleset.create_network(_TEMPLATE) + "".join(ruleset.create_edge(edge) for edge in edges)
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith(("add element ", "flush set ")))


def expand(learned: Tables, networks: Iterable[str]) -> dict[str, TableSeen]:
    """The tables as they should be with these networks, from what the kernel made of `scratch_text`."""
    stem, found = chain_of(_TEMPLATE), {}
    for family in ruleset.FAMILIES:
        table = learned[family]
        assert table is not None, "it was loaded"
        chains = {name: chain for name, chain in table.chains.items() if name != stem}
        sets = {name: what for name, what in table.sets.items() if not name.startswith(stem)}
        model = table.chains[stem]
        of_model = {name[len(stem) :]: what for name, what in table.sets.items() if name.startswith(stem)}
        for network in networks:
            name = chain_of(network)
            chains[name] = _renamed(model, stem.encode(), name.encode())
            sets |= {name + rest: what for rest, what in of_model.items()}
        found[family] = replace(table, chains=chains, sets=sets)
    return found


def _renamed(chain: ChainSeen, stem: bytes, name: bytes) -> ChainSeen:
    """The names of networks' chains are of one length, so that nothing else in a rule's encoding changes."""
    rules = tuple(RuleSeen(rule.name, rule.body.replace(stem, name)) for rule in chain.rules)
    return replace(chain, rules=rules)


def differences(seen: Tables | None, expected: Mapping[str, TableSeen]) -> list[Fault]:
    """All that differs, elements of sets apart; empty: the rules are in force. `seen` None: they could not be read."""
    if seen is None:
        return [Fault(family, "", f"table {family} {TABLE} is being changed") for family in ruleset.FAMILIES]
    found: list[Fault] = []
    for family, table in expected.items():
        have = seen.get(family)
        if have is None:
            found.append(Fault(family, "", f"table {family} {TABLE} is gone"))
            continue
        if have.flags != table.flags:
            said = "dormant" if have.dormant else f"flagged {have.flags:#x}"
            found.append(Fault(family, "", f"table {family} {TABLE} is {said}"))
        found += _chains(family, have, table)
        found += _sets(family, have, table)
    return found


def _chains(family: str, have: TableSeen, table: TableSeen) -> list[Fault]:
    found = []
    for name, chain in table.chains.items():
        there = have.chains.get(name)
        if there == chain:
            continue
        if there is None:
            what = "has the rules of another version or other CIDRs" if name.startswith(ruleset.MARKER) else ""
            text = f"table {family} {TABLE} {what}" if what else f"chain {family} {TABLE} {name} is gone"
            found.append(Fault(family, name, text))
        else:
            hook = there.hook != chain.hook
            found.append(
                Fault(family, name, f"chain {family} {TABLE} {name} is changed: {_how(there, chain)}", hook=hook)
            )
    for name in have.chains.keys() - table.chains.keys():
        known = name.startswith(("net_", ruleset.MARKER))  # a network that is no more, or a version's marker
        found.append(Fault(family, name, f"chain {family} {TABLE} {name} is none of ours", rebuild=not known))
    return found


def _how(there: ChainSeen, chain: ChainSeen) -> str:
    if there.hook != chain.hook:
        return "its hook or priority"
    if there.policy != chain.policy:
        return "its policy"
    names, wanted = [rule.name for rule in there.rules], [rule.name for rule in chain.rules]
    if names != wanted:
        return "its rules or their order"
    return "; ".join(
        f"rule {rule.name!r}" for rule, other in zip(chain.rules, there.rules, strict=True) if rule != other
    )


def _sets(family: str, have: TableSeen, table: TableSeen) -> list[Fault]:
    found = []
    for name, what in table.sets.items():
        if name not in have.sets:
            found.append(Fault(family, name, f"set {family} {TABLE} {name} is gone"))
        elif have.sets[name] != what:
            found.append(Fault(family, name, f"set {family} {TABLE} {name} is of another kind", rebuild=True))
    for name in have.sets.keys() - table.sets.keys():
        known = name.startswith("net_") and name.endswith(tuple(f"_{stem}" for _, stem, _ in NETWORK_SETS))
        found.append(Fault(family, name, f"set {family} {TABLE} {name} is none of ours", rebuild=not known))
    return found


def is_stale(fault: Fault) -> bool:
    """Whether it is only what a network or a version of ours left behind: nothing is open by it."""
    return fault.place.startswith(("net_", ruleset.MARKER)) and fault.text.endswith("is none of ours")


def chains_of_edges(edges: Iterable[FenceEdge]) -> frozenset[str]:
    """The names of edge peers' chains."""
    return frozenset(edge_chain(edge).name for edge in edges)
