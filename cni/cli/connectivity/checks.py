"""The cells of the test: which kinds of packets go from where to where, and what should become of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

TCP, BULK, LARGE, SIZES = "tcp", "tcp 1 MiB", "udp 60 kB", "mtu"
ECHO, ANSWER, QUESTION = "echo", "answer", "question"
FULL = (TCP, SIZES, LARGE, BULK)
"""The kinds between two namespaces that should reach each other, in order: what a later one means depends on the
earlier."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """From one place to an address of another. `should`: whether it should arrive, None where only the prediction
    tells. `kinds` of packets, in order. `far`: the name of the other node, empty on this one. `question`: the name that
    a resolver is asked."""

    name: str
    source: str
    destination: str
    address: str
    should: bool | None
    kinds: tuple[str, ...]
    far: str = ""
    bridged: bool = False
    mtu: int = 0
    port: int = 0
    question: str = ""


@dataclass(frozen=True)
class End:
    """A namespace, here or on another node."""

    name: str
    addresses: tuple[str, ...]
    mtu: int


def here(flat: End, beside: End, other: End, isolated: End, node: tuple[str, ...]) -> list[Pair]:
    """The pairs on this node: `flat` and `beside` are on one bridge, `other` is of another service, `isolated` of a
    network of its own on the first bridge."""
    pairs: list[Pair] = []
    for name, source, target, should in (
        ("same bridge", flat, beside, True),
        ("other service", flat, other, True),
        ("to an isolated one", flat, isolated, False),
        ("from an isolated one", isolated, other, False),
    ):
        pairs += _pairs(name, source, target, should, bridged=name in ("same bridge", "to an isolated one"))
    for source in (flat, isolated):
        for address in node:
            if _speaks(source, address):
                pairs.append(
                    Pair(
                        name="node",
                        source=source.name,
                        destination="node",
                        address=address,
                        should=True,
                        kinds=(ANSWER,),
                    )
                )
    return pairs


def there(flat: End, isolated: End, node: str, boxes: dict[str, End]) -> list[Pair]:
    """The pairs to the namespaces `flat` and `isolated` of another node; both isolated ones are of one network, whose
    members the other node may not have published yet, or not at all."""
    pairs = _pairs("other node", flat, boxes["flat"], True, far=node)
    pairs += _pairs("to an isolated one", flat, boxes["isolated"], False, far=node)
    return pairs + _pairs("same network", isolated, boxes["isolated"], None, far=node)


def _pairs(
    name: str, source: End, target: End, should: bool | None, *, far: str = "", bridged: bool = False
) -> list[Pair]:
    return [
        Pair(
            name=name,
            source=source.name,
            destination=f"{far} {target.name}".strip(),
            address=address,
            should=should,
            kinds=FULL if should else (TCP,),
            far=far,
            bridged=bridged,
            mtu=min(source.mtu, target.mtu),
        )
        for address in target.addresses
        if _speaks(source, address)
    ]


def _speaks(end: End, address: str) -> bool:
    return any((":" in own) == (":" in address) for own in end.addresses)
