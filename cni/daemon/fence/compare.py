"""Compares the kernel's tables with the desired ones: the faults to report, and the transactions that repair them.

A listing is what `Nft.list_table` returned for each family: `{"bridge": ... or None, "inet": ... or None}`, as
libnftables-json(5) describes. Rules are compared by their names in order, and their whole text by the tables' marker
(ruleset.py); sets and maps by element.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from cni.daemon.fence import drop_log, elements, policy_changes, replacement, ruleset
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.model import TABLE, chain_of, raw
from cni.daemon.fence.policy_changes import ChainPlace, SetPlace
from cni.daemon.fence.rules import NETWORK_SETS, SETS, edge_chain
from cni.host.nft_elements import Change, Element

# The length in octets of the raw part of a set's key, for sets that have one.
OCTETS = {name: int(bits) // 8 for *_, name, of in SETS for bits in re.findall(r"@\w+,\d+,(\d+)", of)} | {
    name: 2 for *_, name, of in SETS if of.endswith("inet_service")
}

Listing: TypeAlias = Mapping[str, Mapping[str, Any] | None]
Key: TypeAlias = tuple[str | int, ...]
RANGES = frozenset(name for _, _, name, of in SETS if "interval" in of)


def faults(listing: Listing, desired: DesiredState, alone: bool = True) -> list[str]:
    """What is wrong with tables, chains and rules, one line each; empty if they are in force.

    Elements are not compared, so a terse listing is enough; `Nft.absent` asks the kernel for those of one port.
    Without `alone` (two daemons of ours in one network namespace) the markers are ignored: if each daemon insisted on
    its own, each would replace the other's rules for ever.
    """
    gone = [f"table {family} {TABLE} is gone" for family in ruleset.FAMILIES if listing.get(family) is None]
    if gone:
        return gone
    have, chains = _rules(listing), desired.chains()
    expected, markers = {(c.family, c.name) for c in chains}, _markers(listing)
    others = [
        f"table {family} {TABLE} has the rules of another version or other CIDRs"
        for family in ruleset.FAMILIES
        if alone and {m for m in markers if m[0] == family} != {m for m in expected if _is_marker(m) and m[0] == family}
    ]
    return [
        f"chain {chain.family} {TABLE} {chain.name} is " + ("gone" if actual is None else "changed")
        for chain in chains
        if (actual := have.get(key := (chain.family, chain.name))) != (chain.hook_key(), chain.rule_names())
        and not _is_marker(key)
    ] + others


def compare(listing: Listing, desired: DesiredState, ours: DesiredState | None = None) -> list[str | Change]:
    """The parts of one transaction that makes the kernel hold `desired`; empty if it does already.

    Needs a full listing. What is right is left alone, so nothing is open meanwhile and no flow of a member ends.
    With `ours` only that part of `desired` is added, and `records` gives the rest; what is not in `desired` is deleted
    all the same.
    """
    ours = ours or desired
    if must_rebuild(listing):
        return [replacement.whole(ours)]
    lines = [reload(listing, ours)] if faults(listing, replace(ours, edges=())) else []
    too_many, too_few = _difference(listing, desired.elements())
    if ours is not desired:
        added = frozenset(ours.elements())
        too_few = [element for element in too_few if element in added]
    if lines:
        too_many = [element for element in too_many if element.set not in ruleset.REFILLED]
        too_few = [element for element in too_few if element.set not in ruleset.REFILLED]
    have = _rules(listing)
    chains = [(edge, edge_chain(edge)) for edge in ours.edges]
    if not lines:
        lines += [ruleset.create_edge(e) for e, c in chains if have.get(("inet", c.name)) != (None, c.rule_names())]
    needed = {chain_of(name) for name in (None, *desired.networks())}
    needed |= {edge_chain(edge).name for edge in desired.edges}
    stale = sorted(_network_chains(listing) - needed)
    parts: list[str | Change] = [
        *lines,
        elements.change(too_many, too_few),
        *(ruleset.forget_chain(name) for name in stale),
        policy_changes.forget(*_stale_of_policies(listing, desired)),
    ]
    return [part for part in parts if part]


def _stale_of_policies(listing: Listing, desired: DesiredState) -> tuple[list[ChainPlace], list[SetPlace]]:
    """The chains and sets of policies that the kernel has and that are not desired."""
    chains = {(family, what["name"]) for family, kind, what in _objects(listing) if kind == "chain"}
    sets = {(family, kind, what["name"]) for family, kind, what in _objects(listing) if kind in ("set", "map")}
    wanted = {(chain.family, chain.name) for chain in desired.policies.chains}
    declared = {row[:3] for row in desired.policies.declared()}
    return (
        sorted(place for place in chains - wanted if policy_changes.is_ours(place[1])),
        sorted(place for place in sets - declared if policy_changes.is_ours(place[2])),
    )


class Record(NamedTuple):
    """What others publish, loaded in a transaction of its own: its subject, the chains it needs, and its members."""

    whose: str
    rules: str
    members: Change


def records(listing: Listing | None, desired: DesiredState) -> list[Record]:
    """What is missing of each network's remote members and of each edge peer. Without a listing all of it is
    missing.
    """
    local = {port.network for port in desired.ports}
    missing, rules = None, {}
    if listing is not None:
        missing, rules = frozenset(_difference(listing, desired.elements())[1]), _rules(listing)
    published = []
    for remote in desired.remotes:
        chain = chain_of(remote.network)
        exists = remote.network is None or remote.network in local
        exists = exists or all((family, chain) in rules for family in ruleset.FAMILIES)
        text = "" if exists or remote.network is None else ruleset.create_network(remote.network)
        members = _missing(elements.of_remote(remote.network, remote.addresses), missing)
        published.append(Record(f"network {remote.network!r}", text, members))
    for edge in desired.edges:
        own = edge_chain(edge)
        exists = rules.get(("inet", own.name)) == (None, own.rule_names())
        text = "" if exists else ruleset.create_edge(edge)
        published.append(Record(f"edge peer {edge.address}", text, _missing(elements.of_edge(edge), missing)))
    return [record for record in published if record.rules or record.members]


def _missing(some: Iterable[Element], missing: frozenset[Element] | None) -> Change:
    return elements.change(add=(element for element in some if missing is None or element in missing))


def mend_sets(listing: Listing, desired: DesiredState, sets: frozenset[tuple[str, str]]) -> Change:
    """What makes these sets, as (family, name), hold what they should; the listing contains only these sets."""
    return elements.change(*_difference(listing, [e for e in desired.elements() if (e.family, e.set) in sets]))


def reload(listing: Listing, desired: DesiredState) -> str:
    """The text that loads every rule anew in one transaction and keeps every membership; it deletes stale markers."""
    stale = sorted(_markers(listing) - {(chain.family, chain.name) for chain in desired.chains()})
    return "".join(
        [
            ruleset.base(desired.node),
            *(ruleset.create_network(name) for name in desired.networks()),
            *(ruleset.create_edge(edge) for edge in desired.edges),
            policy_changes.create(desired.policies),
            *(ruleset.forget_marker(*marker) for marker in stale),
        ]
    )


def drops(listing: Listing) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Packets and bytes dropped, by (family, chain, rule name). A network's chain is `chain_of` its name."""
    counts = {}
    for family, kind, what in _objects(listing):
        if kind == "rule":
            for expression in what.get("expr", ()):
                if isinstance(counter := expression.get("counter"), Mapping):
                    key = (family, what["chain"], what.get("comment", ""))
                    counts[key] = (counter["packets"], counter["bytes"])
    return counts


def _objects(listing: Listing) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for family in ruleset.FAMILIES:
        table = listing.get(family)
        for item in table["nftables"] if table else ():
            for kind, what in item.items():
                yield family, kind, what


def _rules(listing: Listing) -> dict[tuple[str, str], tuple[tuple[str, int] | None, tuple[str, ...]]]:
    """For each chain its hook and the names of its rules."""
    hooks: dict[tuple[str, str], tuple[str, int] | None] = {}
    names: dict[tuple[str, str], list[str]] = {}
    for family, kind, what in _objects(listing):
        if kind == "chain":
            hooks[family, what["name"]] = (what["hook"], what["prio"]) if "hook" in what else None
        elif kind == "rule" and not drop_log.is_log_rule(what):
            names.setdefault((family, what["chain"]), []).append(what.get("comment", ""))
    return {key: (hook, tuple(names.get(key, ()))) for key, hook in hooks.items()}


def _is_marker(key: tuple[str, str]) -> bool:
    return key[1].startswith(ruleset.MARKER)


def _markers(listing: Listing) -> set[tuple[str, str]]:
    """The kernel's markers, as (family, name)."""
    chains = {(family, what["name"]) for family, kind, what in _objects(listing) if kind == "chain"}
    return set(filter(_is_marker, chains))


def must_rebuild(listing: Listing) -> bool:
    """Whether a table is gone, or a set has another type than the desired one (another version created it)."""
    if any(listing.get(family) is None for family in ruleset.FAMILIES):
        return True
    ours = {(family, name): of.partition(";")[0] for family, _, name, of in SETS if of.startswith("type ")}
    for family, kind, what in _objects(listing):
        if kind in ("set", "map") and (of := ours.get((family, what["name"]))) is not None:
            types = what["type"] if isinstance(what["type"], list) else [what["type"]]
            actual = f"type {' . '.join(types)}" + (f" : {what['map']}" if kind == "map" else "")
            if actual != of:
                return True
    return False


def _difference(listing: Listing, desired: Iterable[Element]) -> tuple[list[Element], list[Element]]:
    """Elements to delete and elements to add; a map element with another verdict is in both."""
    have: dict[tuple[str, str, Key], tuple[str, str]] = {}
    for family, kind, what in _objects(listing):
        if kind in ("set", "map"):
            for item in what.get("elem", ()):
                octets = 2 if what["name"].startswith(policy_changes.NAMED) else OCTETS.get(what["name"], 0)
                key, verdict = _read(item, kind, octets)
                if what["name"] in RANGES:
                    key = _range(key)
                have[family, what["name"], _canonical(key)] = (key, verdict)
    want = {(e.family, e.set, _canonical(e.key)): e for e in desired}
    too_many = [
        Element(canonical[0], canonical[1], key)
        for canonical, (key, verdict) in have.items()
        if canonical not in want or want[canonical].verdict != verdict
    ]
    too_few = [e for canonical, e in want.items() if canonical not in have or have[canonical][1] != e.verdict]
    return too_many, too_few


def _read(item: Any, kind: str, octets: int) -> tuple[str, str]:
    """An element of a listing: its key in nft text, and its verdict. `octets` is the length of the set's raw key
    part.
    """
    value, data = item if kind == "map" and isinstance(item, list) else (item, None)
    while isinstance(value, Mapping) and "elem" in value:
        value = value["elem"]["val"]
    parts = value["concat"] if isinstance(value, Mapping) and "concat" in value else [value]
    return " . ".join(_part(part, octets) for part in parts), _verdict(data)


def _part(part: Any, octets: int) -> str:
    """One part of a key, spelled as `elements` spells it.

    A number is printed in its full length: the kernel finds no key by a shorter one. Interface names are the only parts
    that are quoted; a quoted address would be an interface name.
    """
    if isinstance(part, Mapping) and "prefix" in part:
        return f"{part['prefix']['addr']}/{part['prefix']['len']}"
    if isinstance(part, Mapping) and "range" in part:
        return "-".join(part["range"])
    text = raw(part, octets) if isinstance(part, int) else str(part)
    is_name = not (text.startswith("0x") or ":" in text or text.replace(".", "").isdigit())
    return f'"{text}"' if is_name else text


def _range(key: str) -> str:
    """A CIDR as `elements` spells it; nft omits the length of a single address."""
    return key if "/" in key or "-" in key else f"{key}/{128 if ':' in key else 32}"


def _verdict(data: Any) -> str:
    if not isinstance(data, Mapping):
        return data if isinstance(data, str) else ""
    ((verb, target),) = data.items()
    return f"{verb} {target['target']}" if isinstance(target, Mapping) else str(verb)


def _canonical(key: str) -> Key:
    """Equal for equal keys, however they are spelled."""
    parts = (part.strip('"') for part in key.split(" . "))
    return tuple(int(part, 16) if part.startswith("0x") else part for part in parts)


def _network_chains(listing: Listing) -> set[str]:
    """The chain names of the networks in the kernel."""
    stems = {f"_{stem}" for _, stem, _ in NETWORK_SETS}
    chains = {what["name"] for _, kind, what in _objects(listing) if kind == "chain"}
    sets = {what["name"] for _, kind, what in _objects(listing) if kind == "set"}
    of_sets = {name[: -len(stem)] for name in sets for stem in stems if name.endswith(stem)}
    return {name for name in chains | of_sets if name.startswith("net_")}
