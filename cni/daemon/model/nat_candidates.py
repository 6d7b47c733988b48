"""Which places may be probed for a peer, and what a node publishes of its own. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from cni.addresses import Address, Network
from cni.daemon.model.nat_behaviour import Observation, Place
from cni.daemon.model.peer_paths import Kind

MOST = 16  # places of one peer
MOST_OUTSIDE = 4  # addresses outside that a node publishes
CURRENT = 90.0  # seconds before the newest observation after which an older one no longer counts


def refusal(place: Place, ranges: Iterable[Network]) -> str:
    """Why a place is not probed: what is no other machine's unicast address, and what leads into the overlay, which
    would be a tunnel in the tunnel. "" if it may be."""
    address, port = place
    for what, applies in (
        ("the loopback", address.is_loopback),
        ("multicast", address.is_multicast),
        ("unspecified", address.is_unspecified),
        ("link-local", address.is_link_local),
        ("the port 0", port == 0),
        ("reserved", address.version == 4 and address == address.__class__("255.255.255.255")),
        ("inside the overlay", any(address.version == n.version and address in n for n in ranges)),
    ):
        if applies:
            return what
    return ""


def places_of(
    own: Sequence[Place], outside: Sequence[Place], refused: Collection[Address], ranges: Collection[Network], most: int
) -> dict[Place, Kind]:
    """The places at which a peer is probed, its own addresses first. `refused`: this node's own addresses, at which it
    would reach itself; `most`: places at most, `MOST` at any rate."""
    kinds: dict[Place, Kind] = {}
    for place in outside:
        kinds[place] = "outside"
    for place in own:
        kinds.setdefault(place, "host")
    ordered = sorted(kinds.items(), key=lambda item: item[1] != "host")
    usable = [(place, kind) for place, kind in ordered if place[0] not in refused and not refusal(place, ranges)]
    return dict(usable[: min(most, MOST)])


def current(observed: Mapping[Place, tuple[Observation, float]]) -> list[Observation]:
    """The observations that still count, newest first: after a NAT's address has changed, the older ones are wrong.
    The second value of each: when it was made, in seconds."""
    newest = max((at for _, at in observed.values()), default=0.0)
    fresh = [(seen, at) for seen, at in observed.values() if newest - at <= CURRENT]
    return [seen for seen, _ in sorted(fresh, key=lambda item: -item[1])]


def published(observed: Sequence[Observation], own: Collection[Address], ranges: Collection[Network]) -> list[Place]:
    """The addresses outside that a node publishes: where others see it, except its own addresses."""
    places = [seen.mapped for seen in observed if seen.mapped[0] not in own and not refusal(seen.mapped, ranges)]
    return list(dict.fromkeys(places))[:MOST_OUTSIDE]
