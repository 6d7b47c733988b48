"""Chooses the endpoint of each peer of a device and the routes to the CIDRs behind the peers.

Every reconcile pass computes both, mostly from the same values for a thousand peers. Results are therefore reused while
their arguments are equal; only the paths through the underlay are read from the kernel in each pass.
"""

from __future__ import annotations

import functools
import ipaddress
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple, cast

from cni.daemon.mesh.endpoint_turns import EndpointTurns
from cni.daemon.mesh.measured import MeasuredPath, Measurements
from cni.daemon.mesh.resolver import Resolver
from cni.daemon.model import sizes, wireguard
from cni.daemon.model.endpoints import address_of, is_name, split_endpoint
from cni.daemon.model.wireguard import Address, Network, Peer, Target
from cni.host.tunnel_routes import TunnelRoute, UnderlayRoute
from cni.host.tunnels import Tunnels
from cni.host.wg_types import join_endpoint

T = TypeVar("T")
Args = TypeVarTuple("Args")

Routes = dict[Network, TunnelRoute]


@dataclass(frozen=True, slots=True)
class _Hint:
    """An MTU of a path that the kernel was told by an ICMP message, and when that was seen, in seconds of the monotonic
    clock."""

    mtu: int
    at: float


class Memo:
    """The last result of each pure function, reused while the arguments are equal."""

    def __init__(self) -> None:
        self._results: dict[Hashable, tuple[Any, Any]] = {}

    def __call__(self, name: Hashable, work: Callable[[*Args], T], *args: *Args) -> T:
        """`work(*args)`, or the last result under `name` if its arguments were equal. Callers must change neither the
        arguments nor the result."""
        last = self._results.get(name)
        if last is None or last[0] != args:
            last = self._results[name] = (args, work(*args))
        return cast(T, last[1])


class PathPlanner:
    """Plans endpoints and routes for all devices. For one thread at a time."""

    def __init__(
        self,
        tunnels: Tunnels,
        ranges: Callable[[], Iterable[str]],
        host_networks: Callable[[], tuple[Network, ...]],
        resolver: Resolver,
        measurements: Measurements,
    ) -> None:
        """`ranges`: the overlay's; `host_networks`: the host's own networks, for which no route is planned."""
        self._host_networks = host_networks
        self._tunnels = tunnels
        self._ranges = ranges
        self._resolver = resolver
        self._memo = Memo()
        self._measurements = measurements
        self._ways: dict[Address, UnderlayRoute | None] = {}
        self._hints: dict[Address, _Hint] = {}
        self._in_kernel = False
        self._turns = EndpointTurns()
        self._proven: dict[str, Mapping[str, str]] = {}
        self._held: dict[str, frozenset[str]] = {}
        self._restored: dict[str, dict[str, str]] = {}
        self._peers: dict[str, dict[str, tuple[tuple[Target, str], Peer]]] = {}
        self._refused: dict[str, dict[str, str]] = {}

    def note_engine(self, in_kernel: bool) -> None:
        """Take in what runs the devices: kernel WireGuard, or a userspace engine."""
        self._in_kernel = in_kernel

    def refresh(self, targets: Iterable[Target]) -> None:
        """Read the paths to the targets' endpoints from the kernel again, in one batch."""
        literals = {_literal(endpoint) for target in targets for endpoint in target.endpoints}
        asked = {address for address in literals if address is not None} | self._measurements.paths().by_address.keys()
        self._ways = {}
        self._hints = {address: hint for address, hint in self._hints.items() if address in asked}
        self._read_ways(asked)

    def _read_ways(self, addresses: Iterable[Address]) -> None:
        unknown = [address for address in addresses if address not in self._ways]
        if unknown:
            ways = self._tunnels.ways_to(unknown)
            self._ways |= ways
            for address, way in ways.items():
                hint = self._hints.get(address)
                if way is not None and way.learned and (hint is None or hint.mtu != way.mtu):
                    self._hints[address] = _Hint(way.mtu, time.monotonic())

    def told_at(self, address: Address) -> float:
        """When the kernel was told of the MTU that it assumes for a path; 0 if it was told of none."""
        way, hint = self._ways.get(address), self._hints.get(address)
        return hint.at if hint is not None and way is not None and way.learned else 0.0

    def full(self, address: Address | None, device: int) -> int:
        """The largest size, in bytes, that a tunnel to an address could carry: that of the `device`, or less if the
        path of the underlay is narrower than its link (`widest`)."""
        way = self._ways.get(address) if address is not None else None
        if address is None or way is None:
            return device
        return wireguard.route_mtu(self.widest(way, address.version), address.version, device) or device

    def widest(self, way: UnderlayRoute, version: int) -> int:
        """The largest MTU, in bytes, that a path by outer IP `version` may have.

        Kernel WireGuard's datagrams are fragmented to the MTU that the kernel was told: a larger packet that passes
        does not refute the message, so with that engine it counts within bounds, as for a path without a measurement.
        """
        if not way.learned:
            return way.mtu
        return wireguard.believed(way, version) if self._in_kernel else way.widest

    def _route_mtu(self, key: str, address: Address | None, device: int) -> int:
        """The MTU of the routes to a peer; 0 means that of the device. Not measured: what the kernel assumes counts,
        within bounds."""
        measured, full = self._measurements.paths().of(key, address), self.full(address, device)
        if measured is not None and measured.is_narrow and measured.size < full:
            return measured.size
        if measured is None and address is not None:
            return wireguard.route_mtu(self.path(address), address.version, device)
        return full if full < device else 0

    def sizes(self, targets: Collection[str]) -> dict[str, int]:
        """By public key, the measured size of each narrow path to these peers: bytes of a packet inside the tunnel."""
        return {
            key: path.size
            for key, path in self._measurements.paths().by_key.items()
            if key in targets and path.is_narrow
        }

    def needs_fragments(self, device: int, least: int) -> bool:
        """Whether a path does not carry packets of `least` bytes, the smallest that must pass, without fragments."""
        narrow = any(way is not None and self.full(address, device) < least for address, way in self._ways.items())
        return (
            narrow
            or self._measurements.paths().too_narrow
            or any(measured is None for _, _, measured in self._refuted())
        )

    def _refuted(self) -> Iterator[tuple[Address, UnderlayRoute, MeasuredPath | None]]:
        """The paths for which the kernel was told of a smaller MTU than this node uses, with the later measurement."""
        by_address = self._measurements.paths().by_address
        for address, way in self._ways.items():
            if way is None or not way.learned:
                continue
            measured = by_address.get(address)
            if measured is None:
                if wireguard.believed(way, address.version) != way.mtu:
                    yield address, way, None
            elif measured.at > self.told_at(address) and measured.size > way.mtu - wireguard.OVERHEAD[address.version]:
                yield address, way, measured

    def doubted(self) -> dict[str, str]:
        """The paths for which the kernel was told of a smaller MTU than this node uses, as sentences by address."""
        sentences = {}
        for address, way, measured in self._refuted():
            if measured is not None:
                used = f"{measured.size + wireguard.OVERHEAD[address.version]} were measured, and are used"
            else:
                used = f"{wireguard.believed(way, address.version)} are believed"
            sentences[str(address)] = f"the kernel was told that the path to {address} carries {way.mtu} bytes; {used}"
        return sentences

    def narrow(self, targets: Mapping[str, Target], device: int) -> dict[str, str]:
        """The peers whose path carries less than its links, and no ICMP message says so, as sentences by public key."""
        sentences = {}
        for key, measured in self._measurements.paths().by_key.items():
            address = address_of(measured.endpoint) if measured.endpoint else None
            if key not in targets or address is None or not measured.is_narrow:
                continue
            overhead, hint = wireguard.OVERHEAD[address.version], self._hints.get(address)
            if hint is not None and wireguard.route_mtu(hint.mtu, address.version, device) <= measured.size:
                continue
            peer, way = targets[key].name or key, self._ways.get(address)
            link = f", its link {way.widest}" if way is not None else ""
            carries = f"carries {'less than ' if measured.too_narrow else ''}{measured.size + overhead} bytes{link}"
            sentences[key] = f"the path to the peer {peer} at {address} {carries}; no router said so, it was measured"
        return sentences

    def restore(
        self, device: str, firsts: Mapping[str, str], endpoints: Mapping[str, str], proven: Collection[str]
    ) -> None:
        """Take over the endpoints that an earlier daemon called (`EndpointTurns.restore`). `proven`: the peers whose
        endpoint probes had found: it stays while the peer answers, until this daemon has probed that peer itself."""
        self._turns.restore(device, firsts, endpoints, time.monotonic())
        if device not in self._restored:
            self._restored[device] = {key: endpoints[key] for key in proven if key in endpoints}

    def proven(self, device: str) -> list[str]:
        """The peers of a device that are called where probes have found them, by this daemon or by an earlier one."""
        found = {**self._restored.get(device, {}), **self._proven.get(device, {})}
        called = self._peers.get(device, {})
        return sorted(key for key, at in found.items() if key in called and called[key][1].endpoint == at)

    def firsts(self, device: str) -> dict[str, str]:
        """By public key, the endpoint that comes first where another one is called."""
        return self._turns.firsts(device)

    def is_in_haste(self) -> bool:
        """Whether a silent peer has endpoints that should be tried before the next regular pass."""
        return self._turns.is_in_haste()

    def peers(
        self, device: str, targets: Mapping[str, Target], alive_at: Mapping[str, str] | None = None
    ) -> dict[str, Peer]:
        """The targets as peers with one endpoint each. `alive_at`: by public key, where the peer answers now, "" if it
        answers nowhere; None if the device was not read."""
        before = self._peers.get(device, {})
        peers: dict[str, tuple[tuple[Target, str], Peer]] = {}
        refused: dict[str, str] = {}
        allowed = _Allowed(tuple(self._ranges()), self._memo((device, "wide"), _operator_cidrs, dict(targets)))
        for key, target in targets.items():
            candidates = self._candidates(target, allowed, refused)
            answers_at = alive_at.get(key, "") if alive_at is not None else None
            chosen = self._proven_path(device, target, allowed, before, answers_at)
            if chosen is None:
                chosen = self._turns.choose(device, key, candidates, answers_at, time.monotonic()) if candidates else ""
            args = (target, chosen)
            last = before.get(key)
            peers[key] = last if last is not None and last[0] == args else (args, _peer(*args))
        self._peers[device], self._refused[device] = peers, refused
        self._turns.keep(device, targets)
        return {key: peer for key, (_, peer) in peers.items()}

    def set_proven(self, device: str, proven: Mapping[str, str], held: frozenset[str]) -> frozenset[str]:
        """Set the endpoints at which peers of a device have just answered a probe, by public key: they come before all
        others. `held`: peers whose paths are being probed; until one has answered, none is called anew. Returns the
        peers that are called elsewhere than before."""
        before, searched = self._proven.get(device, {}), self._held.get(device, frozenset()) - held
        self._proven[device], self._held[device] = proven, held
        restored = self._restored.get(device, {})
        for key in [key for key in restored if key in proven or key in searched]:
            del restored[key]
        return frozenset(key for key, endpoint in proven.items() if before.get(key) != endpoint)

    def _proven_path(
        self,
        device: str,
        target: Target,
        allowed: _Allowed,
        before: Mapping[str, tuple[tuple[Target, str], Peer]],
        answers_at: str | None,
    ) -> str | None:
        """The endpoint that probes have found; None if the turns decide."""
        key, restored = target.public_key, self._restored.get(device, {})
        if key in restored:
            if target.relay != "only" and answers_at != "" and allowed.proven(restored[key], target):
                return restored[key]
            del restored[key]
        proven = self._proven.get(device, {}).get(key)
        if proven is not None and allowed.proven(proven, target):
            return proven
        if target.relay == "only":
            return ""
        if key not in self._held.get(device, ()):
            return None
        return before[key][1].endpoint if key in before else ""

    def refused(self, device: str) -> dict[str, str]:
        """The endpoints that may not be used on a device, each with its peer's name."""
        return self._refused.get(device, {})

    def _candidates(self, target: Target, allowed: _Allowed, refused: dict[str, str]) -> list[str]:
        """The allowed endpoints that this node has a path to, else all allowed ones, the best first. An endpoint that
        is not `allowed` is added to `refused`."""
        candidates = []
        for named in target.endpoints:
            for endpoint in self.addresses(named):
                if allowed.endpoint(endpoint, target):
                    candidates.append(endpoint)
                else:
                    refused[endpoint] = target.name or target.public_key
        candidates = list(dict.fromkeys(candidates))
        if len(candidates) < 2:
            return candidates
        return [endpoint for endpoint in candidates if self.path(address_of(endpoint))] or candidates

    def addresses(self, endpoint: str) -> tuple[str, ...]:
        """The addresses with ports that an endpoint resolves to, as of the last lookup."""
        host, port = _split(endpoint)
        if not is_name(host):
            return (_joined(host, port),)
        return tuple(_joined(address, port) for address in self._resolver.addresses(host))

    def routes(
        self,
        device: str,
        targets: Mapping[str, Target],
        peers: Mapping[str, Peer],
        mtu: int,
        sources: Mapping[int, Address],
    ) -> Routes:
        """The routes into the device by destination, each with the MTU in bytes that the path to its peer carries."""
        called = {key: address_of(peer.endpoint) for key, peer in peers.items() if peer.endpoint}
        self._read_ways(called.values())
        mtus = {key: self._route_mtu(key, called.get(key), mtu) for key in peers}
        routed = self._memo((device, "routed"), _routed, dict(targets), called, self._host_networks())
        return self._memo((device, "routes"), _routes, routed, mtus, dict(sources))

    def circles(self, device: str, targets: Mapping[str, Target], peers: Mapping[str, Peer]) -> tuple[str, ...]:
        """The CIDRs without a route because the endpoint of a peer lies inside them."""
        called = {key: address_of(peer.endpoint) for key, peer in peers.items() if peer.endpoint}
        return self._memo((device, "circles"), _circles, dict(targets), called)

    def behind(self, targets: Mapping[str, Mapping[str, Target]], cidrs: tuple[str, ...]) -> tuple[str, ...]:
        """The parts of the overlay's CIDRs that are behind the devices."""
        return self._memo("behind", _behind, dict(targets), cidrs)

    def path(self, address: Address) -> int:
        """The bytes that the underlay carries to an address as far as the kernel knows; 0 if there is no path."""
        self._read_ways([address])
        way = self._ways[address]
        return wireguard.believed(way, address.version) if way is not None else 0


def _peer(target: Target, endpoint: str) -> Peer:
    return Peer(target.public_key, endpoint, frozenset(target.allowed_ips), target.keepalive)


def _routed(
    targets: Mapping[str, Target], called: Mapping[str, Address], host_networks: tuple[Network, ...]
) -> dict[Network, str]:
    return wireguard.leads(targets.values(), list(called.values()), host_networks)


def _circles(targets: Mapping[str, Target], called: Mapping[str, Address]) -> tuple[str, ...]:
    return wireguard.circles(targets.values(), list(called.values()))


def _operator_cidrs(targets: Mapping[str, Target]) -> tuple[tuple[str, Network], ...]:
    """The CIDRs that the operator or an agent has put behind peers, with the peer's key. A default route is left out:
    the daemon never installs one."""
    configured = [target for target in targets.values() if not target.published]
    cidrs = [(target.public_key, wireguard.network_of(cidr)) for target in configured for cidr in target.led()]
    return tuple((key, network) for key, network in cidrs if network.prefixlen)


@dataclass(frozen=True, slots=True)
class _Allowed:
    """Decides which endpoints may be used. `operator_cidrs`: what the operator has put behind which key."""

    ranges: tuple[str, ...]
    operator_cidrs: tuple[tuple[str, Network], ...]

    def proven(self, endpoint: str, target: Target) -> bool:
        """Whether the target may be called where probes have found it. A loopback address is a port of this node's own
        forwarder: one that the peer has named is never probed."""
        return address_of(endpoint).is_loopback or self.endpoint(endpoint, target)

    def endpoint(self, endpoint: str, target: Target) -> bool:
        """Whether the target may be called at the endpoint."""
        others = (network for key, network in self.operator_cidrs if key != target.public_key)
        return wireguard.is_callable(address_of(endpoint), self.ranges, target.published, others)


def _routes(routed: Mapping[Network, str], mtus: Mapping[str, int], sources: Mapping[int, Address]) -> Routes:
    return {
        dst: TunnelRoute(dst, _size(dst, mtus.get(key, 0)), sources.get(dst.version)) for dst, key in routed.items()
    }


def _size(dst: Network, mtu: int) -> int:
    """The MTU of a route in bytes, 0 for that of the device. IPv6 has no smaller packet than `sizes.LEAST6`."""
    return max(mtu, sizes.least(dst.version == 6)) if mtu else 0


def _behind(targets: Mapping[str, Mapping[str, Target]], cidrs: tuple[str, ...]) -> tuple[str, ...]:
    return wireguard.behind((target for book in targets.values() for target in book.values()), cidrs)


_split = functools.lru_cache(1 << 16)(split_endpoint)


@functools.lru_cache(1 << 16)
def _joined(host: str, port: int) -> str:
    return join_endpoint(ipaddress.ip_address(host), port)


@functools.lru_cache(1 << 16)
def _literal(endpoint: str) -> Address | None:
    host, _ = split_endpoint(endpoint)
    return None if is_name(host) else ipaddress.ip_address(host)
