"""Pairs of nodes that this node relays for: their ports, and how nftables joins them. Pure.

A pair has two UDP ports of this node, one for each side. When both sides have spoken, NAT joins the ports: a datagram
from one side's source to its port goes to the other side's source, from the other side's port. No header is added, and
no datagram reaches user space. The maps' elements are the pairs; the rules never change.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable

import msgspec

TABLE = "zlayer_relay"
RELAYED = "relayed"  # the comment of the rule that counts
TOKEN = 8  # bytes
IDLE = 1800.0  # seconds after its last request until a pair is dropped
PRIORITY = 90  # of the source's translation: before the fence's and other programs' masquerading (100)


class RelayPair(msgspec.Struct, frozen=True, kw_only=True):
    """A pair. `sides`: the nodes' names in hexadecimal digits, sorted; `ports`: one for each side; `sources`: where
    each side was seen, `address:port`, "" if it was not; `locals`: this node's address at which it was; `asked`: when a
    side last asked for the pair, in seconds of the boot clock."""

    sides: tuple[str, str]
    ports: tuple[int, int]
    sources: tuple[str, str] = ("", "")
    locals: tuple[str, str] = ("", "")
    asked: float = 0.0

    @property
    def key(self) -> str:
        """The pair's key among all pairs."""
        return " ".join(self.sides)

    @property
    def is_joined(self) -> bool:
        """Whether both sides were seen."""
        return all(self.sources)


def usable_ports(text: str) -> range:
    """The ports of `FIRST-LAST`: at least two. Raises ValueError."""
    first, dash, last = text.partition("-")
    if not (dash and first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise ValueError("not FIRST-LAST, such as 40000-40199")
    ports = range(int(first), int(last) + 1)
    if not 1024 <= int(first) < int(last) <= 65535:
        raise ValueError("two ports at least between 1024 and 65535 are needed, the lower one first")
    return ports


def new_pair(one: str, other: str, taken: Collection[int], ports: range) -> RelayPair | None:
    """A pair of two nodes with two free ports; None if no two are free."""
    free = [port for port in ports if port not in taken][:2]
    if len(free) < 2:
        return None
    first, second = sorted((one, other))
    return RelayPair(sides=(first, second), ports=(free[0], free[1]))


def bound(pair: RelayPair, side: int, source: str, local: str) -> RelayPair:
    """The pair with one side's source."""
    sources, locals_ = list(pair.sources), list(pair.locals)
    sources[side], locals_[side] = source, local
    return msgspec.structs.replace(pair, sources=(sources[0], sources[1]), locals=(locals_[0], locals_[1]))


def token(secret: bytes, source: str, port: int, name: bytes) -> bytes:
    """What a node must send back from `source` to be bound to `port`: a recorded message is of no use elsewhere."""
    text = f"{source} {port}".encode() + name
    return hmac.digest(secret, text, hashlib.sha256)[:TOKEN]


def ruleset(pairs: Iterable[RelayPair]) -> str:
    """The whole table as nft text, replaced in one transaction. Flows that are tracked already go on meanwhile."""
    joined = [pair for pair in pairs if pair.is_joined]
    ports = ", ".join(str(port) for pair in joined for port in pair.ports)
    count = f'fib daddr type local udp dport {{ {ports} }} counter comment "{RELAYED}"' if ports else ""
    return f"""\
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
    map to {{
        type ipv4_addr . inet_service . inet_service : ipv4_addr . inet_service
        {_elements(line for pair in joined for line in _to(pair))}
    }}
    map from {{
        type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr . inet_service
        {_elements(line for pair in joined for line in _from(pair))}
    }}
    chain count {{
        type filter hook prerouting priority -290; policy accept;
        {count}
    }}
    chain prerouting {{
        type nat hook prerouting priority -110; policy accept;
        fib daddr type local meta l4proto udp dnat ip to ip saddr . udp sport . udp dport map @to
    }}
    chain postrouting {{
        type nat hook postrouting priority {PRIORITY}; policy accept;
        ct status dnat meta l4proto udp snat ip to ip saddr . udp sport . ip daddr . udp dport map @from
    }}
}}
"""


def no_ruleset() -> str:
    """Removes the table. Idempotent."""
    return f"table ip {TABLE}\ndelete table ip {TABLE}\n"


def flows(pair: RelayPair) -> list[tuple[str, str, int]]:
    """What opens a tracked flow through the pair: a source, this node's address and its port."""
    sides = zip(pair.sources, pair.locals, pair.ports, strict=True)
    return [(source, local, port) for source, local, port in sides if source]


def _elements(lines: Iterable[str]) -> str:
    text = ", ".join(lines)
    return f"elements = {{ {text} }}" if text else ""


def _to(pair: RelayPair) -> list[str]:
    (one, two), (first, second) = map(_dotted, pair.sources), pair.ports
    return [f"{one} . {first} : {two}", f"{two} . {second} : {one}"]


def _from(pair: RelayPair) -> list[str]:
    (one, two), (first, second) = map(_dotted, pair.sources), pair.ports
    return [f"{one} . {two} : {pair.locals[1]} . {second}", f"{two} . {one} : {pair.locals[0]} . {first}"]


def _dotted(source: str) -> str:
    address, _, port = source.rpartition(":")
    return f"{address} . {port}"


def chosen(one: bytes, other: bytes, relays: Iterable[bytes], most: int) -> list[bytes]:
    """The relays of a pair: both sides choose the same ones without a word, and pairs spread over all relays."""
    first, second = sorted((one, other))
    return sorted(relays, key=lambda relay: hashlib.blake2s(first + second + relay).digest())[:most]
