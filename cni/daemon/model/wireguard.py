"""Computes the wanted peers of a WireGuard device and the changes that lead to them, peer by peer. Pure.

Replacing a peer ends its session, so each peer is compared and only differences are changed. The device learns the
endpoints of peers: an endpoint is set again only when another one is configured, or when the peer has not answered at
the learned one for as long as a session can live. A device that is made anew gets the endpoints that the one before had
learned: a peer behind a NAT has no other.
"""

from __future__ import annotations

import bisect
import functools
import ipaddress
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from cni import addresses
from cni.daemon.model import sizes
from cni.daemon.model.cluster_records import NatWord
from cni.daemon.model.peer_paths import RelayUse
from cni.host.tunnel_routes import UnderlayRoute
from cni.host.wg_types import PeerChange, PeerSeen

DEAD = 180  # seconds: REJECT_AFTER_TIME, no session is older (WireGuard's paper, section 6.1)
OVERHEAD = {4: 60, 6: 80}  # bytes: outer IP header, UDP (8), WireGuard's header and tag (32)
MOST_ANSWERERS = 3  # addresses behind a peer that are asked for an echo until one answers
BLOCK = 16  # bytes: packets are padded to a multiple of this, but never beyond the device's MTU

Network = addresses.Network
network_of = functools.lru_cache(1 << 16)(ipaddress.ip_network)  # cached: every pass parses the same CIDRs
Address = addresses.Address


@dataclass(frozen=True, slots=True)
class Target:
    """A wanted peer. `endpoints`: `host:port`, best first; empty: the peer initiates. `allowed_ips`: the addresses that
    it may send from and receive for. `routes`: those of them that are routed to this device; None for all. `keepalive`:
    seconds, 0 for none. `name`: for display. `owner`: the guest or edge, if it is one. `published`: the peer itself has
    published its endpoints (by the cluster, or a token), not this node's operator or an agent. `nat`: what it publishes
    for NAT traversal; None if it answers no probes, or that is not known. `relay`: whether relays are the only paths to
    it, or none."""

    public_key: str
    endpoints: tuple[str, ...] = ()
    allowed_ips: tuple[str, ...] = ()
    keepalive: int = 0
    routes: tuple[str, ...] | None = None
    name: str = ""
    owner: str = ""
    published: bool = False
    nat: NatWord | None = None
    relay: RelayUse = ""

    def led(self) -> tuple[str, ...]:
        """The CIDRs that are routed to the device for this peer."""
        return self.allowed_ips if self.routes is None else self.routes


@dataclass(frozen=True, slots=True)
class Peer:
    """A target with one endpoint, an address and a port; "" while none is known."""

    public_key: str
    endpoint: str
    allowed_ips: frozenset[str]
    keepalive: int


def merged(books: Iterable[Iterable[Target]], own: str) -> dict[str, Target]:
    """The peers of a device by key, from several lists. A later entry takes its key and its CIDRs from earlier ones, as
    on a device, where a CIDR belongs to one peer. The key `own` is left out: a device is no peer of itself."""
    peers: dict[str, Target] = {}
    holders: dict[str, str] = {}
    for target in (target for book in books for target in book if target.public_key != own):
        for cidr in target.allowed_ips:
            loser = peers.get(holders.get(cidr, ""))
            if loser is not None and loser.public_key != target.public_key:
                peers[loser.public_key] = _without(loser, cidr)
            holders[cidr] = target.public_key
        peers[target.public_key] = target
    return peers


def _without(target: Target, cidr: str) -> Target:
    return replace(
        target,
        allowed_ips=tuple(allowed for allowed in target.allowed_ips if allowed != cidr),
        routes=None if target.routes is None else tuple(route for route in target.routes if route != cidr),
    )


def called_as(targets: Iterable[Target], others: Iterable[Target]) -> tuple[Target, ...]:
    """The targets, each with the endpoints of the entry of `others` with its key in front of its own, and that entry's
    use of relays."""
    preferred = {other.public_key: other for other in others}
    return tuple(
        replace(target, endpoints=tuple(dict.fromkeys((*other.endpoints, *target.endpoints))), relay=other.relay)
        if (other := preferred.get(target.public_key)) is not None
        else target
        for target in targets
    )


def changes(
    seen: Mapping[str, PeerSeen],
    desired: Mapping[str, Peer],
    configured: Mapping[str, str],
    ages: Mapping[str, float],
) -> list[PeerChange]:
    """The changes that turn the peers `seen` of a device into those `desired`.

    `configured`: the endpoint last set for each peer; `ages`: seconds since each peer's last handshake. New and changed
    peers come first and removals last, so that a CIDR that moves always has a peer.
    """
    updates = []
    for key, peer in desired.items():
        change = _change(seen.get(key), peer, configured.get(key), ages.get(key, math.inf))
        if change is not None:
            updates.append(change)
    return updates + [PeerChange(key, remove=True) for key in seen if key not in desired]


def _change(seen: PeerSeen | None, desired: Peer, configured: str | None, age: float) -> PeerChange | None:
    if seen is None:
        return PeerChange(
            desired.public_key, False, desired.endpoint, _order(desired.allowed_ips), True, desired.keepalive
        )
    endpoint = desired.endpoint if _must_call(seen, desired.endpoint, configured, age) else ""
    keepalive = desired.keepalive if desired.keepalive != seen.keepalive else None
    gone, fresh = seen.allowed_ips - desired.allowed_ips, desired.allowed_ips - seen.allowed_ips
    allowed = _order(desired.allowed_ips if gone else fresh)
    if not (endpoint or gone or fresh) and keepalive is None:
        return None
    return PeerChange(desired.public_key, False, endpoint, allowed, bool(gone), keepalive)


def _must_call(seen: PeerSeen, endpoint: str, configured: str | None, age: float) -> bool:
    """Whether the peer's endpoint must be set to `endpoint`."""
    if not endpoint or seen.endpoint == endpoint:
        return False
    alive = seen.endpoint != "" and age < DEAD
    return not alive or (configured is not None and configured != endpoint)


def delta(before: Mapping[str, Peer], after: Mapping[str, Peer]) -> list[PeerChange]:
    """`changes` for a device whose peers are known to be `before`, without a reading of the device."""
    updates = []
    for key, peer in after.items():
        earlier = before.get(key)
        if earlier == peer:
            continue
        if earlier is None:
            updates.append(_change(None, peer, None, math.inf))
            continue
        gone, fresh = earlier.allowed_ips - peer.allowed_ips, peer.allowed_ips - earlier.allowed_ips
        updates.append(
            PeerChange(
                key,
                False,
                peer.endpoint if peer.endpoint != earlier.endpoint else "",
                _order(peer.allowed_ips if gone else fresh),
                bool(gone),
                peer.keepalive if peer.keepalive != earlier.keepalive else None,
            )
        )
    return [update for update in updates if update is not None] + [
        PeerChange(key, remove=True) for key in before if key not in after
    ]


def renewed(
    seen: Mapping[str, PeerSeen],
    desired: Mapping[str, Peer],
    configured: Mapping[str, str],
    ages: Mapping[str, float],
    *,
    learned: Mapping[str, str],
    forgotten: Collection[str],
) -> list[PeerChange]:
    """`changes`, with the peers `forgotten` first removed from the device. A peer that is added has the endpoint at
    which the device had it, else the one that was `learned` of it, else the wanted one."""
    kept = {key: peer for key, peer in seen.items() if key not in forgotten}
    endpoints = {**learned, **{key: seen[key].endpoint for key in forgotten if key in seen and seen[key].endpoint}}
    added = {
        key: replace(desired[key], endpoint=endpoints[key]) for key in endpoints if key in desired and key not in kept
    }
    off = [PeerChange(key, remove=True) for key in forgotten if key in seen]
    return off + changes(kept, {**desired, **added}, configured, ages)


def learned_endpoints(
    seen: Mapping[str, PeerSeen], desired: Mapping[str, Peer], ages: Mapping[str, float], before: Mapping[str, str]
) -> dict[str, str]:
    """The endpoints at which the wanted peers were heard last, where they differ from the wanted ones. `before`: the
    last result; it counts for a peer that does not answer now."""
    heard = {
        key: peer.endpoint
        for key, peer in seen.items()
        if peer.endpoint and ages.get(key, math.inf) < DEAD and key in desired
    }
    last = {**{key: endpoint for key, endpoint in before.items() if key in desired}, **heard}
    return {key: endpoint for key, endpoint in last.items() if endpoint != desired[key].endpoint}


def _order(cidrs: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(cidrs))


def leads(
    targets: Iterable[Target], endpoints: Collection[Address], kept_out: Collection[Network] = ()
) -> dict[Network, str]:
    """The destinations that are routed to a device, each with the key of its peer.

    Left out are a default route, which would replace the node's own; a CIDR that contains the endpoint of a peer, whose
    packets would be routed into their own tunnel (`circles`); and CIDRs in one of the networks `kept_out`, which are
    the host's own.
    """
    inside = _InOrder(endpoints)
    destinations: dict[Network, str] = {}
    for target in targets:
        for cidr in target.led():
            network = network_of(cidr)
            if network.prefixlen > 0 and not inside.any_in(network) and not _is_in(network, kept_out):
                destinations[network] = target.public_key
    return destinations


def circles(targets: Iterable[Target], endpoints: Collection[Address]) -> tuple[str, ...]:
    """The CIDRs that `leads` leaves out because they contain a peer's endpoint, each with its peer's name."""
    inside = _InOrder(endpoints)
    return tuple(
        f"{cidr} of {target.name or target.public_key}"
        for target in targets
        for cidr in target.led()
        if network_of(cidr).prefixlen > 0 and inside.any_in(network_of(cidr))
    )


class _InOrder:
    """Sorted addresses, to find whether any of them is inside a network."""

    def __init__(self, addresses: Collection[Address]) -> None:
        self._sorted = {v: sorted(int(address) for address in addresses if address.version == v) for v in (4, 6)}

    def any_in(self, network: Network) -> bool:
        inner = self._sorted[network.version]
        at = bisect.bisect_left(inner, int(network.network_address))
        return at < len(inner) and inner[at] <= int(network.broadcast_address)


def is_callable(address: Address, ranges: Iterable[str], published: bool, others: Iterable[Network]) -> bool:
    """Whether a peer may be called at an address.

    The address must be outside the overlay's `ranges`, because packets to these go into tunnels. If the peer itself has
    `published` it, it must also be another machine's unicast address, and outside the networks `others`, which this
    node's operator has put behind other peers: what a peer publishes must not take another peer's route.
    """
    if any(address in network_of(cidr) for cidr in ranges):
        return False
    if not published:
        return True
    odd = address.is_unspecified or address.is_loopback or address.is_multicast
    return not odd and not any(address in other for other in others)


def held_to(targets: Iterable[Target], ranges: Iterable[str]) -> list[Target]:
    """The targets with routes only inside these ranges. The allowed CIDRs are unchanged."""
    inside = tuple(network_of(cidr) for cidr in ranges)

    def led(target: Target) -> Target:
        kept = tuple(cidr for cidr in target.led() if _is_in(network_of(cidr), inside))
        return target if kept == target.led() else replace(target, routes=kept)

    return [led(target) for target in targets]


def kept_off(targets: Iterable[Target]) -> dict[str, str]:
    """The CIDRs that are allowed to peers but not routed to them, as sentences by public key."""
    sentences = {}
    for target in targets:
        unrouted = [cidr for cidr in target.allowed_ips if cidr not in target.led()]
        if unrouted:
            peer = target.name or target.owner or target.public_key
            sentences[target.public_key] = (
                f"no route leads to the peer {peer} for {', '.join(unrouted)}: that is outside the cluster's ranges"
            )
    return sentences


def _is_in(network: Network, ranges: Iterable[Network]) -> bool:
    return any(network.version == range_.version and network.subnet_of(range_) for range_ in ranges)  # type: ignore[arg-type]


def behind(targets: Iterable[Target], clusters: Iterable[str]) -> tuple[str, ...]:
    """The parts of the overlay's CIDRs that are behind tunnels, merged and sorted."""
    ranges = [ipaddress.ip_network(cidr) for cidr in clusters]
    nets = {network_of(cidr) for target in targets for cidr in target.allowed_ips}
    inside: dict[int, list[Network]] = {4: [], 6: []}
    for network in nets:
        for cluster in ranges:
            if network.version == cluster.version and network.overlaps(cluster):
                inside[network.version].append(network if network.prefixlen >= cluster.prefixlen else cluster)
    return tuple(str(network) for version in (4, 6) for network in ipaddress.collapse_addresses(inside[version]))  # type: ignore[type-var]


def answerers(target: Target) -> tuple[Address, ...]:
    """The addresses behind a peer that may answer an echo request: the first ones of its first CIDRs, among them the
    node's own address."""
    routed = [network_of(cidr) for cidr in target.led()]
    return tuple(
        network[0] if network.prefixlen == network.max_prefixlen else network[1]
        for network in [network for network in routed if network.prefixlen][:MOST_ANSWERERS]
    )


def believed(way: UnderlayRoute, version: int) -> int:
    """The MTU in bytes that is assumed for a path by outer IP `version`.

    An MTU that the kernel learned from an ICMP message has a lower bound, because a forged "fragmentation needed"
    counts for ten minutes. The bound leaves 1,280 bytes inside the tunnel, which IPv6 needs. If the path is in fact
    narrower, the node sends fragments.
    """
    return min(max(way.mtu, sizes.LEAST6 + OVERHEAD[version]), way.widest) if way.learned else way.mtu


def route_mtu(path: int, version: int, device: int) -> int:
    """The MTU of the IPv4 routes to a peer whose path carries `path` bytes (0: unknown) by outer IP `version`; 0 means
    the MTU of the device, `device`. That of IPv6 routes is `sizes.LEAST6` at least.

    If the device's MTU exceeds the path, padding counts: the MTU is a whole number of blocks, so that a padded packet
    fits (95 bytes of overhead in the worst case).
    """
    room = path - OVERHEAD[version]
    return 0 if room >= device or path == 0 else max(room // BLOCK * BLOCK, sizes.LEAST)
