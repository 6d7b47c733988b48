"""Validates what other nodes and agents publish, before the fence loads it. Pure.

The callers' views check their own sources; this is the fence's own check. No published value can prevent the tables
from being loaded, or insert text into them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address, ip_network

from cni.daemon.fence.from_records import RemoteView
from cni.daemon.fence.model import FenceEdge, RemoteMember

MAX_NETWORKS = 4096  # isolation networks with members elsewhere: each costs the kernel two chains and three sets
MAX_ADDRESSES = 1 << 16  # members elsewhere
TOLD = 16  # refusals that are reported at a time
_EDGE = "\0edge"  # the owner of an edge peer's address, in place of a network; no network has this name


def believed(beyond: RemoteView, clusters: Iterable[str]) -> tuple[RemoteView, dict[str, str]]:
    """The part of `beyond` that the fence accepts, and by subject why it leaves out the rest.

    CIDRs lie inside the overlay's; an address is spelled as the kernel spells it, lies behind a tunnel, and is in one
    network. Every CIDR is printed anew from its parsed value, so that no published text gets into a transaction.
    """
    refused: dict[str, str] = {}
    far = _far(beyond.far, clusters, refused)
    owners: dict[str, str | None] = {}
    edges = [
        edge for edge in beyond.edges if _is_edge(edge, refused) and owners.setdefault(edge.address, _EDGE) == _EDGE
    ]
    remotes: list[RemoteMember] = []
    spaces = [ip_network(cidr) for cidr in far]
    for remote in sorted(beyond.remotes, key=lambda remote: remote.network or ""):
        if len(remotes) >= MAX_NETWORKS or not _is_name(remote.network):
            refused[f"network {remote.network!r:.80}"] = (
                f"isolation network {remote.network!r:.80} of other nodes is left out: "
                + ("its name is no text" if len(remotes) < MAX_NETWORKS else f"there are more than {MAX_NETWORKS}")
            )
            continue
        kept = set()
        for address in sorted(remote.addresses):
            name = remote.network or ""
            if len(owners) >= MAX_ADDRESSES:
                why = f"there are more than {MAX_ADDRESSES} members elsewhere"
            elif (why := _wrong(address, spaces)) == "" and owners.setdefault(
                address, remote.network
            ) != remote.network:
                why = _also(owners[address])
            if why:
                refused[f"{address!r:.80}"] = (
                    f"member {address!r:.80} of isolation network {name!r:.80} is left out: {why}"
                )
            else:
                kept.add(address)
        if kept:
            remotes.append(RemoteMember(remote.network, frozenset(kept)))
    services = tuple((name, _usable(addresses, spaces)) for name, addresses in beyond.services)
    view = RemoteView(beyond.tunnels, far, tuple(remotes), tuple(edges), services, _usable(beyond.nodes, spaces))
    return view, dict(itertools.islice(refused.items(), TOLD))


def _usable(addresses: Iterable[str], spaces: list[IPv4Network | IPv6Network]) -> frozenset[str]:
    """The addresses that lie behind a tunnel."""
    return frozenset(address for address in addresses if not _wrong(address, spaces))


def _also(owner: str | None) -> str:
    return "it is an edge peer's" if owner == _EDGE else f"it is a member of {owner or ''!r:.80} as well"


def without(beyond: RemoteView, taken: frozenset[str]) -> tuple[RemoteMember, ...]:
    """The remote members without addresses of this node: for these the node's own records count."""
    remotes = (RemoteMember(remote.network, remote.addresses - taken) for remote in beyond.remotes)
    return tuple(remote for remote in remotes if remote.addresses)


def _far(cidrs: Iterable[str], clusters: Iterable[str], refused: dict[str, str]) -> tuple[str, ...]:
    """The CIDRs without overlaps, and without those outside the overlay's."""
    ranges, good4, good6 = [ip_network(cidr) for cidr in clusters], [], []
    for cidr in cidrs:
        try:
            network = ip_network(cidr)
        except ValueError:
            refused[f"{cidr!r:.80}"] = f"{cidr!r:.80} behind a tunnel is left out: it is no CIDR"
            continue
        if isinstance(network, IPv4Network):
            if any(isinstance(overlay, IPv4Network) and network.subnet_of(overlay) for overlay in ranges):
                good4.append(network)
                continue
        elif any(isinstance(overlay, IPv6Network) and network.subnet_of(overlay) for overlay in ranges):
            good6.append(network)
            continue
        refused[str(network)] = f"{network} behind a tunnel is left out: it is outside the overlay's range"
    return (*map(str, collapse_addresses(good4)), *map(str, collapse_addresses(good6)))


@functools.lru_cache(1 << 16)
def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """The address, if the text is what the kernel would print."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    scoped = isinstance(address, IPv6Address) and (address.scope_id is not None or address.ipv4_mapped is not None)
    return address if str(address) == text and not scoped else None


def _wrong(text: str, spaces: list[IPv4Network | IPv6Network]) -> str:
    """Why the address cannot be a remote member's; empty if it can."""
    address = _parsed(text)
    if address is None:
        return "it is no address in its usual form"
    return "" if any(address in space for space in spaces) else "it is in no subnet behind a tunnel"


def _is_name(network: str | None) -> bool:
    try:
        (network or "").encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_edge(edge: FenceEdge, refused: dict[str, str]) -> bool:
    try:
        good = _parsed(edge.address) is not None and all(map(ip_network, edge.allowed))
    except ValueError:
        good = False
    if not good:
        refused[f"edge {edge.address!r:.80}"] = f"edge peer {edge.address!r:.80} is left out: not an address and CIDRs"
    return good
