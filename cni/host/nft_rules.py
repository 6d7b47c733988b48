"""The content of nftables tables: flags, chains with their hooks and policies, every rule's body, and the types of
sets.

It is read from the kernel's dump in the kernel's encoding, so that the dumps of two tables are equal exactly if their
rules are. Text cannot be compared: the kernel lists rules in other words than they were loaded in. Omitted is what
changes by itself (counters, handles, reference counts, members of named sets). An anonymous set, which a rule like
`tcp dport { 80, 443 }` creates, appears in the rule's body by its content: its number depends on what else was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cni.host import nft_dump
from cni.host.nft_dump import CHAINS, ELEMENTS, FAMILIES, RULES, SETS, TABLES
from cni.host.nlmsg import attributes, items
from cni.host.nlmsg import string as _text

_DORMANT = 0x1  # NFT_TABLE_F_DORMANT
_ANONYMOUS = 0x1  # NFT_SET_ANONYMOUS
# flags, types and lengths, description, timeout, statements of elements
_SET_ATTRIBUTES = (3, 4, 5, 6, 7, 9, 11, 17, 18)


@dataclass(frozen=True, slots=True)
class RuleSeen:
    """One rule: its comment, and its expressions and user data in the kernel's encoding."""

    name: str
    body: bytes

    def expressions(self) -> list[tuple[str, bytes]]:
        """The name and the content of each expression, in order."""
        found, at = [], 0
        while (end := self.body.index(b"\0", at)) > at:
            size = int.from_bytes(self.body[end + 1 : end + 5], "big")
            found.append((self.body[at:end].decode(errors="replace"), self.body[end + 5 : end + 5 + size]))
            at = end + 5 + size
        return found


@dataclass(frozen=True, slots=True)
class ChainSeen:
    """One chain. `hook`: hook, priority and type in the kernel's encoding, empty for a chain that other chains call."""

    hook: bytes = b""
    policy: bytes = b""
    rules: tuple[RuleSeen, ...] = ()


@dataclass(frozen=True, slots=True)
class TableSeen:
    """One table. `sets`: the type of each named set, without its content."""

    flags: int = 0
    chains: Mapping[str, ChainSeen] = field(default_factory=dict)
    sets: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def dormant(self) -> bool:
        """Whether the table's hooks are switched off: it enforces nothing."""
        return bool(self.flags & _DORMANT)


Tables = Mapping[str, TableSeen | None]
"""The table of each family ("inet", "bridge"); None where it does not exist."""


def read(dumper: nft_dump.Dumper, table: str) -> Tables | None:
    """The tables of that name; None if a transaction was committed during the dump. Raises OSError."""
    try:
        return {family: _table(dumper, number, table) for family, number in FAMILIES.items()}
    except nft_dump.Disturbed:
        return None


def _table(dumper: nft_dump.Dumper, family: int, table: str) -> TableSeen | None:
    tables = [attributes(data) for data in dumper.dump(TABLES, family, table)]
    if not tables:
        return None
    sets, anonymous = {}, {}
    for data in dumper.dump(SETS, family, table):
        attrs = attributes(data)
        name = attrs[2].rstrip(b"\0")
        what = b"".join(bytes([kind]) + attrs[kind] for kind in _SET_ATTRIBUTES if kind in attrs)
        if int.from_bytes(attrs.get(3, b""), "big") & _ANONYMOUS:
            anonymous[name] = what
        else:
            sets[name.decode(errors="replace")] = what
    for name, what in anonymous.items():
        anonymous[name] = what + _elements(dumper, family, table, name.decode())
    chains: dict[str, tuple[bytes, bytes, list[RuleSeen]]] = {}
    for data in dumper.dump(CHAINS, family, table):
        attrs = attributes(data)
        hook = b"".join(attrs.get(kind, b"") for kind in (4, 7, 10)) if 4 in attrs else b""
        chains[_text(attrs[3])] = (hook, attrs.get(5, b"") if hook else b"", [])
    for data in dumper.dump(RULES, family, table):
        attrs = attributes(data)
        if (chain := chains.get(_text(attrs[2]))) is not None:
            chain[2].append(RuleSeen(comment_of(attrs.get(7, b"")), _body(attrs, anonymous)))
    return TableSeen(
        int.from_bytes(tables[0].get(2, b""), "big"),
        {name: ChainSeen(hook, policy, tuple(rules)) for name, (hook, policy, rules) in chains.items()},
        sets,
    )


def _elements(dumper: nft_dump.Dumper, family: int, table: str, name: str) -> bytes:
    """The content of an anonymous set, sorted: the kernel's order is that of a hash table."""
    elements = []
    for data in dumper.dump(ELEMENTS, family, table, name):
        for kind, value in items(data):
            if kind == 3:
                elements += [element for _, element in items(value)]
    return b"".join(sorted(elements))


def _body(attrs: Mapping[int, bytes], anonymous: Mapping[bytes, bytes]) -> bytes:
    parts = []
    for _, expression in items(attrs.get(4, b"")):
        name, data = b"", b""
        for kind, value in items(expression):
            if kind == 1:
                name = value
            elif kind == 2:
                data = value
        if name == b"counter\0":
            data = b""
        elif b"__" in data:
            data = _by_content(data, anonymous)
        parts.append(name + len(data).to_bytes(4, "big") + data)
    return b"".join(parts) + b"\0" + attrs.get(7, b"")


def _by_content(data: bytes, anonymous: Mapping[bytes, bytes]) -> bytes:
    """The attributes of an expression with an anonymous set's content in place of its name. The whole attribute is
    replaced: the name's length depends on the set's number."""
    parts = []
    for kind, value in items(data):
        content = anonymous.get(value.rstrip(b"\0"), value)
        parts.append(bytes([kind]) + len(content).to_bytes(4, "big") + content)
    return b"".join(parts)


def comment_of(data: bytes) -> str:
    """A rule's comment: the first type (NFTNL_UDATA_RULE_COMMENT) of the user data that nft stores with a rule."""
    at = 0
    while at + 2 <= len(data):
        kind, length = data[at], data[at + 1]
        if kind == 0:
            return _text(data[at + 2 : at + 2 + length])
        at += 2 + length
    return ""
