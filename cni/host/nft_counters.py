"""The counters of the rules of nftables tables, from the kernel's dump of rules alone.

libnftables reads the elements of all sets before it lists a rule, also where it prints none of them: with 2,000
attachments that takes 100 ms and more, and the dump of the rules 10.
"""

from __future__ import annotations

from collections.abc import Mapping

from cni.host import nft_dump
from cni.host.nft_rules import comment_of
from cni.host.nlmsg import attributes, items
from cni.host.nlmsg import string as _text

ATTEMPTS = 3  # reads while other transactions are committed

Counts = dict[tuple[str, str, str], tuple[int, int]]
"""Packets and bytes by (family, chain, comment of the rule); of rules that share all three, the sum."""


def read(table: str, families: Mapping[str, int] = nft_dump.FAMILIES) -> Counts:
    """The counters of the tables of that name, of the calling thread's namespace; empty without tables.
    `families`: those of the tables, by name, with the kernel's numbers.

    While attaches commit transactions a dump may miss a rule: what several dumps have is joined. Raises OSError.
    """
    dumper = nft_dump.Dumper()
    try:
        found: dict[tuple[str, str, str, bytes], tuple[int, int]] = {}
        for _ in range(ATTEMPTS):
            try:
                for family, number in families.items():
                    _read_family(dumper, family, number, table, found)
                break
            except nft_dump.Disturbed:
                continue
    finally:
        dumper.close()
    counts: Counts = {}
    for (family, chain, comment, _), (packets, octets) in found.items():
        before = counts.get((family, chain, comment), (0, 0))
        counts[family, chain, comment] = before[0] + packets, before[1] + octets
    return counts


def _read_family(
    dumper: nft_dump.Dumper,
    family: str,
    number: int,
    table: str,
    found: dict[tuple[str, str, str, bytes], tuple[int, int]],
) -> None:
    """Add the counters of one table by chain, comment and handle of the rule. Raises OSError, Disturbed."""
    for data in dumper.dump(nft_dump.RULES, number, table):
        attrs = attributes(data)
        counter = _counter(attrs.get(4, b""))
        if counter is not None:
            found[family, _text(attrs[2]), comment_of(attrs.get(7, b"")), attrs.get(3, b"")] = counter


def _counter(expressions: bytes) -> tuple[int, int] | None:
    """Packets and bytes of a rule's counter; None without one (NFTA_COUNTER_BYTES 1, NFTA_COUNTER_PACKETS 2)."""
    for _, expression in items(expressions):
        parts = attributes(expression)
        if parts.get(1) == b"counter\0":
            values = attributes(parts.get(2, b""))
            return int.from_bytes(values.get(2, b""), "big"), int.from_bytes(values.get(1, b""), "big")
    return None
