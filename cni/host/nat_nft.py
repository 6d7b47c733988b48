"""The rules of a native nftables table, from its listing (libnftables-json(5)), as values of `nat_rules.py`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cni.host.nat_rules import Action, Base, Match, NatRule, Target

_VERSIONS = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_ADDRESSES = {"saddr": "src", "daddr": "dst", "protocol": "proto", "nexthdr": "proto"}
_META = {"l4proto": "proto", "iifname": "iif", "iif": "iif", "nfproto": "nfproto"}
_TRANSPORTS = ("tcp", "udp", "sctp", "dccp", "udplite")
_ACTIONS: dict[str, Action] = {"accept": "accept", "drop": "drop", "reject": "drop", "return": "return"}
_SILENT = ("counter", "log", "mangle", "set", "comment", "notrack")  # statements that match every packet
_FAMILIES = {"ipv4": "0.0.0.0/0", "ipv6": "::/0"}
_CHANCE = ("numgen", "jhash", "symhash")  # keys that choose one of all entries
_UNKNOWN = Match("unknown")


def bases(listing: Mapping[str, Any]) -> list[Base]:
    """The base chains of a table that may translate destinations, or drop what is forwarded."""
    items = listing.get("nftables", ())
    sets = {i[kind]["name"]: i[kind].get("elem", ()) for i in items for kind in ("set", "map") if kind in i}
    chains: dict[str, list[NatRule]] = {i["chain"]["name"]: [] for i in items if "chain" in i}
    for item in items:
        if "rule" in item:
            chains.setdefault(item["rule"]["chain"], []).extend(_rules(item["rule"].get("expr", ()), sets))
    found = []
    for item in items:
        chain = item.get("chain", {})
        of = (chain.get("type"), chain.get("hook"))
        if of in (("nat", "prerouting"), ("nat", "output"), ("filter", "forward")):
            name = f"{chain['family']} {chain['table']} {chain['name']}"
            versions, drops = _VERSIONS.get(chain["family"], ()), chain.get("policy") == "drop"
            found.append(Base(of[1], of[0] == "nat", chain["prio"], versions, chain["name"], chains, drops, name))
    return found


def _rules(expressions: Sequence[Mapping[str, Any]], sets: Mapping[str, Any]) -> Iterator[NatRule]:
    """One rule, or one for each entry of its map. A rule ends at a verdict map, for packets without an entry too."""
    tests: list[Match] = []
    for expression in expressions:
        ((kind, what),) = expression.items()
        if kind == "match":
            tests += _tests(what["left"], what["op"], what["right"], sets)
        elif kind == "vmap":
            for own, verdict in _entries(what, sets):
                yield _verdict((*tests, *own), verdict)
            return
        elif kind == "dnat":
            yield from _translations(tuple(tests), what, sets)
            return
        elif kind == "redirect":
            yield NatRule(tuple(tests), "translate", target=Target("", _port(what)))
            return
        elif kind in _ACTIONS or kind in ("jump", "goto"):
            yield _verdict(tuple(tests), expression)
            return
        elif kind not in _SILENT:
            tests.append(_UNKNOWN)
    if tests or expressions:
        yield NatRule(tuple(tests), "continue")


def _verdict(tests: tuple[Match, ...], verdict: Mapping[str, Any]) -> NatRule:
    ((kind, what),) = verdict.items()
    if kind in ("jump", "goto"):
        return NatRule(tests, kind, chain=what["target"])  # type: ignore[arg-type]
    return NatRule(tests, _ACTIONS.get(kind, "continue"))


def _entries(what: Mapping[str, Any], sets: Mapping[str, Any]) -> Iterator[tuple[tuple[Match, ...], Any]]:
    """The entries of a map: the tests that select each, and its value. Of a choice by chance the last is certain."""
    data = what.get("data")
    entries = list(_elements(data, sets))
    chance = isinstance(what["key"], Mapping) and any(key in what["key"] for key in _CHANCE)
    for at, (key, value) in enumerate(entries):
        if chance:
            yield (() if at == len(entries) - 1 else (_UNKNOWN,)), value
        else:
            yield tuple(_tests(what["key"], "==", key, sets)), value


def _translations(tests: tuple[Match, ...], what: Any, sets: Mapping[str, Any]) -> Iterator[NatRule]:
    address = what.get("addr") if isinstance(what, Mapping) else None
    choices = [((), address)] if not isinstance(address, Mapping) else list(_entries(address.get("map", {}), sets))
    for own, value in choices:
        parts = value.get("concat", []) if isinstance(value, Mapping) else [value]
        if not parts or not isinstance(parts[0], str):
            yield NatRule((*tests, _UNKNOWN), "continue")
            continue
        port = parts[1] if len(parts) > 1 and isinstance(parts[1], int) else _port(what)
        yield NatRule((*tests, *own), "translate", target=Target(parts[0], port))


def _port(what: Any) -> int:
    port = what.get("port", 0) if isinstance(what, Mapping) else 0
    return port if isinstance(port, int) else 0


def _elements(data: Any, sets: Mapping[str, Any]) -> Iterator[Any]:
    """The elements of a set or map, anonymous or by name, without their comments and timeouts."""
    found = (
        sets.get(data[1:], ()) if isinstance(data, str) else data.get("set", ()) if isinstance(data, Mapping) else ()
    )
    for element in found:
        if isinstance(element, list) and len(element) == 2:  # of a map: key and value
            yield [_bare(element[0]), element[1]]
        else:
            yield _bare(element)


def _bare(element: Any) -> Any:
    return element["elem"]["val"] if isinstance(element, Mapping) and "elem" in element else element


def _tests(left: Any, op: str, right: Any, sets: Mapping[str, Any]) -> Iterator[Match]:
    """The tests of one match: a field, or several that a set or map combines."""
    if isinstance(left, Mapping) and "concat" in left:
        if isinstance(right, Mapping) and "concat" in right and op == "==":
            for part, value in zip(left["concat"], right["concat"], strict=False):
                yield from _tests(part, op, value, sets)
        else:
            yield _UNKNOWN
        return
    field = _field(left)
    payload = left.get("payload", {}) if isinstance(left, Mapping) else {}
    if isinstance(payload, Mapping) and payload.get("protocol") in _TRANSPORTS:
        yield Match("proto", (payload["protocol"],))
    values = _values(right, sets)
    if field is None or values is None or op not in ("==", "!=", "in"):
        yield _UNKNOWN
    elif field == "nfproto":
        yield Match("dst", tuple(_FAMILIES.get(value, value) for value in values), op == "!=")
    else:
        yield Match(field, values, op == "!=")  # type: ignore[arg-type]


def _field(left: Any) -> str | None:
    """The field of `Match` that an expression stands for; `nfproto` for the IP version; None for any other."""
    if not isinstance(left, Mapping) or len(left) != 1:
        return None
    ((kind, what),) = left.items()
    if not isinstance(what, Mapping):
        return None
    match kind:
        case "payload":
            return _of_payload(str(what.get("protocol")), str(what.get("field")))
        case "fib" if what.get("result") == "type":
            flags = what.get("flags")
            of = flags if isinstance(flags, str) else "".join(flags) if isinstance(flags, list) else ""
            return f"{of}-type" if of in ("saddr", "daddr") else None
        case "meta":
            return _META.get(str(what.get("key")))
    return "state" if kind == "ct" and what.get("key") == "state" else None


def _of_payload(protocol: str, name: str) -> str | None:
    if protocol in ("ip", "ip6"):
        return _ADDRESSES.get(name)
    return "dport" if name == "dport" else None


def _values(right: Any, sets: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The values of a match as texts; None if one of them is not understood."""
    if isinstance(right, str) and right.startswith("@"):
        items: list[Any] = list(_elements(right, sets)) if right[1:] in sets else [None]
    elif isinstance(right, Mapping) and "set" in right:
        items = list(_elements(right, sets))
    else:
        items = right if isinstance(right, list) else [right]
    texts = [_text(item) for item in items]
    return None if None in texts else tuple(text for text in texts if text is not None)


def _text(item: Any) -> str | None:
    if isinstance(item, Mapping):
        if "prefix" in item:
            return f"{item['prefix']['addr']}/{item['prefix']['len']}"
        return "-".join(map(str, item["range"])) if "range" in item else None
    return str(item) if isinstance(item, int | str) else None
