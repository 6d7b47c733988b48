"""Where the peers of a device are called, and which routes lead to what is behind them.

It is asked at every look, with a thousand peers the same each time; so what follows from the same is kept, and only the
kernel is asked anew: how packets to each peer leave this node.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple, cast

from cni.daemon.mesh.resolver import Resolver
from cni.daemon.model import wireguard
from cni.daemon.model.endpoints import is_name, split_endpoint
from cni.daemon.model.wireguard import Address, Network, Peer, Target
from cni.host.tunnel_routes import TunnelRoute
from cni.host.tunnels import Tunnels
from cni.host.wg_types import join_endpoint
from cni.host.worker import Crew

T = TypeVar("T")
Asked = TypeVarTuple("Asked")

Routes = dict[Network, TunnelRoute]


class Memo:
    """The last result of each function of values, for as long as it is asked the same."""

    def __init__(self) -> None:
        self._said: dict[Hashable, tuple[Any, Any]] = {}

    def __call__(self, which: Hashable, work: Callable[[*Asked], T], *asked: *Asked) -> T:
        """`work(*asked)`, or what that was the last time under the name `which`. Nobody may change either."""
        known = self._said.get(which)
        if known is None or known[0] != asked:
            known = self._said[which] = (asked, work(*asked))
        return cast(T, known[1])


class PathPlanner:
    """Of all devices. One thread at a time."""

    def __init__(
        self,
        tunnels: Tunnels,
        changed: Callable[[], None],
        ranges: Callable[[], Iterable[str]] = tuple,
        kept_out: Callable[[], tuple[Network, ...]] = tuple,
        *,
        crew: Crew | None = None,
        told: Callable[[dict[str, str]], None] = lambda faults: None,
    ) -> None:
        """`changed` is called, in another thread, when a name of a peer leads elsewhere; `told` with the names that
        cannot be looked up, and why. `ranges`: the overlay's; `kept_out`: the host's own networks, into which no route
        leads."""
        self._kept_out = kept_out
        self._tunnels = tunnels
        self._ranges = ranges
        self._resolver = Resolver(changed, crew, told)
        self._kept = Memo()
        self._mtus: dict[Address, int] = {}
        self._doubted: dict[Address, tuple[int, int]] = {}
        self._peers: dict[str, dict[str, tuple[tuple[Target, str], Peer]]] = {}
        self._refused: dict[str, dict[str, str]] = {}

    def stop(self) -> None:
        """Look up no more names."""
        self._resolver.stop()

    def refresh(self, targets: Iterable[Target]) -> None:
        """Ask the kernel anew, about all of them at once."""
        self._mtus, self._doubted = {}, {}
        every = {_literal(endpoint) for target in targets for endpoint in target.endpoints}
        self._ask(address for address in every if address is not None)

    def _ask(self, addresses: Iterable[Address]) -> None:
        unknown = [address for address in addresses if address not in self._mtus]
        if unknown:
            found = self._tunnels.ways_to(unknown)
            for address, way in found.items():
                self._mtus[address] = carried = wireguard.believed(way, address.version) if way is not None else 0
                if way is not None and carried != way.mtu:
                    self._doubted[address] = (way.mtu, carried)

    def doubted(self) -> dict[str, str]:
        """The paths of which the kernel says less than is believed, as sentences by address."""
        return {
            str(address): f"the kernel was told that the path to {address} carries {said} bytes; {carried} are believed"
            for address, (said, carried) in self._doubted.items()
        }

    def peers(self, device: str, targets: Mapping[str, Target]) -> dict[str, Peer]:
        """The targets with one endpoint each."""
        before = self._peers.get(device, {})
        found: dict[str, tuple[tuple[Target, str], Peer]] = {}
        refused: dict[str, str] = {}
        allowed = _Allowed(tuple(self._ranges()), self._kept((device, "wide"), _wide, dict(targets)))
        for key, target in targets.items():
            asked = (target, self._choice(target, allowed, refused))
            known = before.get(key)
            found[key] = known if known is not None and known[0] == asked else (asked, _peer(*asked))
        self._peers[device], self._refused[device] = found, refused
        return {key: peer for key, (_, peer) in found.items()}

    def refused(self, device: str) -> dict[str, str]:
        """The endpoints that no peer of a device may be called at, with the peer's name."""
        return self._refused.get(device, {})

    def _choice(self, target: Target, allowed: _Allowed, refused: dict[str, str]) -> str:
        """The first endpoint that this node has a way to; else the first. Not one that is not `allowed`: it is
        `refused`."""
        first = ""
        for candidate in target.endpoints:
            for found in self.addresses(candidate):
                if not allowed.endpoint(found, target):
                    refused[found] = target.name or target.public_key
                    continue
                if len(target.endpoints) == 1 or self.path(address_of(found)):
                    return found
                first = first or found
        return first

    def addresses(self, endpoint: str) -> tuple[str, ...]:
        """The addresses and ports that an endpoint stands for."""
        host, port = _split(endpoint)
        if not is_name(host):
            return (_joined(host, port),)
        return tuple(_joined(each, port) for each in self._resolver.addresses(host))

    def routes(
        self,
        device: str,
        targets: Mapping[str, Target],
        peers: Mapping[str, Peer],
        mtu: int,
        sources: Mapping[int, Address],
    ) -> Routes:
        """What leads into the device: each destination with the size that the path to its peer carries."""
        called = {key: address_of(peer.endpoint) for key, peer in peers.items() if peer.endpoint}
        self._ask(called.values())
        narrow = {key: wireguard.route_mtu(self.path(a), a.version, mtu) for key, a in called.items()}
        leads = self._kept((device, "leads"), _leads, dict(targets), called, self._kept_out())
        return self._kept((device, "routes"), _routes, leads, narrow, dict(sources))

    def circles(self, device: str, targets: Mapping[str, Target], peers: Mapping[str, Peer]) -> tuple[str, ...]:
        """The CIDRs that no route leads to, because a peer is called inside of them."""
        called = {key: address_of(peer.endpoint) for key, peer in peers.items() if peer.endpoint}
        return self._kept((device, "circles"), _circles, dict(targets), called)

    def behind(self, targets: Mapping[str, Mapping[str, Target]], cidrs: tuple[str, ...]) -> tuple[str, ...]:
        """The overlay's CIDRs behind all devices."""
        return self._kept("behind", _behind, dict(targets), cidrs)

    def path(self, address: Address) -> int:
        """The bytes that the underlay carries to an address; 0 without a way."""
        self._ask([address])
        return self._mtus[address]


def _peer(target: Target, endpoint: str) -> Peer:
    return Peer(target.public_key, endpoint, frozenset(target.allowed_ips), target.keepalive)


def _leads(
    targets: Mapping[str, Target], called: Mapping[str, Address], kept_out: tuple[Network, ...]
) -> dict[Network, str]:
    return wireguard.leads(targets.values(), list(called.values()), kept_out)


def _circles(targets: Mapping[str, Target], called: Mapping[str, Address]) -> tuple[str, ...]:
    return wireguard.circles(targets.values(), list(called.values()))


def _wide(targets: Mapping[str, Target]) -> tuple[tuple[str, Network], ...]:
    """What the operator or an agent has put behind peers, by key: never a default route, which is no route of ours."""
    operators = [target for target in targets.values() if not target.published]
    every = [(target.public_key, wireguard.network_of(cidr)) for target in operators for cidr in target.led()]
    return tuple((key, network) for key, network in every if network.prefixlen)


@dataclass(frozen=True, slots=True)
class _Allowed:
    """Where peers of a device may be called. `wide`: what the operator has put behind which key."""

    ranges: tuple[str, ...]
    wide: tuple[tuple[str, Network], ...]

    def endpoint(self, endpoint: str, target: Target) -> bool:
        """Whether this peer may be called there."""
        others = (network for key, network in self.wide if key != target.public_key)
        return wireguard.is_callable(address_of(endpoint), self.ranges, target.published, others)


def _routes(leads: Mapping[Network, str], narrow: Mapping[str, int], sources: Mapping[int, Address]) -> Routes:
    return {dst: TunnelRoute(dst, narrow.get(key, 0), sources.get(dst.version)) for dst, key in leads.items()}


def _behind(targets: Mapping[str, Mapping[str, Target]], cidrs: tuple[str, ...]) -> tuple[str, ...]:
    return wireguard.behind((target for book in targets.values() for target in book.values()), cidrs)


_split = functools.lru_cache(1 << 16)(split_endpoint)


@functools.lru_cache(1 << 16)
def _joined(host: str, port: int) -> str:
    return join_endpoint(ipaddress.ip_address(host), port)


@functools.lru_cache(1 << 16)
def address_of(endpoint: str) -> Address:
    """The address of an endpoint that has no name."""
    return ipaddress.ip_address(split_endpoint(endpoint)[0])


@functools.lru_cache(1 << 16)
def _literal(endpoint: str) -> Address | None:
    host, _ = split_endpoint(endpoint)
    return None if is_name(host) else ipaddress.ip_address(host)
