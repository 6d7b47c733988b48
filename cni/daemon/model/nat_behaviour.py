"""Names a NAT's behaviour from what STUN servers saw, in the terms of RFC 4787 and RFC 5780. Pure.

The mapping says whether one socket has one address outside whatever it talks to; the filtering says which senders the
NAT lets in. One observation proves no mapping: a symmetric NAT looks like a cone to a single server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cni.addresses import Address

Mapped = Literal["none", "endpoint-independent", "address-dependent", "address-and-port-dependent", "unknown"]
Filtered = Literal["endpoint-independent", "address-dependent", "address-and-port-dependent", "unknown"]
Place = tuple[Address, int]  # an address with a port

CONES: Mapping[Filtered, str] = {
    "endpoint-independent": "full cone",
    "address-dependent": "address-restricted cone",
    "address-and-port-dependent": "port-restricted cone",
    "unknown": "cone",
}


@dataclass(frozen=True, slots=True)
class Observation:
    """From where a server saw a socket of this node."""

    server: Place
    mapped: Place


def mapping_of(own: Collection[Address], port: int, seen: Iterable[Observation]) -> Mapped:
    """The mapping of one socket at `port` of a node with the addresses `own`; RFC 4787, section 4.1.

    `none`: there is no NAT. `unknown`: fewer than two servers answered. Different mappings count as
    `address-dependent` only if two ports of one server saw the same one.
    """
    observed = list(seen)
    if not observed:
        return "unknown"
    if all(mapped[0] in own and mapped[1] == port for _, mapped in map(_parts, observed)):
        return "none"
    if len({server for server, _ in map(_parts, observed)}) < 2:
        return "unknown"
    if len({mapped for _, mapped in map(_parts, observed)}) == 1:
        return "endpoint-independent"
    by_address: dict[Address, list[Place]] = defaultdict(list)
    for server, mapped in map(_parts, observed):
        by_address[server[0]].append(mapped)
    several = [places for places in by_address.values() if len(places) > 1]
    if several and all(len(set(places)) == 1 for places in several):
        return "address-dependent"
    return "address-and-port-dependent"


def filtering_of(from_other_address: bool | None, from_other_port: bool | None) -> Filtered:
    """The filtering; RFC 4787, section 5. Whether an answer arrived that the server sent from its other address, or
    from its other port; None: it was not asked for."""
    if from_other_address:
        return "endpoint-independent"
    if from_other_address is None or from_other_port is None:
        return "unknown"
    return "address-dependent" if from_other_port else "address-and-port-dependent"


def kind_of(mapped: Mapped, filtered: Filtered) -> str:
    """The name that operators know a NAT by."""
    if mapped == "none":
        return "no NAT" if filtered in ("endpoint-independent", "unknown") else "no NAT, behind a firewall"
    if mapped == "unknown":
        return "behind NAT"
    return CONES[filtered] if mapped == "endpoint-independent" else "symmetric"


def _parts(seen: Observation) -> tuple[Place, Place]:
    return seen.server, seen.mapped
