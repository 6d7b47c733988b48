"""The rules on this host that translate destinations or drop what is forwarded, of every program. Read only.

iptables-nft keeps its rules in nftables tables that nft lists only in part, so these are read by iptables itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from cni.errors import FenceFailed
from cni.host import iptables, nat_iptables, nat_nft, xtables
from cni.host.nat_rules import Base
from cni.host.nft import Nft

_TOOLS = {4: "iptables", 6: "ip6tables"}
_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_KINDS = (("nat", "prerouting"), ("nat", "output"), ("filter", "forward"))
_OF_IPTABLES = ("nat", "filter")


def read(nft: Nft, own: str) -> tuple[tuple[Base, ...], tuple[str, ...]]:
    """The base chains of all tables but `own`, and the tables that could not be read. Raises NftError."""
    found: list[Base] = []
    unread: list[str] = []
    for family, table in _tables(nft, own):
        try:
            found += _of_table(nft, family, table)
        except (FenceFailed, LookupError, TypeError, ValueError):
            unread.append(f"{family} {table}")
    for version, tool in _TOOLS.items():
        for table in _OF_IPTABLES:
            if xtables.exists(version, table):
                legacy = f"{tool}-legacy"
                try:
                    found += nat_iptables.bases(iptables.rules(legacy, table=table), version, table, legacy)
                except (FenceFailed, ValueError):
                    unread.append(f"{legacy} {table}")
    return tuple(found), tuple(unread)


def _tables(nft: Nft, own: str) -> Iterator[tuple[str, str]]:
    """The nftables tables with a base chain that matters here."""
    listing = nft.list_base_chains().get("nftables", ())
    chains = [item["chain"] for item in listing if "chain" in item]
    of = {
        (chain["family"], chain["table"]): None
        for chain in chains
        if (chain.get("type"), chain.get("hook")) in _KINDS and chain["family"] in _FAMILIES and chain["table"] != own
    }
    yield from of


def _of_table(nft: Nft, family: str, table: str) -> list[Base]:
    if table in _OF_IPTABLES and family != "inet":
        (version,) = _FAMILIES[family]
        tool = _TOOLS[version]
        tool = f"{tool}-nft" if shutil.which(f"{tool}-nft") else tool
        try:
            return nat_iptables.bases(iptables.rules(tool, table=table), version, table, tool)
        except FenceFailed:
            pass  # a table of that name that nft made
    return nat_nft.bases(nft.list_table(family, table) or {})


def version(nft: Nft) -> tuple[int, bytes]:
    """A value that changes with the rules; it costs next to nothing. Raises NftError."""
    return nft.generation(), b"".join(xtables.nat(version) for version in _TOOLS)
