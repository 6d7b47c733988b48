"""What nftables tables say: flags, chains with their hooks and policies, every rule's body, and the types of sets.

Read from the kernel's own dump, in its own encoding, so that two dumps of the same rules are equal and no other are:
text is no measure, for the kernel tells rules back in other words than they were given in. Left out is what changes by
itself (counters, handles, reference counts, members of named sets). A set without a name, which a rule like
`tcp dport { 80, 443 }` makes, stands in the rule's body by what it holds: its number depends on what else was loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cni.host import nft_dump
from cni.host.nft_dump import CHAINS, ELEMENTS, FAMILIES, RULES, SETS, TABLES
from cni.host.nlmsg import attributes, items
from cni.host.nlmsg import string as _text

_DORMANT = 0x1  # NFT_TABLE_F_DORMANT
_ANONYMOUS = 0x1  # NFT_SET_ANONYMOUS
_SET_TOLD = (3, 4, 5, 6, 7, 9, 11, 17, 18)  # flags, types and lengths, description, timeout, statements of elements
_NAMELESS = re.compile(rb"__(?:set|map)\d+\0")


@dataclass(frozen=True, slots=True)
class RuleSeen:
    """One rule: its comment, and its expressions and user data as the kernel has them."""

    name: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ChainSeen:
    """One chain. `hook`: hook, priority and type as the kernel has them, empty for a chain that others call."""

    hook: bytes = b""
    policy: bytes = b""
    rules: tuple[RuleSeen, ...] = ()


@dataclass(frozen=True, slots=True)
class TableSeen:
    """One table. `sets`: what each named set is, without what it holds."""

    flags: int = 0
    chains: Mapping[str, ChainSeen] = field(default_factory=dict)
    sets: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def dormant(self) -> bool:
        """Whether the table's hooks are switched off: it enforces nothing."""
        return bool(self.flags & _DORMANT)


Tables = Mapping[str, TableSeen | None]
"""Per family ("inet", "bridge") the table; None where there is none."""


def read(dumper: nft_dump.Dumper, table: str) -> Tables | None:
    """The tables of that name; None if something was changed meanwhile. Raises OSError."""
    try:
        return {family: _table(dumper, number, table) for family, number in FAMILIES.items()}
    except nft_dump.Disturbed:
        return None


def _table(dumper: nft_dump.Dumper, family: int, table: str) -> TableSeen | None:
    found = [attributes(data) for data in dumper.dump(TABLES, family, table)]
    if not found:
        return None
    sets, nameless = {}, {}
    for data in dumper.dump(SETS, family, table):
        told = attributes(data)
        name, what = told[2].rstrip(b"\0"), b"".join(bytes([kind]) + told[kind] for kind in _SET_TOLD if kind in told)
        if int.from_bytes(told.get(3, b""), "big") & _ANONYMOUS:
            nameless[name] = what
        else:
            sets[name.decode(errors="replace")] = what
    for name, what in nameless.items():
        nameless[name] = what + _elements(dumper, family, table, name.decode())
    chains: dict[str, tuple[bytes, bytes, list[RuleSeen]]] = {}
    for data in dumper.dump(CHAINS, family, table):
        told = attributes(data)
        hook = b"".join(told.get(kind, b"") for kind in (4, 7, 10)) if 4 in told else b""
        chains[_text(told[3])] = (hook, told.get(5, b"") if hook else b"", [])
    for data in dumper.dump(RULES, family, table):
        told = attributes(data)
        if (chain := chains.get(_text(told[2]))) is not None:
            chain[2].append(RuleSeen(_comment(told.get(7, b"")), _body(told, nameless)))
    return TableSeen(
        int.from_bytes(found[0].get(2, b""), "big"),
        {name: ChainSeen(hook, policy, tuple(rules)) for name, (hook, policy, rules) in chains.items()},
        sets,
    )


def _elements(dumper: nft_dump.Dumper, family: int, table: str, name: str) -> bytes:
    """What a set without a name holds, in an order of our own: the kernel's is that of a hash."""
    found = []
    for data in dumper.dump(ELEMENTS, family, table, name):
        for kind, value in items(data):
            if kind == 3:
                found += [element for _, element in items(value)]
    return b"".join(sorted(found))


def _body(told: Mapping[int, bytes], nameless: Mapping[bytes, bytes]) -> bytes:
    parts = []
    for _, expression in items(told.get(4, b"")):
        name, data = b"", b""
        for kind, value in items(expression):
            if kind == 1:
                name = value
            elif kind == 2:
                data = value
        if name == b"counter\0":
            data = b""
        elif b"__" in data:
            data = _NAMELESS.sub(lambda found: nameless.get(found.group().rstrip(b"\0"), found.group()), data)
        parts.append(name + len(data).to_bytes(4, "big") + data)
    return b"".join(parts) + b"\0" + told.get(7, b"")


def _comment(data: bytes) -> str:
    """A rule's comment: the first kind (NFTNL_UDATA_RULE_COMMENT) of what nft keeps beside a rule."""
    at = 0
    while at + 2 <= len(data):
        kind, length = data[at], data[at + 1]
        if kind == 0:
            return _text(data[at + 2 : at + 2 + length])
        at += 2 + length
    return ""
