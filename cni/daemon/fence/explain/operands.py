"""How an operator's argument of `why` names endpoints. Pure.

The names are tried in this order, and the first kind with a match decides: whole names (a container id, a pod as
namespace/name, a guest, an edge peer, a node), a pod's name alone, then beginnings and endings of those. If several
match, the error lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network

from cni.daemon.fence.explain.endpoints import (
    NODE,
    OUTSIDE,
    Ambiguous,
    Endpoint,
    EndpointKind,
    FenceView,
    GuestEndpoint,
    TunnelRoute,
    of_guest,
)

LISTED = 5  # candidates that an error lists


@dataclass(frozen=True, slots=True)
class Candidate:
    """What an argument may name. `shown`: as an error lists it; `names`: its whole names; `parts`: what else names it
    if nothing else has it: a pod's name without the namespace, a container's id without the runtime's namespace."""

    shown: str
    names: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]
    parts: tuple[str, ...] = ()


def resolve(view: FenceView, word: str) -> list[Endpoint]:
    """The endpoints that `word` names: an address, `node`, `outside`, or a name as the module describes.

    A container has one endpoint for each of its addresses. Raises Ambiguous.
    """
    if word == OUTSIDE:
        return [Endpoint(EndpointKind.OUTSIDE, "", "outside the overlay")]
    if word == NODE:
        return _own(view)
    if _is_address(word):
        return [view.place_of(word)]
    matches = _matches(list(_candidates(view)), word)
    if not matches:
        raise Ambiguous(
            f"{word!r} is no address, and no container, pod, guest, edge peer or node that this node knows"
            " (`zlayer-cni attachments` and `zlayer-cni peers` list them)"
        )
    if len(matches) > 1:
        shown = [match.shown for match in matches[:LISTED]]
        more = f" and {len(matches) - LISTED} more" if len(matches) > LISTED else ""
        raise Ambiguous(f"{word!r} could be {', '.join(shown)}{more}: give more of the name, or an address")
    return list(matches[0].endpoints)


def _matches(candidates: Sequence[Candidate], word: str) -> list[Candidate]:
    kinds: tuple[Callable[[Candidate], bool], ...] = (
        lambda candidate: word in candidate.names,
        lambda candidate: word in candidate.parts,
        lambda candidate: any(
            name.startswith(word) or name.endswith(word) for name in (*candidate.names, *candidate.parts)
        ),
    )
    for kind in kinds:
        if word and (matches := [candidate for candidate in candidates if kind(candidate)]):
            return matches
    return []


def _candidates(view: FenceView) -> Iterator[Candidate]:
    containers: dict[str, list[GuestEndpoint]] = {}
    for guest in view.guests:
        containers.setdefault(guest.container, []).append(guest)
    for container, guests in containers.items():
        pod = next((guest.pod for guest in guests if guest.pod), "")
        yield Candidate(
            shown=f"{container} (pod {pod})" if pod else container,
            names=(container, pod) if pod else (container,),
            endpoints=tuple(of_guest(g, str(ip_interface(address).ip)) for g in guests for address in g.addresses),
            parts=tuple(part for part in (pod.rpartition("/")[2], container.partition("-")[2]) if part),
        )
    if view.node_name:
        yield Candidate(f"{view.node_name} (this node)", (view.node_name,), tuple(_own(view)))
    peers: dict[tuple[str, str], list[TunnelRoute]] = {}
    for route in view.behind:
        if route.name or route.node:
            peers.setdefault((route.label, route.peer), []).append(route)
    for (label, _), routes in peers.items():
        name, addresses = routes[0].name or routes[0].node, _first_addresses(routes)
        shown = f"{addresses[0]} ({label if routes[0].name else f'node {name}'})"
        yield Candidate(shown, (name,), tuple(view.place_of(address) for address in addresses))


def _first_addresses(routes: Iterable[TunnelRoute]) -> list[str]:
    """The address of a guest or an edge peer; of a node its own, the first of its slice, which is its first CIDR."""
    addresses: dict[int, str] = {}
    for route in routes:
        network = ip_network(route.cidr)
        first = network.network_address + (0 if network.prefixlen == network.max_prefixlen else 1)
        addresses.setdefault(network.version, str(first))
    return list(addresses.values())


def _own(view: FenceView) -> list[Endpoint]:
    return [Endpoint(EndpointKind.HOST, address, "the node address") for address in view.desired.node.addresses]


def _is_address(word: str) -> bool:
    try:
        ip_address(word.partition("%")[0])
    except ValueError:
        return False
    return True
