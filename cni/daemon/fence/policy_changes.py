"""The nft texts and element changes that turn the rules of policies into those of changed policies, ports or pods.

A change is one transaction, so a packet is judged by the old policies or by the new ones. Chains that stay keep their
elements, and chains whose rules are equal are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from cni.daemon.fence import elements
from cni.daemon.fence.model import TABLE, FencePort
from cni.daemon.fence.policy_book import PolicyRules
from cni.daemon.fence.policy_chains import PREFIX
from cni.daemon.fence.rules import Chain, declare
from cni.host.nft_elements import Change, Element

NAMED = f"{PREFIX}name"
"""How the names of the sets of named ports begin; a part of their keys is a port number."""
BASE = ("policies", "policies_output", "policies_redirect", "policies_bridge", "judge", "judge_untracked", "by_host")
"""The chains that exist while policies isolate a port of this node."""
ChainPlace: TypeAlias = tuple[str, str]
"""(family, name)."""
SetPlace: TypeAlias = tuple[str, str, str]
"""(family, "set" or "map", name)."""

__all__ = ["NAMED", "PREFIX", "State", "between", "create", "forget", "is_ours"]


class State(NamedTuple):
    """What the tables hold of policies: their rules, and this node's ports."""

    rules: PolicyRules
    ports: Mapping[str, FencePort]


def is_ours(name: str) -> bool:
    """Whether a chain or set of that name is one of policies."""
    return name.startswith(PREFIX) or name in BASE


def create(rules: PolicyRules) -> str:
    """Creates the sets and chains, and fills the chains. Idempotent; no element is changed."""
    return _text(rules.declared(), list(rules.chains))


def forget(chains: Iterable[ChainPlace], sets: Iterable[SetPlace]) -> str:
    """Deletes these chains and sets, which exist and which no element leads to."""
    chains = list(chains)
    return "".join(
        [
            *(f"flush chain {family} {TABLE} {name}\n" for family, name in chains),
            *(f"delete chain {family} {TABLE} {name}\n" for family, name in chains),
            *(f"delete {kind} {family} {TABLE} {name}\n" for family, kind, name in sets),
        ]
    )


def between(before: State, after: State) -> tuple[str, Change]:
    """What turns `before` into `after`: a text, or else a change of elements, or neither. `before` has the ports that
    have changed. A port that comes or goes is left to its caller: it is added before its link is up, and removed after
    its link is gone."""
    old, new = before.rules, after.rules
    taken, added = _of_ports(before.ports, after.ports)
    had, has = {one.name: one for one in old.sets}, {one.name: one for one in new.sets}
    for name, one in has.items():
        earlier = had.get(name)
        if earlier is not one:
            keys = earlier.keys if earlier is not None else frozenset()
            taken += [Element("inet", name, key) for key in keys - one.keys]
            added += [Element("inet", name, key) for key in one.keys - keys]
    if old.chains is new.chains and had.keys() == has.keys():
        return "", elements.change(taken, added)
    known = {(chain.family, chain.name): chain for chain in old.chains}
    changed = [chain for chain in new.chains if known.get((chain.family, chain.name)) != chain]
    gone = known.keys() - {(chain.family, chain.name) for chain in new.chains}
    declared, kept = old.declared(), new.declared()
    rows = [row for row in kept if row not in declared]
    dropped = [row[:3] for row in declared if row not in kept]
    text = _text(rows, changed) + elements.change(taken, added).text() + forget(sorted(gone), dropped)
    return text, elements.change()


def _text(rows: Iterable[tuple[str, str, str, str]], chains: list[Chain]) -> str:
    lines = [f"add {kind} {family} {TABLE} {name} {{ {of}; }}" for family, kind, name, of in rows]
    return "".join(f"{line}\n" for line in [*lines, *declare(chains)])


def _of_ports(before: Mapping[str, FencePort], after: Mapping[str, FencePort]) -> tuple[list[Element], list[Element]]:
    """The elements to delete and to add for the ports of `before` that still exist."""
    taken: list[Element] = []
    added: list[Element] = []
    for name, earlier in before.items():
        port = after.get(name)
        if port is None or earlier.policy == port.policy:
            continue
        old, new = elements.of_port_policy(earlier), elements.of_port_policy(port)
        taken += [element for element in old if element not in new]
        added += [element for element in new if element not in old]
    return taken, added
