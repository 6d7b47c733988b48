"""What the kernel has beside what it should have: faults to report, and what mends them in place.

A listing is what `Nft.list_table` gave for each family: `{"bridge": ... or None, "inet": ... or None}`, as
libnftables-json(5) describes. Rules are compared by their names in order, and all their text by the tables' marker
(texts.py); sets and maps by element.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from cni.daemon.fence import elements, ruleset
from cni.daemon.fence.model import (
    TABLE,
    FenceBridge,
    FenceEdge,
    FenceNode,
    FencePort,
    RemoteMember,
    chain_of,
    raw,
)
from cni.daemon.fence.rules import NETWORK_SETS, SETS, Chain, edge_chain, network_chains
from cni.host.nft_elements import Change, Element

# The length in octets of the raw part of a set's key, where it has one.
OCTETS = {name: int(bits) // 8 for *_, name, of in SETS for bits in re.findall(r"@\w+,\d+,(\d+)", of)}

Listing: TypeAlias = Mapping[str, Mapping[str, Any] | None]
Key: TypeAlias = tuple[str | int, ...]
RANGES = frozenset(name for _, _, name, of in SETS if "interval" in of)


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Everything the fence should be: the node, and whoever is behind it."""

    node: FenceNode
    bridges: tuple[FenceBridge, ...] = ()
    ports: tuple[FencePort, ...] = ()
    remotes: tuple[RemoteMember, ...] = ()
    edges: tuple[FenceEdge, ...] = ()

    def local(self) -> DesiredState:
        """Without what other nodes and agents say: the part that isolation on this node rests on."""
        return replace(self, remotes=(), edges=())

    def networks(self) -> list[str]:
        """The networks that have members, here or elsewhere, by name."""
        of_all = [*(port.network for port in self.ports), *(remote.network for remote in self.remotes)]
        return sorted({network for network in of_all if network is not None})

    def chains(self) -> list[Chain]:
        """Every chain there should be."""
        ours = [*ruleset.chains(self.node), *(c for name in self.networks() for c in network_chains(name))]
        return ours + [edge_chain(edge) for edge in self.edges]

    def elements(self) -> list[Element]:
        """Every element there should be."""
        found = elements.of_node(self.node)
        for bridge in self.bridges:
            found += elements.of_bridge(bridge)
        for port in self.ports:
            found += elements.of_port(port)
        for remote in self.remotes:
            found += elements.of_remote(remote.network, remote.addresses)
        for edge in self.edges:
            found += elements.of_edge(edge)
        return found


def faults(listing: Listing, wanted: DesiredState, alone: bool = True) -> list[str]:
    """What is wrong with tables, chains and rules, a line each; empty: they are in force.

    Elements are not looked at, so a terse listing is enough; `Nft.absent` asks the kernel for those of one port.
    Not `alone` (two daemons of ours in one network namespace) the markers say nothing: if each insisted on its own,
    they would load their rules over each other's for ever.
    """
    gone = [f"table {family} {TABLE} is gone" for family in ruleset.FAMILIES if listing.get(family) is None]
    if gone:
        return gone
    have, chains = _rules(listing), wanted.chains()
    ours, theirs = {(c.family, c.name) for c in chains}, _markers(listing)
    others = [
        f"table {family} {TABLE} has the rules of another version or other CIDRs"
        for family in ruleset.FAMILIES
        if alone and {m for m in theirs if m[0] == family} != {m for m in ours if _is_marker(m) and m[0] == family}
    ]
    return [
        f"chain {chain.family} {TABLE} {chain.name} is " + ("gone" if found is None else "changed")
        for chain in chains
        if (found := have.get(place := (chain.family, chain.name))) != (chain.hook_key(), chain.rule_names())
        and not _is_marker(place)
    ] + others


def compare(listing: Listing, wanted: DesiredState, ours: DesiredState | None = None) -> list[str | Change]:
    """What makes the kernel as `wanted` says, the parts of one transaction; none if it is so already.

    Needs a full listing. What is right is left alone, so nothing is open meanwhile and no flow of a member ends.
    With `ours` only that part of `wanted` is added, and `records` gives the rest; what is not wanted goes all the same.
    """
    ours = ours or wanted
    if _must_rebuild(listing):
        return [whole(ours)]
    lines = [reload(listing, ours)] if faults(listing, replace(ours, edges=())) else []
    too_many, too_few = _difference(listing, wanted.elements())
    if ours is not wanted:
        added = frozenset(ours.elements())
        too_few = [each for each in too_few if each in added]
    if lines:
        too_many = [each for each in too_many if each.set not in ruleset.REFILLED]
        too_few = [each for each in too_few if each.set not in ruleset.REFILLED]
    have = _rules(listing)
    chains = [(edge, edge_chain(edge)) for edge in ours.edges]
    if not lines:
        lines += [ruleset.create_edge(e) for e, c in chains if have.get(("inet", c.name)) != (None, c.rule_names())]
    known = {chain_of(name) for name in (None, *wanted.networks())} | {edge_chain(edge).name for edge in wanted.edges}
    stale = sorted(_network_chains(listing) - known)
    parts: list[str | Change] = [
        *lines,
        elements.change(too_many, too_few),
        *(ruleset.forget_chain(name) for name in stale),
    ]
    return [part for part in parts if part]


class Record(NamedTuple):
    """What others say, in a transaction of its own: whose it is, the chains it needs, and its members."""

    whose: str
    rules: str
    members: Change


def records(listing: Listing | None, wanted: DesiredState) -> list[Record]:
    """What is missing of each network's members elsewhere and of each edge peer. Without a listing all of it is."""
    here = {port.network for port in wanted.ports}
    missing, rules = None, {}
    if listing is not None:
        missing, rules = frozenset(_difference(listing, wanted.elements())[1]), _rules(listing)
    found = []
    for remote in wanted.remotes:
        chain = chain_of(remote.network)
        there = all((family, chain) in rules for family in ruleset.FAMILIES)
        made = (
            "" if remote.network is None or remote.network in here or there else ruleset.create_network(remote.network)
        )
        members = _missing(elements.of_remote(remote.network, remote.addresses), missing)
        found.append(Record(f"network {remote.network!r}", made, members))
    for edge in wanted.edges:
        own = edge_chain(edge)
        there = rules.get(("inet", own.name)) == (None, own.rule_names())
        made = "" if there else ruleset.create_edge(edge)
        found.append(Record(f"edge peer {edge.address}", made, _missing(elements.of_edge(edge), missing)))
    return [each for each in found if each.rules or each.members]


def _missing(some: Iterable[Element], missing: frozenset[Element] | None) -> Change:
    return elements.change(add=(each for each in some if missing is None or each in missing))


def mend_sets(listing: Listing, wanted: DesiredState, sets: frozenset[tuple[str, str]]) -> Change:
    """What makes these sets, as (family, name), hold what they should; the listing has no others."""
    return elements.change(
        *_difference(listing, [each for each in wanted.elements() if (each.family, each.set) in sets])
    )


def reload(listing: Listing, wanted: DesiredState) -> str:
    """Every rule anew, in one transaction, and no membership lost; whose rules they were before is forgotten."""
    stale = sorted(_markers(listing) - {(chain.family, chain.name) for chain in wanted.chains()})
    return "".join(
        [
            ruleset.base(wanted.node),
            *(ruleset.create_network(name) for name in wanted.networks()),
            *(ruleset.create_edge(edge) for edge in wanted.edges),
            *(ruleset.forget_marker(*each) for each in stale),
        ]
    )


def whole(wanted: DesiredState) -> str:
    """Everything anew, whatever was there, in one transaction: the old rules hold until the new ones do."""
    return "".join(
        [
            ruleset.uninstall(),
            ruleset.base(wanted.node),
            *(ruleset.create_network(name) for name in wanted.networks()),
            *(ruleset.create_edge(edge) for edge in wanted.edges),
            elements.change(add=wanted.elements()).text(),
        ]
    )


def drops(listing: Listing) -> dict[tuple[str, str, str], tuple[int, int]]:
    """(family, chain, rule's name): packets and bytes dropped. A network's chain is `chain_of` its name."""
    found = {}
    for family, kind, what in _objects(listing):
        if kind == "rule":
            for expression in what.get("expr", ()):
                if isinstance(counter := expression.get("counter"), Mapping):
                    place = (family, what["chain"], what.get("comment", ""))
                    found[place] = (counter["packets"], counter["bytes"])
    return found


def _objects(listing: Listing) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for family in ruleset.FAMILIES:
        table = listing.get(family)
        for item in table["nftables"] if table else ():
            for kind, what in item.items():
                yield family, kind, what


def _rules(listing: Listing) -> dict[tuple[str, str], tuple[tuple[str, int] | None, tuple[str, ...]]]:
    """Per chain: its hook, and its rules' names."""
    hooks: dict[tuple[str, str], tuple[str, int] | None] = {}
    names: dict[tuple[str, str], list[str]] = {}
    for family, kind, what in _objects(listing):
        if kind == "chain":
            hooks[family, what["name"]] = (what["hook"], what["prio"]) if "hook" in what else None
        elif kind == "rule":
            names.setdefault((family, what["chain"]), []).append(what.get("comment", ""))
    return {place: (hook, tuple(names.get(place, ()))) for place, hook in hooks.items()}


def _is_marker(place: tuple[str, str]) -> bool:
    return place[1].startswith(ruleset.MARKER)


def _markers(listing: Listing) -> set[tuple[str, str]]:
    """The markers the kernel has: family and name."""
    found = {(family, what["name"]) for family, kind, what in _objects(listing) if kind == "chain"}
    return set(filter(_is_marker, found))


def _must_rebuild(listing: Listing) -> bool:
    """A table is gone, or a set has another type than we would give it (another version of us made it)."""
    if any(listing.get(family) is None for family in ruleset.FAMILIES):
        return True
    ours = {(family, name): of.partition(";")[0] for family, _, name, of in SETS if of.startswith("type ")}
    for family, kind, what in _objects(listing):
        if kind in ("set", "map") and (of := ours.get((family, what["name"]))) is not None:
            types = what["type"] if isinstance(what["type"], list) else [what["type"]]
            there = f"type {' . '.join(types)}" + (f" : {what['map']}" if kind == "map" else "")
            if there != of:
                return True
    return False


def _difference(listing: Listing, wanted: Iterable[Element]) -> tuple[list[Element], list[Element]]:
    """Elements to take away and elements to add; a map's with another verdict are both."""
    have: dict[tuple[str, str, Key], tuple[str, str]] = {}
    for family, kind, what in _objects(listing):
        if kind in ("set", "map"):
            for item in what.get("elem", ()):
                key, verdict = _read(item, kind, OCTETS.get(what["name"], 0))
                if what["name"] in RANGES:
                    key = _range(key)
                have[family, what["name"], _canonical(key)] = (key, verdict)
    want = {(e.family, e.set, _canonical(e.key)): e for e in wanted}
    too_many = [
        Element(place[0], place[1], key)
        for place, (key, verdict) in have.items()
        if place not in want or want[place].verdict != verdict
    ]
    too_few = [e for place, e in want.items() if place not in have or have[place][1] != e.verdict]
    return too_many, too_few


def _read(item: Any, kind: str, octets: int) -> tuple[str, str]:
    """An element of a listing: its key in nft text, and its verdict. Raw parts of the set are so many octets long."""
    value, data = item if kind == "map" and isinstance(item, list) else (item, None)
    while isinstance(value, Mapping) and "elem" in value:
        value = value["elem"]["val"]
    parts = value["concat"] if isinstance(value, Mapping) and "concat" in value else [value]
    return " . ".join(_part(part, octets) for part in parts), _verdict(data)


def _part(part: Any, octets: int) -> str:
    """One part of a key, as we write it.

    A number is printed in its whole length: the kernel finds no shorter key. Interface names are the only parts that
    must be quoted, and quoting an address would make it one.
    """
    if isinstance(part, Mapping) and "prefix" in part:
        return f"{part['prefix']['addr']}/{part['prefix']['len']}"
    if isinstance(part, Mapping) and "range" in part:
        return "-".join(part["range"])
    text = raw(part, octets) if isinstance(part, int) else str(part)
    is_name = not (text.startswith("0x") or ":" in text or text.replace(".", "").isdigit())
    return f'"{text}"' if is_name else text


def _range(key: str) -> str:
    """A CIDR as we write it; nft leaves the length out where it is the whole."""
    return key if "/" in key or "-" in key else f"{key}/{128 if ':' in key else 32}"


def _verdict(data: Any) -> str:
    if not isinstance(data, Mapping):
        return ""
    ((verb, target),) = data.items()
    return f"{verb} {target['target']}" if isinstance(target, Mapping) else str(verb)


def _canonical(key: str) -> Key:
    """The same for the same key, however it was written."""
    parts = (part.strip('"') for part in key.split(" . "))
    return tuple(int(part, 16) if part.startswith("0x") else part for part in parts)


def _network_chains(listing: Listing) -> set[str]:
    """The networks the kernel knows, by chain."""
    stems = {f"_{stem}" for _, stem, _ in NETWORK_SETS}
    chains = {what["name"] for _, kind, what in _objects(listing) if kind == "chain"}
    sets = {what["name"] for _, kind, what in _objects(listing) if kind == "set"}
    known = {name[: -len(stem)] for name in sets for stem in stems if name.endswith(stem)}
    return {name for name in chains | known if name.startswith("net_")}
