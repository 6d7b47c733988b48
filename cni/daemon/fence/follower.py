"""Follows listed virtual addresses (`isolation.reach`) through this node's DNAT to endpoints of the overlay.

The rules recognize a flow that this node translates by its virtual address. A flow that another node has translated
arrives with the endpoint's address, and both nodes translate alike: so the endpoints are opened as well. They are read
anew after a change of the rules; reading takes a twentieth of one CPU at most.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

from cni.host.nat_rules import Base, Packet, translate
from cni.openings import Opening, Openings, Reach

REST = 20  # times what a reading took, until the next one
_ANY = ("tcp", "udp", "sctp")


class Follower:
    """Which readings are due. For one thread at a time."""

    def __init__(self) -> None:
        self._seen: object = None  # the version of the rules and the entries, as of the last reading
        self._not_before = 0.0  # on the monotonic clock

    def is_due(self, version: object) -> bool:
        """Whether the rules or the entries changed since the last reading, which is long enough ago."""
        return self._seen != version and time.monotonic() >= self._not_before

    def took(self, version: object, seconds: float) -> None:
        """The rules of that version were read, in so many seconds."""
        self._seen, self._not_before = version, time.monotonic() + REST * seconds


def virtual(openings: Openings, clusters: Sequence[str]) -> tuple[Reach, ...]:
    """The destinations that are no address of the overlay. Pure."""
    return tuple(entry for entry in openings.reach if entry.address and not _is_inside(entry.address, clusters))


def endpoints(bases: Sequence[Base], entries: Sequence[Reach], clusters: Sequence[str]) -> tuple[Opening, ...]:
    """The endpoints of the overlay to which any container's flows to the entries are translated, sorted. Pure."""
    found = {end for entry in entries for end in _targets(bases, entry)}
    return tuple(sorted(end for end in found if _is_inside(end.address, clusters)))


def _targets(bases: Sequence[Base], entry: Reach) -> set[Opening]:
    found = set()
    for protocol in (entry.protocol,) if entry.protocol else _ANY:
        way = translate(bases, Packet("", entry.address, protocol, entry.port), from_host=False)
        found |= {Opening(target.address, protocol, target.port or entry.port) for target in way.targets}
    return {end for end in found if end.address and end.port}


def _is_inside(address: str, clusters: Sequence[str]) -> bool:
    return any(ip_address(address) in ip_network(cidr) for cidr in clusters)
