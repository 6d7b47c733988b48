"""The rules as the kernel should hold them, in its own encoding, and the differences to those it holds. Pure.

The kernel's encoding of our nft text is read from a table in a scratch network namespace (host/nft_scratch.py): once
for the rules of the node with one template network, from which the rules of every other network follow by replacing
the name. So a rule that was rewritten under its own name is found, also by a daemon that has just started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cni.daemon.fence import policy_changes, ruleset
from cni.daemon.fence.fault import Fault
from cni.daemon.fence.model import TABLE, FenceEdge, FenceNode, chain_of
from cni.daemon.fence.policy_book import PolicyRules
from cni.daemon.fence.rules import NETWORK_SETS, edge_chain
from cni.host.nft_rules import ChainSeen, RuleSeen, Tables, TableSeen

_LEFT = ("net_", ruleset.MARKER, policy_changes.PREFIX)
"""How the names begin of what a network or policies of an earlier time may have left."""
_TEMPLATE = "\0template"  # no network has this name: no configuration contains NUL


def scratch_text(node: FenceNode, edges: Iterable[FenceEdge], policies: PolicyRules) -> str:
    """The text that is loaded into the scratch namespace; without elements, since no rule contains them."""
    text = ruleset.base(node) + ruleset.create_network(_TEMPLATE) + "".join(ruleset.create_edge(edge) for edge in edges)
    text += policy_changes.create(policies)
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith(("add element ", "flush set ")))


def expand(learned: Tables, networks: Iterable[str]) -> dict[str, TableSeen]:
    """The desired tables with these networks, from the kernel's encoding of `scratch_text`."""
    stem, tables = chain_of(_TEMPLATE), {}
    for family in ruleset.FAMILIES:
        table = learned[family]
        assert table is not None, "the scratch namespace holds both tables"
        chains = {name: chain for name, chain in table.chains.items() if name != stem}
        sets = {name: what for name, what in table.sets.items() if not name.startswith(stem)}
        model = table.chains[stem]
        of_model = {name[len(stem) :]: what for name, what in table.sets.items() if name.startswith(stem)}
        for network in networks:
            name = chain_of(network)
            chains[name] = _renamed(model, stem.encode(), name.encode())
            sets |= {name + rest: what for rest, what in of_model.items()}
        tables[family] = replace(table, chains=chains, sets=sets)
    return tables


def _renamed(chain: ChainSeen, stem: bytes, name: bytes) -> ChainSeen:
    """The chain with another network's name. All network chain names have one length, so nothing else of the encoding
    changes.
    """
    rules = tuple(RuleSeen(rule.name, rule.body.replace(stem, name)) for rule in chain.rules)
    return replace(chain, rules=rules)


def differences(seen: Tables | None, expected: Mapping[str, TableSeen]) -> list[Fault]:
    """All differences but those of elements; empty if the rules are in force. `seen` is None if they could not be
    read.
    """
    if seen is None:
        return [Fault(family, "", f"table {family} {TABLE} is being changed") for family in ruleset.FAMILIES]
    faults: list[Fault] = []
    for family, table in expected.items():
        have = seen.get(family)
        if have is None:
            faults.append(Fault(family, "", f"table {family} {TABLE} is gone", missing=True))
            continue
        if have.flags != table.flags:
            state = "dormant" if have.dormant else f"flagged {have.flags:#x}"
            faults.append(Fault(family, "", f"table {family} {TABLE} is {state}"))
        faults += _chains(family, have, table)
        faults += _sets(family, have, table)
    return faults


def _chains(family: str, have: TableSeen, table: TableSeen) -> list[Fault]:
    faults = []
    for name, chain in table.chains.items():
        actual = have.chains.get(name)
        if actual == chain:
            continue
        if actual is None:
            what = "has the rules of another version or other CIDRs" if name.startswith(ruleset.MARKER) else ""
            text = f"table {family} {TABLE} {what}" if what else f"chain {family} {TABLE} {name} is gone"
            faults.append(Fault(family, name, text))
        else:
            hook = actual.hook != chain.hook
            faults.append(
                Fault(family, name, f"chain {family} {TABLE} {name} is changed: {_how(actual, chain)}", hook=hook)
            )
    for name in have.chains.keys() - table.chains.keys():
        # The chain of a network without members, or the marker of another version.
        is_known_kind = name.startswith(_LEFT)
        text = f"chain {family} {TABLE} {name} is none of ours"
        faults.append(Fault(family, name, text, structure=not is_known_kind))
    return faults


def _how(actual: ChainSeen, chain: ChainSeen) -> str:
    if actual.hook != chain.hook:
        return "its hook or priority"
    if actual.policy != chain.policy:
        return "its policy"
    names, expected_names = [rule.name for rule in actual.rules], [rule.name for rule in chain.rules]
    if names != expected_names:
        return "its rules or their order"
    return "; ".join(
        f"rule {rule.name!r}" for rule, other in zip(chain.rules, actual.rules, strict=True) if rule != other
    )


def _sets(family: str, have: TableSeen, table: TableSeen) -> list[Fault]:
    faults = []
    for name, what in table.sets.items():
        if name not in have.sets:
            faults.append(Fault(family, name, f"set {family} {TABLE} {name} is gone", structure=True, missing=True))
        elif have.sets[name] != what:
            faults.append(Fault(family, name, f"set {family} {TABLE} {name} is of another kind", structure=True))
    for name in have.sets.keys() - table.sets.keys():
        is_of_network = name.startswith("net_") and name.endswith(tuple(f"_{stem}" for _, stem, _ in NETWORK_SETS))
        text = f"set {family} {TABLE} {name} is none of ours"
        known = is_of_network or name.startswith(policy_changes.PREFIX)
        faults.append(Fault(family, name, text, structure=not known))
    return faults


def is_stale(fault: Fault) -> bool:
    """Whether the fault is only what an earlier network, policy or version of ours left: it opens nothing."""
    return fault.place.startswith(_LEFT) and fault.text.endswith("is none of ours")


def chains_of_edges(edges: Iterable[FenceEdge]) -> frozenset[str]:
    """The names of the edge peers' chains."""
    return frozenset(edge_chain(edge).name for edge in edges)
