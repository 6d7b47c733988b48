"""Other programs' native nftables chains that drop what containers send, by policy or by a rule.

An accept in another table does not override a drop, so the daemon cannot let these packets through: `status` and
`doctor` name table, chain and rule. `firewall_obstacles` reads the kernel; the rest is pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cni.host.forward_rules import Condition, Flow, Position, Rule, denial
from cni.host.nft import Nft

DEVICES = "zl-*"  # every bridge and WireGuard device of the overlay (contract 4.2)
MOST = 200  # chains that are read in one look: a packet passes a few of them
_NAME = re.compile(r"[\w./-]{1,128}", re.ASCII)  # what nft can express of the names that other programs chose
_IPTABLES = ("filter", "FORWARD")  # opened by `iptables.py`
_KEYS = {("meta", "iifname"): "iif", ("meta", "oifname"): "oif", ("ct", "state"): "state"}
_ADDRESSES = {"saddr": "src", "daddr": "dst"}
_VERDICTS = {"accept": "accept", "drop": "drop", "reject": "drop", "return": "return", "continue": "continue"}
_SILENT = ("counter", "log", "mangle", "comment")  # statements that match every packet


class Obstacle(NamedTuple):
    """A chain that drops: `chain` is `family table name`, `rule` the rule that does, empty for its policy."""

    chain: str
    rule: str

    def describe(self, clusters: Iterable[str]) -> str:
        """What drops, and what of firewalld lets it through."""
        how = f"by its rule `{self.rule}`" if self.rule else "by policy"
        text = f"the nftables chain {self.chain} of another program drops what containers send, {how}"
        if self.chain.split()[1] != "firewalld":
            return f"{text}; accept the overlay's range in that chain before"
        sources = " ".join(f"--add-source={cluster}" for cluster in clusters)
        return f"{text}; `firewall-cmd --permanent --zone=trusted {sources}` and `firewall-cmd --reload` let it through"


def firewall_obstacles(nft: Nft, clusters: Sequence[str], own: str) -> list[Obstacle]:
    """The chains at the hook forward, of tables other than `own` and of iptables' FORWARD, that drop what containers
    send in a family of `clusters`. Raises NftError.
    """
    obstacles: dict[Obstacle, None] = {}
    for chain in _at_forward(nft.list_base_chains(), own):
        family, table, name = chain["family"], chain["table"], chain["name"]
        if not _NAME.fullmatch(table):
            continue
        rules = _reader(lambda chain_name, f=family, t=table: nft.list_chain(f, t, chain_name))  # type: ignore[misc]
        for cluster in clusters:
            if family in ("ip", "ip6") and (family == "ip6") is not (":" in cluster):
                continue
            place = denial(rules, name, Flow(iif=DEVICES, src=cluster))
            if place.rule is not None:
                text = nft.rule_text(family, table, place.chain, int(place.rule.text))
                obstacles[Obstacle(f"{family} {table} {place.chain}", text)] = None
            elif chain.get("policy") == "drop" and place == Position(name, len(rules(name)), None):
                obstacles[Obstacle(f"{family} {table} {name}", "")] = None
    return list(obstacles)


def dropping_input(listing: Mapping[str, Any]) -> list[str]:
    """Other programs' native chains that drop incoming packets by policy, as `family table chain`.

    `listing` is `Nft.list_base_chains()`. iptables' own chains are not among them.
    """
    chains = [item["chain"] for item in listing.get("nftables", ()) if "chain" in item]
    return sorted(
        f"{c['family']} {c['table']} {c['name']}"
        for c in chains
        if (c.get("hook"), c.get("policy")) == ("input", "drop")
        and not (c["family"] in ("ip", "ip6") and (c["table"], c["name"]) == ("filter", "INPUT"))
    )


def _at_forward(listing: Mapping[str, Any], own: str) -> Iterator[Mapping[str, Any]]:
    for item in listing.get("nftables", ()):
        chain = item.get("chain", {})
        of_iptables = chain.get("family") in ("ip", "ip6") and (chain["table"], chain["name"]) == _IPTABLES
        of_others = chain.get("hook") == "forward" and chain["table"] != own and not of_iptables
        if of_others and chain["family"] in ("ip", "ip6", "inet"):
            yield chain


def _reader(list_chain: Callable[[str], Mapping[str, Any] | None]) -> Callable[[str], Sequence[Rule]]:
    """Reads each chain once, and `MOST` chains at most; the others count as empty."""
    read: dict[str, tuple[Rule, ...]] = {}

    def rules(chain: str) -> Sequence[Rule]:
        if chain not in read:
            readable = len(read) < MOST and _NAME.fullmatch(chain)
            read[chain] = tuple(rules_of(list_chain(chain) or {})) if readable else ()
        return read[chain]

    return rules


def rules_of(listing: Mapping[str, Any]) -> Iterator[Rule]:
    """The rules of one chain, as in libnftables-json(5); their text is their handle. A verdict map is a rule for each
    of its keys.
    """
    for item in listing.get("nftables", ()):
        if "rule" in item:
            yield from _rule(item["rule"])


def _rule(rule: Mapping[str, Any]) -> Iterator[Rule]:
    conditions: list[Condition] = []
    chain, text = rule["chain"], str(rule.get("handle", 0))
    for statement in rule.get("expr", ()):
        ((kind, what),) = statement.items()
        if kind == "match":
            conditions.append(_condition(what["op"], what["left"], what["right"]))
        elif kind == "vmap":
            yield from _map(chain, text, conditions, what)
            return
        elif kind in _VERDICTS:
            yield Rule(chain, tuple(conditions), _VERDICTS[kind], "", text)  # type: ignore[arg-type]
            return
        elif kind in ("jump", "goto"):
            yield Rule(chain, tuple(conditions), kind, what["target"], text)
            return
        elif kind not in _SILENT:
            conditions.append(Condition("other"))


def _map(chain: str, text: str, conditions: Sequence[Condition], what: Mapping[str, Any]) -> Iterator[Rule]:
    data = what.get("data")
    entries = data.get("set", ()) if isinstance(data, Mapping) else ()  # a named map's content is not followed
    for key, verdict in entries:
        ((kind, value),) = verdict.items()
        own = (*conditions, _condition("==", what["key"], key))
        if kind in _VERDICTS:
            yield Rule(chain, own, _VERDICTS[kind], "", text)  # type: ignore[arg-type]
        elif kind in ("jump", "goto"):
            yield Rule(chain, own, kind, value["target"], text)


def _condition(op: str, left: Any, right: Any) -> Condition:
    kind = _kind(left)
    values = tuple(_values(right))
    if kind is None or not values or op not in ("==", "!=", "in") or (kind == "state" and "*" in values):
        return Condition("other")
    return Condition(kind, values, op == "!=")  # type: ignore[arg-type]


def _kind(left: Any) -> str | None:
    if not isinstance(left, Mapping) or len(left) != 1:
        return None
    ((name, what),) = left.items()
    if not isinstance(what, Mapping):
        return None
    if name == "payload" and what.get("protocol") in ("ip", "ip6"):
        return _ADDRESSES.get(str(what.get("field")))
    return _KEYS.get((name, str(what.get("key"))))


def _values(right: Any) -> Iterator[str]:
    """The values of a match; none if one of them is not known here (a named set, a range)."""
    items = right.get("set", [right]) if isinstance(right, Mapping) else right if isinstance(right, list) else [right]
    texts = []
    for item in items:
        if isinstance(item, Mapping) and "prefix" in item:
            texts.append(f"{item['prefix']['addr']}/{item['prefix']['len']}")
        elif isinstance(item, str) and not item.startswith("@"):
            texts.append(item)
        else:
            return
    yield from texts
