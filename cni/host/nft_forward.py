"""Other programs' native nftables chains that drop what containers send, or what arrives for a port of the node, by
policy or by a rule.

What a container sends passes the hooks of a bridge, then those of IP; its questions for neighbours pass those of ARP. A
chain at any of these hooks can drop it, as one at the hook forward can.

An accept in another table does not override a drop, so the daemon cannot let these packets through: `status` and
`doctor` name table, chain and rule. `firewall_obstacles` and `input_obstacles` read the kernel; the rest is pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cni.host.forward_rules import Condition, Flow, Position, Rule, closes, denial
from cni.host.nft import Nft

DEVICES = "zl-*"  # every bridge and WireGuard device of the overlay (contract 4.2)
MOST = 200  # chains that are read in one look: a packet passes a few of them
_IP = ("ip", "ip6", "inet")
# The hooks that a packet passes on its way from one container to another, or to another network.
_PASSED = (
    *((family, hook) for hook in ("prerouting", "forward", "postrouting") for family in _IP),
    *(("bridge", hook) for hook in ("prerouting", "input", "forward", "output", "postrouting")),
    *(("arp", hook) for hook in ("input", "output")),
)
_OUTGOING = ("output", "postrouting")  # of a link layer: the container is the receiver
_NAME = re.compile(r"[\w./-]{1,128}", re.ASCII)  # what nft can express of the names that other programs chose
_IPTABLES = ("filter", {"forward": "FORWARD", "input": "INPUT"})  # iptables' own chains, evaluated from its listing
_KEYS = {
    ("meta", "iifname"): "iif",
    ("meta", "iif"): "iif",
    ("meta", "oifname"): "oif",
    ("meta", "oif"): "oif",
    ("meta", "l4proto"): "proto",
    ("ct", "state"): "state",
    ("ct", "status"): "status",
}
_ADDRESSES = {"saddr": "src", "daddr": "dst", "protocol": "proto"}
_TRANSPORTS = ("tcp", "udp", "sctp", "dccp", "udplite", "icmp", "icmpv6", "igmp", "esp", "ah", "comp")
_VERDICTS = {"accept": "accept", "drop": "drop", "reject": "drop", "return": "return", "continue": "continue"}
_SILENT = ("counter", "log", "mangle", "comment")  # statements that match every packet


_Chain = Mapping[str, Any]
_Rules = Callable[[str], Sequence[Rule]]


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
    """The chains of tables other than `own` and of iptables' FORWARD that drop what containers send in a family of
    `clusters`, at any hook that it passes. Raises NftError.
    """
    obstacles: dict[Obstacle, None] = {}
    for chain, rules in _at_hooks(nft, _PASSED, own):
        if chain["type"] == "filter" or chain["hook"] == "forward":
            obstacles |= dict.fromkeys(_obstacles(nft, chain, rules, clusters))
    return list(obstacles)


def _obstacles(nft: Nft, chain: _Chain, rules: _Rules, clusters: Sequence[str]) -> Iterator[Obstacle]:
    """What of a base chain drops: in a family of IP, what drops each packet that no rule before accepts; in another,
    where most conditions are not evaluated, what drops every packet.
    """
    family, table, name = chain["family"], chain["table"], chain["name"]
    for cluster in clusters:
        flow, policy_drops = _flow(chain, cluster), chain.get("policy") == "drop"
        if _is_of_other_version(family, cluster) or (family not in _IP and not closes(rules, name, flow, policy_drops)):
            continue
        place = denial(rules, name, flow)
        if place.rule is not None:
            text = nft.rule_text(family, table, place.chain, int(place.rule.text))
            yield Obstacle(f"{family} {table} {place.chain}", text)
        elif policy_drops and place == Position(name, len(rules(name)), None):
            yield Obstacle(f"{family} {table} {name}", "")


def _flow(chain: _Chain, cluster: str) -> Flow:
    """What containers of a range send, as a chain sees it."""
    source = "" if chain["family"] == "arp" else cluster
    if chain["family"] not in _IP and chain["hook"] in _OUTGOING:
        return Flow(oif=DEVICES, dst=source)
    return Flow(iif=DEVICES, src=source)


def _is_of_other_version(family: str, address: str) -> bool:
    """Whether chains of the family see no packet of the address's IP version."""
    return family in ("ip", "ip6", "arp") and (family == "ip6") is not (":" in address)


def input_obstacles(nft: Nft, flow: Flow, own: str) -> list[Obstacle]:
    """`hook_obstacles` at the hook input. Raises NftError."""
    return hook_obstacles(nft, "input", flow, own)


def hook_obstacles(nft: Nft, hook: str, flow: Flow, own: str) -> list[Obstacle]:
    """The chains at a hook, of tables other than `own` and of iptables, that drop all packets of the flow. Raises
    NftError."""
    obstacles = []
    for chain, rules in _at_hooks(nft, [(family, hook) for family in _IP], own):
        family, table, name = chain["family"], chain["table"], chain["name"]
        if flow.src and _is_of_other_version(family, flow.src):
            continue
        if closes(rules, name, flow, chain.get("policy") == "drop"):
            place = denial(rules, name, flow)
            text = place.rule and nft.rule_text(family, table, place.chain, int(place.rule.text))
            obstacles.append(Obstacle(f"{family} {table} {place.chain}", text or ""))
    return obstacles


def dropping_own(listing: Mapping[str, Any]) -> list[str]:
    """Other programs' native chains that drop by policy what the host gets or sends, as `family table chain (hook)`.

    `listing` is `Nft.list_base_chains()`. iptables' own chains at the hook input are not among them.
    """
    chains = [item["chain"] for item in listing.get("nftables", ()) if "chain" in item]
    return sorted(
        f"{c['family']} {c['table']} {c['name']} ({c['hook']})"
        for c in chains
        if c["family"] in _IP
        and c.get("hook") in ("input", "output")
        and c.get("policy") == "drop"
        and not (c["family"] in ("ip", "ip6") and (c["table"], c["name"]) == ("filter", "INPUT"))
    )


def _at_hooks(nft: Nft, hooks: Collection[tuple[str, str]], own: str) -> Iterator[tuple[_Chain, _Rules]]:
    """Other programs' base chains at hooks (family and name), each with what reads the rules of its table's chains."""
    for item in nft.list_base_chains().get("nftables", ()):
        chain = item.get("chain", {})
        hook = chain.get("hook", "")
        if (chain.get("family"), hook) not in hooks:
            continue
        family, table = chain["family"], chain["table"]
        of_iptables = family in ("ip", "ip6") and (table, chain["name"]) == (_IPTABLES[0], _IPTABLES[1].get(hook))
        if table != own and not of_iptables and _NAME.fullmatch(table):
            yield chain, _reader(lambda name, f=family, t=table: nft.list_chain(f, t, name))  # type: ignore[misc]


def _reader(list_chain: Callable[[str], Mapping[str, Any] | None]) -> _Rules:
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
            conditions += _conditions(what["op"], what["left"], what["right"])
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
        own = (*conditions, *_conditions("==", what["key"], key))
        if kind in _VERDICTS:
            yield Rule(chain, own, _VERDICTS[kind], "", text)  # type: ignore[arg-type]
        elif kind in ("jump", "goto"):
            yield Rule(chain, own, kind, value["target"], text)


def _conditions(op: str, left: Any, right: Any) -> Iterator[Condition]:
    """A match of a field, and the transport protocol that a field implies."""
    payload = left.get("payload", {}) if isinstance(left, Mapping) else {}
    if isinstance(payload, Mapping) and payload.get("protocol") in _TRANSPORTS:
        yield Condition("proto", (payload["protocol"],))
    kind = _kind(left)
    values = tuple(_values(right))
    if kind is None or not values or op not in ("==", "!=", "in") or (kind == "state" and "*" in values):
        yield Condition("other")
    else:
        yield Condition(kind, values, op == "!=")  # type: ignore[arg-type]


def _kind(left: Any) -> str | None:
    if not isinstance(left, Mapping) or len(left) != 1:
        return None
    ((name, what),) = left.items()
    if not isinstance(what, Mapping):
        return None
    if name == "payload" and what.get("protocol") in ("ip", "ip6"):
        return _ADDRESSES.get(str(what.get("field")))
    if name == "payload" and what.get("field") == "dport":
        return "dport"
    return _KEYS.get((name, str(what.get("key"))))


def _values(right: Any) -> Iterator[str]:
    """The values of a match; none if one of them is not known here (a named set)."""
    items = right.get("set", [right]) if isinstance(right, Mapping) else right if isinstance(right, list) else [right]
    texts = []
    for item in items:
        if isinstance(item, Mapping) and "prefix" in item:
            texts.append(f"{item['prefix']['addr']}/{item['prefix']['len']}")
        elif isinstance(item, Mapping) and "range" in item:
            texts.append("-".join(map(str, item["range"])))
        elif isinstance(item, int) or (isinstance(item, str) and not item.startswith("@")):
            texts.append(str(item))
        else:
            return
    yield from texts
