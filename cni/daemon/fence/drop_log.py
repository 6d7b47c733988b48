"""The log rules of `drops`: while it is asked, a rule before each rule that drops sends a sample of its packets to
NFLOG. Pure.

A log rule is added and deleted by its place, so the counters of the rules that drop go on, and its rate is limited, so
a flood costs the kernel one comparison of a counter for each packet. It has no verdict: what the fence decides does not
depend on it, and every comparison with the desired rules leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cni.daemon.fence.model import TABLE
from cni.daemon.fence.rules import Chain

NAME = "sample for drops"
"""The comment of every log rule."""
GROUP = 9472
RATE = 20  # packets a second of each rule, and as many at once
SNAPLEN = 128  # bytes: an IPv6 header, a routing header and the ports
LONGEST = 127  # bytes of a prefix (NF_LOG_PREFIXLEN)
_HARMLESS = frozenset({"match", "limit", "log"})


class Place(NamedTuple):
    """The rule that dropped a packet."""

    family: str
    chain: str
    rule: str


def prefix(place: Place) -> str:
    """The prefix by which a logged packet names the rule."""
    return f"{place.family}/{place.chain}/{place.rule}"


def place_of(text: str) -> Place | None:
    """The rule that a prefix names; None for another program's."""
    parts = text.split("/", 2)
    return Place(*parts) if len(parts) == 3 else None


def missing(listing: Mapping[str, Mapping[str, Any] | None], chains: Iterable[Chain]) -> str:
    """The nft text that adds the log rules which the listing lacks; empty if none is missing."""
    matches = {(c.family, c.name, rule.name): rule.match for c in chains for rule in c.rules if rule.verdict == "drop"}
    lines, before = [], None
    for family, rule in _rules(listing):
        place = Place(family, rule["chain"], rule.get("comment", ""))
        match = matches.get(place)
        if match is not None and before != (place.family, place.chain, NAME):
            lines.append(_insertion(place, rule["handle"], match))
        before = place
    return "".join(lines)


def _insertion(place: Place, handle: int, match: str) -> str:
    log = f'log prefix "{prefix(place)[:LONGEST]}" snaplen {SNAPLEN} group {GROUP}'
    sample = f"limit rate {RATE}/second burst {RATE} packets {log}"
    words = (f"insert rule {place.family} {TABLE} {place.chain} handle {handle}", match, sample, f'comment "{NAME}"')
    return " ".join(filter(None, words)) + "\n"


def removal(listing: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The nft text that deletes every log rule of the listing."""
    return "".join(
        f"delete rule {family} {TABLE} {rule['chain']} handle {rule['handle']}\n"
        for family, rule in _rules(listing)
        if rule.get("comment") == NAME
    )


def _rules(listing: Mapping[str, Mapping[str, Any] | None]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for family, table in listing.items():
        for item in table["nftables"] if table else ():
            if "rule" in item:
                yield family, item["rule"]


def is_log_rule(rule: Mapping[str, Any]) -> bool:
    """Whether a rule of a listing is a log rule, and can do nothing but log."""
    return rule.get("comment") == NAME and all(_HARMLESS.issuperset(e) for e in rule.get("expr", ()))
