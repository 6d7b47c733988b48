"""A fake, because the real kernel does not fail on command.

It stands in for `cni.host.kernel.Kernel` and for the fence's parts (`cni.daemon.parts_fence.Fence`) at once. It keeps
state as the kernel does (links with both ends, addresses, namespaces, admitted ports) and can be told to fail at its
nth call, before the call's effect or after it, or to die there, as if the daemon had been killed. What the real kernel
does is tested in tests/kernel; that the fake has the real ones' methods is tested in tests/unit/test_fake_kernel.py.
"""

from __future__ import annotations

import errno
import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface
from typing import Any, TypeVar, cast

from cni.daemon.durations import Times
from cni.daemon.fence.model import FenceNode
from cni.daemon.model.records import Attachment
from cni.daemon.policy.decide import Decision, End, Flow, may
from cni.errors import FenceFailed
from cni.host.links import Address, Interface, Link, Network, Port, PortEnds, Route
from cni.host.netlink import NetlinkError
from cni.host.netns import NetnsId
from cni.host.own_networks import HeldAddress, Surroundings
from cni.host.ports import ContainerView, GatewayEnd, Sought
from cni.host.routed_ports import RoutedEnd

F = TypeVar("F", bound=Callable[..., Any])
NSFS = 4  # the device number of our namespaces


class Killed(BaseException):
    """The daemon died here: nothing after this call happens. It is no error of the daemon, so no handler catches it."""


@dataclass
class Space:
    """A container's network namespace."""

    number: int
    links: dict[str, Link] = field(default_factory=dict)
    addresses: dict[int, list[Interface]] = field(default_factory=dict)
    routes: list[Route] = field(default_factory=list)

    @property
    def id(self) -> NetnsId:
        return NetnsId(NSFS, self.number)


@dataclass
class Fault:
    """What goes wrong, and when: at the `after`th call from now (0 is the next), before its effect or `late`."""

    after: int
    late: bool = False
    kill: bool = False
    only: str = ""  # count only the calls of this method
    code: int = errno.EIO


def call(method: F, error: type[Exception] | None = NetlinkError) -> F:
    """One call of the kernel: counted, logged, and where faults happen. `error` is what it raises; None: nothing."""

    @functools.wraps(method)
    def wrapper(self: FakeKernel, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            if self.dead:
                raise Killed
            self.log.append(method.__name__)
            fault = self._due(method.__name__, quiet=error is None)
            if fault is None:
                return method(self, *args, **kwargs)
            if fault.late:
                method(self, *args, **kwargs)
            if fault.kill:
                self.dead = True
                raise Killed
            if error is NetlinkError:
                raise NetlinkError(fault.code, f"fault in {method.__name__}")
            raise FenceFailed(f"fault in {method.__name__}")

    return cast(F, wrapper)


def fence_call(method: F) -> F:
    """One call of the fence that may be refused."""
    return call(method, FenceFailed)


def quiet_call(method: F) -> F:
    """One call of the fence that reports no failure: what cannot be removed is closed, and mended later."""
    return call(method, None)


class FakeKernel:
    """The node's kernel, and its fence."""

    def __init__(self) -> None:
        self.own = NetnsId(NSFS, 1)
        self.lock = threading.RLock()
        self.links: dict[str, Link] = {}
        self.node_addresses: dict[int, set[Interface]] = {}
        self.spaces: dict[int, Space] = {}  # by descriptor
        self.admitted: dict[str, Attachment] = {}  # by host veth
        self.fenced_bridges: set[str] = set()
        self.loaded = False
        self.own_addresses: set[Address] = set()
        self.sourced: set[Address] = set()
        self.routed_ends: dict[str, RoutedEnd] = {}
        self.gateway_ends: dict[int, GatewayEnd] = {}  # by the index of the container's end
        self.closed: set[Network] = set()  # subnets of routed services
        self.routed: set[int] = set()
        self.underlay = 1500
        self.flows_queued: set[str] = set()
        self.announced: list[tuple[str, str]] = []  # (MAC, address)
        self.complaint = ""  # what `trouble` says
        self.log: list[str] = []
        self.dead = False
        self._next = 10
        self._fault: Fault | None = None

    # --- what tests do to it --------------------------------------------------------------------------------------

    def fail(self, after: int = 0, **how: Any) -> None:
        """Let something go wrong, once; see `Fault`."""
        self._fault = Fault(after, **how)

    def heal(self) -> bool:
        """No fault from now on, and alive again; whether a fault was still to come."""
        pending, self._fault, self.dead = self._fault is not None, None, False
        return pending

    def space(self, fd: int) -> Space:
        """The namespace behind a descriptor, made when first asked for."""
        with self.lock:
            return self.spaces.setdefault(fd, Space(1000 + fd))

    def destroy_space(self, fd: int) -> None:
        """The namespace goes, and every link in it with its other end."""
        with self.lock:
            space = self.spaces.pop(fd)
            peers = {link.peer for link in space.links.values()}
            for name in [n for n, link in self.links.items() if link.index in peers]:
                del self.links[name]

    def veths(self) -> set[str]:
        """The names of the host ends there are."""
        return {name for name, link in self.links.items() if link.kind == "veth"}

    def addresses_in_use(self) -> list[str]:
        """Every address of a container's interface that still has its host end."""
        return [
            str(address.ip)
            for space in self.spaces.values()
            for link in space.links.values()
            for address in space.addresses.get(link.index, [])
        ]

    def gateways(self, bridge: str) -> set[str]:
        link = self.links.get(bridge)
        return {str(address) for address in self.node_addresses.get(link.index, set())} if link else set()

    def _due(self, name: str, quiet: bool) -> Fault | None:
        fault = self._fault
        if fault is None or fault.only not in ("", name) or (quiet and not fault.kill):
            return None
        if fault.after > 0:
            fault.after -= 1
            return None
        self._fault = None
        return fault

    def _index(self) -> int:
        self._next += 1
        return self._next

    # --- cni.host.kernel.Kernel -----------------------------------------------------------------------------------

    @call
    def enable_forwarding(self, versions: Sequence[int]) -> None:
        self.routed |= set(versions)

    @call
    def ensure_node_address(self, address: Address) -> None:
        self.own_addresses.add(address)

    @call
    def remove_node_address(self, address: Address) -> None:
        self.own_addresses.discard(address)

    @call
    def surroundings(self) -> Surroundings:
        return Surroundings()  # the host is on no network

    @quiet_call
    def held_addresses(self) -> tuple[HeldAddress, ...]:
        return tuple(HeldAddress("lo", ip_interface(address)) for address in self.own_addresses)

    @call
    def route_by_source(
        self, netns_fd: int, index: int, addresses: Sequence[Interface], routes: Sequence[Route]
    ) -> None:
        self.sourced |= {address.ip for address in addresses}

    @quiet_call
    def forget_sources(self, path: str, container: NetnsId, addresses: Sequence[Address]) -> None:
        self.sourced -= set(addresses)

    @call
    def keep_advertisements(self) -> list[str]:
        return []

    @call
    def not_forwarding(self) -> list[str]:
        return []

    @call
    def arp_ignore(self) -> int:
        return 1

    @call
    def way_out(self, address: Address) -> str:
        return ""

    @call
    def forwarding(self, version: int) -> bool:
        return version in self.routed

    @call
    def underlay_mtu(self) -> int:
        return self.underlay

    @call
    def find(self, name: str = "", index: int = 0) -> Link | None:
        if name:
            return self.links.get(name)
        return next((link for link in self.links.values() if link.index == index), None)

    def index_of(self, name: str) -> int:
        return self.links[name].index if name in self.links else 0

    def mac_of(self, name: str) -> str:
        return self.links[name].mac if name in self.links else ""

    @call
    def all_links(self) -> list[Link]:
        return list(self.links.values())

    @call
    def addresses(self, index: int) -> list[Interface]:
        return sorted(self.node_addresses.get(index, set()))  # type: ignore[type-var]

    @call
    def all_addresses(self) -> dict[int, set[Interface]]:
        return {index: set(addresses) for index, addresses in self.node_addresses.items() if addresses}

    @call
    def ensure_bridge(self, name: str, mac: str, mtu: int, addresses: Sequence[Interface]) -> Link:
        found = self.links.get(name)
        if found is None:
            found = self.links[name] = Link(self._index(), name, True, mtu, mac, "bridge")
        elif found.kind != "bridge":
            raise NetlinkError(errno.EEXIST, f"create bridge {name}")
        self.node_addresses.setdefault(found.index, set()).update(addresses)
        return found

    @call
    def ensure_gateway(self, bridge: str, address: Interface) -> None:
        if bridge in self.links:
            self.node_addresses[self.links[bridge].index].add(address)

    @call
    def remove_gateway(self, bridge: str, address: Interface) -> None:
        if bridge in self.links:
            self.node_addresses[self.links[bridge].index].discard(address)

    @call
    def remove_link(self, name: str) -> bool:
        link = self.links.pop(name, None)
        if link is None:
            return False
        self.node_addresses.pop(link.index, None)
        self.routed_ends.pop(name, None)
        for space in self.spaces.values():
            for inner in [n for n, other in space.links.items() if other.index == link.peer and link.peer]:
                gone = space.links.pop(inner)
                space.addresses.pop(gone.index, None)
                space.routes = [route for route in space.routes if route.oif != gone.index]
        return True

    @quiet_call
    def forget_flows(self, addresses: Sequence[str]) -> None:
        self.flows_queued |= set(addresses)

    @quiet_call
    def finish_flows(self, addresses: Sequence[str]) -> None:
        self.flows_queued -= set(addresses)

    @call
    def forget_neighbour(self, bridge: int, address: str) -> None:
        pass

    @call
    def create_port(self, port: Port, netns_fd: int) -> PortEnds:
        space = self.spaces[netns_fd]
        if port.name in self.links or port.peer_name in space.links:
            raise NetlinkError(errno.EEXIST, f"create veth {port.name}")
        if port.bridge and all(link.index != port.bridge for link in self.links.values()):
            raise NetlinkError(errno.ENODEV, f"create veth {port.name}")
        host, inside = self._index(), self._index()
        self.links[port.name] = Link(host, port.name, False, port.mtu, port.mac, "veth", port.bridge, inside)
        space.links[port.peer_name] = Link(inside, port.peer_name, False, port.mtu, port.peer_mac, "veth", 0, host)
        return PortEnds(host, inside, netns_fd)

    @call
    def configure_inside(
        self,
        netns_fd: int,
        index: int,
        ifname: str,
        addresses: Sequence[Interface],
        routes: Sequence[Route],
        *,
        gateway: GatewayEnd | None = None,
    ) -> list[Route]:
        space = self.spaces[netns_fd]
        link = space.links[ifname]
        if link.index != index:
            raise NetlinkError(errno.ENODEV, f"bring up link {index}")
        space.links[ifname] = replace(link, up=True)
        space.addresses[index] = list(addresses)
        taken = {route.dst for route in space.routes}
        space.routes += [route for route in routes if route.dst not in taken]
        return [route for route in routes if route.dst in taken]

    @call
    def raise_port(self, index: int, owner: str = "") -> None:
        name = next(name for name, link in self.links.items() if link.index == index)
        self.links[name] = replace(self.links[name], up=True, hairpin=True, alias=owner or self.links[name].alias)

    @call
    def raise_routed(self, end: RoutedEnd, owner: str = "") -> None:
        self.raise_port(end.index, owner)
        self.routed_ends[end.name] = end

    @quiet_call
    def set_gateway(self, netns_fd: int, index: int, gateway: GatewayEnd) -> None:
        self.gateway_ends[index] = gateway

    @quiet_call
    def set_neighbours(self, index: int, addresses: Sequence[Address], mac: str) -> None:
        name = next(name for name, link in self.links.items() if link.index == index)
        self.routed_ends[name] = replace(self.routed_ends[name], mac=mac)

    @call
    def routed_lacks(self, ends: Sequence[RoutedEnd]) -> dict[str, list[str]]:
        return {end.name: ["everything"] for end in ends if self.routed_ends.get(end.name) != end}

    @call
    def close_subnets(self, subnets: Sequence[Network]) -> None:
        self.closed |= set(subnets)

    @call
    def open_subnets(self, subnets: Sequence[Network]) -> None:
        self.closed -= set(subnets)

    @call
    def closed_subnets(self) -> set[Network]:
        return set(self.closed)

    @quiet_call
    def announce(self, host: int, netns_fd: int, ifname: str, mac: str, addresses: Sequence[Address]) -> None:
        self.announced += [(mac, str(address)) for address in addresses]

    @call
    def mark(self, index: int, owner: str) -> None:
        name = next(name for name, link in self.links.items() if link.index == index)
        self.links[name] = replace(self.links[name], alias=owner)

    @call
    def enslave(self, index: int, bridge: int) -> None:
        name = next(name for name, link in self.links.items() if link.index == index)
        self.links[name] = replace(self.links[name], master=bridge)

    @call
    def rename_link(self, index: int, name: str) -> None:
        before = next(before for before, link in self.links.items() if link.index == index)
        if name in self.links:
            raise NetlinkError(errno.EEXIST, f"rename link {index} to {name}")
        self.links[name] = replace(self.links.pop(before), name=name, up=True)

    @call
    def has_interface(self, netns_fd: int, ifname: str) -> bool:
        return ifname in self.spaces[netns_fd].links

    @call
    def inspect(self, netns_fd: int, ifname: str, sought: Sought) -> ContainerView:
        space = self.spaces[netns_fd]
        link = space.links.get(ifname)
        if link is None:
            return ContainerView(None)
        addresses = [each for each in space.addresses.get(link.index, []) if each in sought.addresses]
        routes = [each for each in space.routes if (each.dst, each.gateway) in sought.routes]
        found = frozenset(
            p for p in sought.patterns if (p.dst, p.gateway) in {(r.dst, r.gateway) for r in space.routes}
        )
        return ContainerView(link, tuple(addresses), tuple(routes), (), found, sought.gateways)

    @call
    def has_default_route(self, netns_fd: int, version: int) -> bool:
        routes = self.spaces[netns_fd].routes
        return any(each.dst.prefixlen == 0 and each.dst.version == version for each in routes)

    def close(self) -> None:
        pass

    # --- cni.daemon.parts_fence.Fence ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Forget all ports and routes of an earlier daemon."""

    @quiet_call
    def load(self) -> bool:
        self.loaded = True
        return False

    @quiet_call
    def restore(self, sets: frozenset[tuple[str, str]], generations: Iterable[int], by: str) -> bool:
        return False

    def prime(self) -> None:
        """Nothing has to be ready."""

    def is_settled(self) -> bool:
        return True

    def repaired(self) -> str:
        return ""

    def repairs(self) -> int:
        return 0

    def changes_took(self) -> dict[tuple[str, ...], Times]:
        return {}

    def portid(self) -> int:
        return 0

    def node(self) -> FenceNode:
        return FenceNode(clusters=())

    def refused(self) -> dict[str, str]:
        return {}

    def faults(self) -> list[str]:
        return [self.complaint] if self.complaint else []

    @quiet_call
    def forward_chains(self) -> frozenset[str]:
        return frozenset()

    @quiet_call
    def open_forwarding(self) -> str:
        return ""

    @quiet_call
    def unanswered_services(self) -> str:
        return ""

    @quiet_call
    def follow(self) -> None:
        return None

    @quiet_call
    def change_policies(self, work: object) -> None:
        """No policy isolates a port here."""

    @quiet_call
    def judge(self, client: str, server: str, protocol: str, port: int) -> Decision:
        return may(Flow(End(client), End(server), protocol, port), (), {})

    @quiet_call
    def obstacles(self) -> dict[str, str]:
        return {}

    def reopen(self) -> None:
        """Nothing was closed."""

    def close_forwarding(self) -> None:
        """Nothing was opened."""

    @quiet_call
    def unload(self) -> None:
        self.loaded = False

    def trouble(self) -> str:
        return self.complaint

    def sample_drops(self) -> None:
        """Nothing is logged here."""

    def end_sample(self) -> None:
        """Nothing was logged."""

    @fence_call
    def add_bridge(self, name: str) -> None:
        self.fenced_bridges.add(name)

    @quiet_call
    def remove_bridge(self, name: str) -> None:
        self.fenced_bridges.discard(name)

    @fence_call
    def add_port(self, attachment: Attachment) -> None:
        self.admitted[attachment.host_veth] = attachment

    @quiet_call
    def remove_port(self, attachment: Attachment) -> None:
        self.admitted.pop(attachment.host_veth, None)

    @quiet_call
    def connect(self, beyond: object) -> None:
        """Nothing lies behind tunnels here."""

    @quiet_call
    def missing(self, attachment: Attachment) -> list[str]:
        return [] if attachment.host_veth in self.admitted else [attachment.host_veth]
