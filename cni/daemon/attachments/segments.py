"""Services on this node: each has a bridge, a subnet of each family, and a gateway in each subnet (contract 6.4, 6.5).

A service in mode `shared` uses the node's one shared bridge, whose subnets are kept under a reserved name.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

from cni import naming
from cni.daemon.attachments.service_limits import Idle
from cni.daemon.fence.controller import FenceController
from cni.daemon.model import ipam, macs
from cni.daemon.model.records import Service
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.state import Locks, State
from cni.errors import AttachFailed, CniError, InvalidConfig, TryAgainLater
from cni.host.kernel import Kernel
from cni.host.links import Interface, Link, Network
from cni.host.worker import beat

WIREGUARD_OVERHEAD = 80  # bytes: outer IPv6 (40), UDP (8), WireGuard's header and tag (32); IPv4 underlays use 60
SHARED = naming.SHARED_BRIDGE_KEY
EMPTY = 60.0  # seconds: pods of one service that follow each other find its bridge
USABLE = re.compile(r"[^\s/:%\"\\*\x00-\x1f\x7f]+")
"""What an interface may be called: the kernel refuses some characters, makes another name of others (a `%d`, a NUL),
and the fence's rules cannot spell the rest."""


log = logging.getLogger(__name__)


class Claims(Protocol):
    """Who agrees with the other nodes on subnets (cluster.py)."""

    def held(self, service: str, version: int) -> list[Network]:
        """What this node has claimed for the service and not in use yet."""

    def claim(self, network: Network, service: str) -> bool:
        """Whether the slot is this node's for the service from now on. Raises TryAgainLater when nobody can say."""

    def take_spare(self, version: int, service: str) -> Network | None:
        """A slot that was claimed in advance, for such times."""


class Segments:
    """Makes and unmakes service segments. One lock per segment: see `holding`."""

    def __init__(
        self,
        state: State,
        kernel: Kernel,
        barrier: FenceController,
        mtu: int | None,
        board: ProblemBoard,
        *,
        may_begin: Callable[[], None] = lambda: None,
    ) -> None:
        """`may_begin` raises CniError while the node is not in service."""
        self._may_begin = may_begin
        self._state = state
        self._kernel = kernel
        self._barrier = barrier
        self._mtu = mtu
        self._board = board
        self._locks = Locks()
        self._ready: set[str] = set()
        self.claims: Claims | None = None
        self._idle = Idle()
        self._empty_since: dict[str, float] = {}
        self._leaving: set[str] = set()  # ephemeral services that could not be taken down at once

    def mtu(self) -> int:
        """The MTU containers get: the underlay's less what WireGuard adds, or what the YAML says. Bytes."""
        return self._mtu or self._kernel.underlay_mtu() - WIREGUARD_OVERHEAD

    @contextmanager
    def holding(self, service: str, mode: str) -> Iterator[str]:
        """The segment's name, with its lock held: nobody sets it up, grows it or takes it down meanwhile."""
        segment = SHARED if mode == "shared" else service
        with self._locks.holding(segment):
            yield segment

    def ensure(self, name: str, mode: str, keep: bool = False) -> Service:
        """The service's segment, with its bridge in the kernel. Repeating it mends what is missing.

        `keep`: it stays when it is empty, until it is torn down; else a new one may be given back then.

        Raises PoolExhausted when the cluster has no subnet left, AttachFailed when the kernel refuses, InvalidConfig
        for a name no interface can have, for a change to or from `shared` under running containers, and where a range
        of the cluster is too small for any service.
        """
        self._may_begin()
        with self.holding(name, mode) as segment:
            self._accept(name, mode, segment)
            self._state.check_slots()  # before other nodes are asked for one
            fresh = segment not in self._state.services
            if fresh:
                self._refuse_twin(segment)
            if mode == "auto" and not fresh and self._state.services[segment].mode == "dedicated":
                mode = "dedicated"  # an agent set it up so; a container that has no wish of its own changes nothing
            if mode == "dedicated" and (fresh or self._state.services[segment].mode != mode):
                self._refuse_twin_device(name)
            granted = {version: self._claim(segment, version, 0) for version in self._unclaimed(segment)}
            passing = False if keep else True if fresh and segment != SHARED else None
            known = self._state.take_service(segment, mode, self._bridge_name(segment), granted, passing)
            self._board.clear("service-incomplete", f"{segment} subnets")
            if segment == SHARED:
                self._state.note_service(Service(name=name, mode=mode, bridge=known.bridge))
            if known.bridge not in self._ready or self._kernel.find(known.bridge) is None:
                self._build_or_forget(known, fresh)
            return known

    def _unclaimed(self, segment: str) -> list[int]:
        """The families of which the segment needs a subnet that the other nodes must agree to."""
        return [] if self.claims is None else self._state.lacks(segment)

    def _claim(self, segment: str, version: int, n: int) -> Network:
        """A slot that no other node has, nor can take. Raises PoolExhausted, TryAgainLater."""
        assert self.claims is not None
        refused: list[Network] = []
        known = self._state.services.get(segment)
        own = [] if known is None else known.networks(version)
        try:
            for network in self.claims.held(segment, version):
                usable = network not in own and self._state.is_usable(network)
                if usable and self.claims.claim(network, segment):
                    return network
            while True:
                network = self._state.propose(segment, version, n, refused)
                if self.claims.claim(network, segment):
                    return network
                refused.append(network)
        except TryAgainLater:
            spare = self.claims.take_spare(version, segment)
            if spare is None or not self._state.is_usable(spare):
                raise
            return spare

    def _build_or_forget(self, service: Service, fresh: bool) -> None:
        """Build; a service that is new and cannot be built leaves nothing, one that was there keeps what it has."""
        try:
            self._build(service)
        except CniError:
            if fresh:
                try:
                    self._unbuild(service.name, service.bridge)
                except OSError as error:
                    log.warning("the half-made bridge %s could not be removed: %s", service.bridge, error)
            raise

    def _accept(self, name: str, mode: str, segment: str) -> None:
        """Refuse what cannot be; a service that goes to or from the shared bridge loses its own segment, or gets it."""
        if name == SHARED:
            raise InvalidConfig(f"service: {name!r} is a reserved name")
        bridge = self._bridge_name(segment)
        if not USABLE.fullmatch(bridge):
            raise InvalidConfig(f"service: {name!r} does not make an interface name ({bridge!r})")
        known = self._state.services.get(name)
        if known is None or (known.mode == "shared") == (mode == "shared"):
            return
        if known.mode == "shared":
            self._state.drop_service(name)
            return
        with self.holding(name, known.mode):
            if self._state.in_use(name):
                raise InvalidConfig(
                    f"service: {name!r} is in mode {known.mode} and has addresses in use: it cannot become shared now"
                )
            self.teardown(name)

    def _refuse_twin(self, segment: str) -> None:
        """Raises InvalidConfig for a service whose bridge would be another's. A long name becomes 40 bits of a hash
        without a secret, and whoever may choose names may find one; with it he would take that bridge down."""
        bridge = self._bridge_name(segment)
        other = self._owner_of(bridge)
        if other is not None and other.name != segment:
            raise InvalidConfig(f"service: {segment!r} makes the interface name {bridge!r}, which {other.name!r} has")

    def _refuse_twin_device(self, name: str) -> None:
        """The same for the WireGuard device of a service in mode dedicated."""
        device = self._device_name(name)
        for other in list(self._state.services.values()):
            if other.mode == "dedicated" and other.name != name and self._device_name(other.name) == device:
                raise InvalidConfig(f"service: {name!r} makes the interface name {device!r}, which {other.name!r} has")

    def _owner_of(self, bridge: str) -> Service | None:
        """The service that has a bridge of that name by its record."""
        return next((s for s in list(self._state.services.values()) if s.bridge == bridge and s.subnets), None)

    def _bridge_name(self, segment: str) -> str:
        node = self._state.node
        if segment == SHARED:
            return naming.shared_bridge(node.deployment, node.instance_id)
        return naming.service_bridge(node.deployment, node.instance_id, segment)

    def _device_name(self, service: str) -> str:
        return naming.dedicated_device(self._state.node.deployment, self._state.node.instance_id, service)

    def _build(self, service: Service) -> None:
        gateways = [gateway(ipaddress.ip_network(subnet)) for subnet in service.subnets]
        self._barrier.add_bridge(service.bridge)
        try:
            self._kernel.ensure_bridge(service.bridge, macs.of_bridge(service.bridge), self.mtu(), gateways)
        except OSError as error:
            raise AttachFailed(f"cannot set up the bridge of service {service.name}: {error}") from error
        self._ready.add(service.bridge)
        self._board.clear("service-incomplete", service.name)

    def broken(self, seen: Mapping[str, Link]) -> list[str]:
        """The bridges that are not as they should be: missing, down, or without one of their gateways."""
        addresses = self._kernel.all_addresses()
        found = []
        for service in list(self._state.services.values()):
            if not service.subnets:
                continue
            link = seen.get(service.bridge)
            gateways = {gateway(ipaddress.ip_network(subnet)) for subnet in service.subnets}
            if link is None or not link.up or not gateways <= addresses.get(link.index, set()):
                found.append(service.bridge)
        return found

    def rebuild(self, bridge: str) -> None:
        """A bridge that was taken away is there again, with its gateways; what cannot be is a problem. Never raises."""
        for service in list(self._state.services.values()):
            if service.bridge == bridge and service.subnets:
                what = f"service {service.name} is not whole"
                with self._step(service.name, what), self.holding(service.name, service.mode):
                    self._build(service)

    def grow(self, segment: str, version: int) -> Service:
        """One more subnet, and its gateway. The caller holds the segment. Raises PoolExhausted, AttachFailed."""
        granted = None
        if self.claims is not None:
            granted = self._claim(segment, version, self._state.next_slot(segment, version))
        service = self._state.grow_service(segment, version, granted)
        subnet = ipaddress.ip_network(service.subnets[-1])
        try:
            self._kernel.ensure_gateway(service.bridge, gateway(subnet))
        except OSError as error:
            # It may have taken effect all the same. Where it cannot be undone the subnet stays the service's, with
            # nobody in it, and goes when the keeper shrinks.
            with suppress(OSError):
                self._kernel.remove_gateway(service.bridge, gateway(subnet))
                self._state.shrink_service(segment, [subnet])
            raise AttachFailed(f"cannot give service {segment} the further subnet {subnet}: {error}") from error
        return service

    def settle(self, name: str, mode: str, ephemeral: bool) -> None:
        """After somebody left: give back what the service needs no more. What fails is tried again at the next look."""
        try:
            self.shrink(name, mode)
            if ephemeral or name in self._leaving:
                self.leave(name, mode)
            self._leaving.discard(name)
            self._idle.note(name, self._state.in_use(name), time.monotonic())
        except (OSError, CniError) as error:
            log.warning("service %s could not give back what it needs no more: %s", name, error)
            if ephemeral:
                self._leaving.add(name)

    def shrink(self, name: str, mode: str) -> None:
        """Take back further subnets that nobody has an address in any more, their gateways first. Raises OSError."""
        with self.holding(name, mode) as segment:
            service = self._state.services.get(segment)
            if service is None or len(service.subnets) <= len(self._state.cidrs):
                return
            for subnet in self._state.idle_slots(segment):
                self._kernel.remove_gateway(service.bridge, gateway(subnet))
                self._state.shrink_service(segment, [subnet])

    def shrink_all(self) -> None:
        """Every service gives back the subnets it needs no more."""
        for service in list(self._state.services.values()):
            beat()
            self.settle(service.name, service.mode, ephemeral=False)

    def vacate(self) -> None:
        """Subnets that nothing new may get an address in are given back once they are empty: a service without
        containers is taken down, and is made anew elsewhere when it is wanted."""
        for service in list(self._state.services.values()):
            if self._is_usable(service):
                continue
            self.shrink(service.name, service.mode)
            with self.holding(service.name, service.mode):
                now = self._state.services.get(service.name)
                if now is None or self._state.in_use(service.name) or self._is_usable(now):
                    continue
                self._remove_bridge(service.bridge)
                self._state.empty_service(service.name)

    def _is_usable(self, service: Service) -> bool:
        return all(self._state.is_usable(ipaddress.ip_network(subnet)) for subnet in service.subnets)

    def give_back_idle(self, kept: int) -> int:
        """Tear services down that an ADD made and that are empty, the longest empty ones first, until no more than
        `kept` are left; how many went. The caller holds no segment. Never raises: one that cannot go stays."""
        gone = 0
        for service in self._idle.over(self._state.idle_services(), kept):
            try:
                with self.holding(service.name, service.mode):
                    if self._state.services.get(service.name) == service and not self._state.in_use(service.name):
                        self.teardown(service.name)
                        gone += 1
            except (OSError, CniError) as error:
                log.warning("the empty service %s could not give its subnet back: %s", service.name, error)
        if gone:
            log.info("%d services without a container gave their subnets back", gone)
        return gone

    def give_back_empty(self, now: float) -> None:
        """A service that an ADD made, and that has had no user for `EMPTY` seconds, gives its bridge and subnets back.
        `now`: the monotonic clock. What an agent set up stays until an agent takes it down."""
        names = [service.name for service in self._state.idle_services()]
        self._empty_since = {name: self._empty_since.get(name, now) for name in names}
        for name, since in self._empty_since.items():
            if now - since >= EMPTY:
                beat()
                log.info("service %s has had no user for %g s: it gives its subnets back", name, EMPTY)
                self.leave(name, "auto")

    def leave(self, name: str, mode: str) -> None:
        """After an ephemeral attachment went: tear the service down if nobody is on it. Never the shared bridge."""
        if mode == "shared":
            return
        with self.holding(name, mode):
            service = self._state.services.get(name)
            if service is not None and not self._state.in_use(name):
                self.teardown(name)

    def teardown(self, name: str) -> None:
        """No bridge, subnet or record of the service afterwards (contract 6.6). Unknown services are fine.

        The shared bridge stays: other services may use it.
        """
        with self.holding(name, "auto"):
            service = self._state.services.get(name)
            if service is not None and not service.subnets:
                self._state.drop_service(name)
                return
            bridge = service.bridge if service is not None else self._bridge_name(name)
            owner = self._owner_of(bridge)
            if owner is None or owner.name == name:  # a service without a record may make the name of another's bridge
                self._unbuild(name, bridge)

    def _unbuild(self, segment: str, bridge: str) -> None:
        self._remove_bridge(bridge)
        for subject in (segment, f"{segment} subnets"):
            self._board.clear("service-incomplete", subject)
        self._state.drop_service(segment)

    def _remove_bridge(self, bridge: str) -> None:
        """No bridge of that name; a link of another kind is not ours and stays."""
        link = self._kernel.find(bridge)
        if link is not None and link.kind == "bridge":
            self._kernel.remove_link(bridge)
        self._ready.discard(bridge)
        self._barrier.remove_bridge(bridge)

    def teardown_shared(self) -> None:
        """No shared bridge afterwards: only when the whole node is taken down."""
        with self.holding(SHARED, "shared"):
            service = self._state.services.get(SHARED)
            if service is not None:
                self._unbuild(SHARED, service.bridge)

    def restore(self) -> None:
        """After a restart: every recorded service has its bridge and gateways, of every family the node has now.

        One that cannot be built keeps its record, and the keeper goes on trying.
        """
        for service in list(self._state.services.values()):
            if not service.subnets:
                continue
            with self.holding(service.name, service.mode):
                known = service
                with self._step(f"{service.name} subnets", f"service {service.name} lacks a subnet"):
                    known = self._state.take_service(service.name, service.mode, service.bridge)
                with self._step(service.name, f"service {service.name} is not whole"):
                    self._build(known)

    def _step(self, subject: str, what: str) -> AbstractContextManager[None]:
        """Work on one service: what it raises is a problem of that service, and the others go on."""
        beat()
        return self._board.step("service-incomplete", subject, what)


def gateway(subnet: Network) -> Interface:
    """The gateway's address on the bridge, with the subnet's prefix."""
    return ipaddress.ip_interface(f"{ipam.gateway_of(subnet)}/{subnet.prefixlen}")
