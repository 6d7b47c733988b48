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
from cni.daemon.model import ipam, macs, sizes
from cni.daemon.model.records import Service
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.state import Locks, State
from cni.errors import AttachFailed, CniError, InvalidConfig, TryAgainLater
from cni.host.kernel import Kernel
from cni.host.links import Interface, Link, Network
from cni.host.worker import beat

SHARED = naming.SHARED_BRIDGE_KEY
EMPTY = 60.0  # seconds that an empty service keeps its bridge, so that the service's next pod finds it
USABLE = re.compile(r"[^\s/:%\"\\*\x00-\x1f\x7f]+")
"""Interface names that can be used: the kernel refuses some of the excluded characters, replaces others (`%d`, NUL),
and the syntax of the fence's rules has no form for the rest."""


log = logging.getLogger(__name__)


class Claims(Protocol):
    """Claims of subnets that exclude the other nodes (cluster/claims.py)."""

    def held(self, service: str, version: int) -> list[Network]:
        """The slots that this node has claimed for the service and does not use yet."""

    def claim(self, network: Network, service: str) -> bool:
        """Claim the slot for the service; False if another node has it. Raises TryAgainLater while the store cannot be
        reached."""

    def take_spare(self, version: int, service: str) -> Network | None:
        """A slot that was claimed in advance, for use while the store cannot be reached; None if there is none."""


class Segments:
    """Creates and removes service segments. One lock per segment: see `holding`."""

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
        """The MTU that containers get, in bytes: the YAML's, else what fits into a tunnel over the underlay."""
        return self._mtu or sizes.inside(self._kernel.underlay_mtu(), 6 in self._state.versions())

    @contextmanager
    def holding(self, service: str, mode: str) -> Iterator[str]:
        """The segment's name, with its lock held: no other thread creates, grows or removes the segment."""
        segment = SHARED if mode == "shared" else service
        with self._locks.holding(segment):
            yield segment

    def ensure(self, name: str, mode: str, keep: bool = False) -> Service:
        """Create the service's segment, with its bridge in the kernel, and return it. Idempotent: a repetition repairs
        what is missing.

        `keep`: the segment stays when it is empty, until `teardown`; else a new segment may be released when empty.

        Raises PoolExhausted if the cluster has no subnet left, AttachFailed if the kernel refuses, InvalidConfig for a
        name that no interface can have, for a change to or from `shared` while the service has addresses in use, and if
        a range of the cluster is too small for any service.
        """
        self._may_begin()
        with self.holding(name, mode) as segment:
            self._accept(name, mode, segment)
            self._state.check_slots()  # before a slot is claimed in the store
            fresh = segment not in self._state.services
            if fresh:
                self._refuse_same_bridge(segment)
            if mode == "auto" and not fresh and self._state.services[segment].mode == "dedicated":
                mode = "dedicated"  # set by an agent; an attach without a mode of its own does not change it
            if mode == "dedicated" and (fresh or self._state.services[segment].mode != mode):
                self._refuse_same_device(name)
            granted = {version: self._claim(segment, version, 0) for version in self._unclaimed(segment)}
            passing = False if keep else True if fresh and segment != SHARED else None
            record = self._state.take_service(segment, mode, self._bridge_name(segment), granted, passing)
            self._board.clear("service-incomplete", f"{segment} subnets")
            if segment == SHARED:
                self._state.note_service(Service(name=name, mode=mode, bridge=record.bridge))
            if record.bridge not in self._ready or self._kernel.find(record.bridge) is None:
                self._build_or_forget(record, fresh)
            return record

    def _unclaimed(self, segment: str) -> list[int]:
        """The IP versions of which the segment needs a subnet that must be claimed in the store."""
        return [] if self.claims is None else self._state.lacks(segment)

    def _claim(self, segment: str, version: int, n: int) -> Network:
        """Claim a slot, so that no other node has it or can take it; the segment's `n`th of that IP version, 0 the
        first. Raises PoolExhausted, TryAgainLater."""
        assert self.claims is not None
        refused: list[Network] = []
        record = self._state.services.get(segment)
        own = [] if record is None else record.networks(version)
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
        """Build the bridge. If that fails, a new service (`fresh`) is removed completely, and an existing one keeps
        what it has."""
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
        """Validate name and mode. A service that changes to the shared bridge loses its own segment; a service that
        leaves the shared bridge gets a segment of its own. Raises InvalidConfig."""
        if name == SHARED:
            raise InvalidConfig(f"service: {name!r} is a reserved name")
        bridge = self._bridge_name(segment)
        if not USABLE.fullmatch(bridge):
            raise InvalidConfig(f"service: {name!r} does not make an interface name ({bridge!r})")
        record = self._state.services.get(name)
        if record is None or (record.mode == "shared") == (mode == "shared"):
            return
        if record.mode == "shared":
            self._state.drop_service(name)
            return
        with self.holding(name, record.mode):
            if self._state.in_use(name):
                raise InvalidConfig(
                    f"service: {name!r} is in mode {record.mode} and has addresses in use: it cannot become shared now"
                )
            self.teardown(name)

    def _refuse_same_bridge(self, segment: str) -> None:
        """Raises InvalidConfig if another service's bridge has the interface name that this one's would have.

        A long service name becomes 40 bits of a hash without a secret, so a user who may choose service names can find
        a collision, and with it take the other service's bridge down.
        """
        bridge = self._bridge_name(segment)
        other = self._owner_of(bridge)
        if other is not None and other.name != segment:
            raise InvalidConfig(f"service: {segment!r} makes the interface name {bridge!r}, which {other.name!r} has")

    def _refuse_same_device(self, name: str) -> None:
        """As `_refuse_same_bridge`, for the WireGuard device of a service in mode dedicated. Raises InvalidConfig."""
        device = self._device_name(name)
        for other in list(self._state.services.values()):
            if other.mode == "dedicated" and other.name != name and self._device_name(other.name) == device:
                raise InvalidConfig(f"service: {name!r} makes the interface name {device!r}, which {other.name!r} has")

    def _owner_of(self, bridge: str) -> Service | None:
        """The service whose record has a bridge of that name, and subnets."""
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
        """The bridges that need a repair: missing, down, or without one of their gateways. `seen`: links by name."""
        addresses = self._kernel.all_addresses()
        bridges = []
        for service in list(self._state.services.values()):
            if not service.subnets:
                continue
            link = seen.get(service.bridge)
            gateways = {gateway(ipaddress.ip_network(subnet)) for subnet in service.subnets}
            if link is None or not link.up or not gateways <= addresses.get(link.index, set()):
                bridges.append(service.bridge)
        return bridges

    def rebuild(self, bridge: str) -> None:
        """Build a bridge again, with its gateways; a failure becomes a problem. Never raises."""
        for service in list(self._state.services.values()):
            if service.bridge == bridge and service.subnets:
                what = f"service {service.name} is not whole"
                with self._step(service.name, what), self.holding(service.name, service.mode):
                    self._build(service)

    def grow(self, segment: str, version: int) -> Service:
        """Add one more subnet and its gateway. The caller holds the segment's lock. Raises PoolExhausted,
        AttachFailed."""
        granted = None
        if self.claims is not None:
            granted = self._claim(segment, version, self._state.next_slot(segment, version))
        service = self._state.grow_service(segment, version, granted)
        subnet = ipaddress.ip_network(service.subnets[-1])
        try:
            self._kernel.ensure_gateway(service.bridge, gateway(subnet))
        except OSError as error:
            # The gateway may have been set in spite of the error. If it cannot be removed, the service keeps the empty
            # subnet, and the reconciler's `shrink` releases it.
            with suppress(OSError):
                self._kernel.remove_gateway(service.bridge, gateway(subnet))
                self._state.shrink_service(segment, [subnet])
            raise AttachFailed(f"cannot give service {segment} the further subnet {subnet}: {error}") from error
        return service

    def release_unused(self, name: str, mode: str, ephemeral: bool) -> None:
        """After a detach: release the subnets, and the ephemeral service, that are no longer needed. A failure is
        logged and tried again at the next reconcile. Never raises OSError or CniError."""
        try:
            self.shrink(name, mode)
            if ephemeral or name in self._leaving:
                self.teardown_if_empty(name, mode)
            self._leaving.discard(name)
            self._idle.note(name, self._state.in_use(name), time.monotonic())
        except (OSError, CniError) as error:
            log.warning("service %s could not release what it no longer needs: %s", name, error)
            if ephemeral:
                self._leaving.add(name)

    def shrink(self, name: str, mode: str) -> None:
        """Release further subnets without an address in use, their gateways first. Raises OSError."""
        with self.holding(name, mode) as segment:
            service = self._state.services.get(segment)
            if service is None or len(service.subnets) <= len(self._state.cidrs):
                return
            for subnet in self._state.idle_slots(segment):
                self._kernel.remove_gateway(service.bridge, gateway(subnet))
                self._state.shrink_service(segment, [subnet])

    def shrink_all(self) -> None:
        """Release the subnets that services no longer need, for every service."""
        for service in list(self._state.services.values()):
            beat()
            self.release_unused(service.name, service.mode, ephemeral=False)

    def vacate(self) -> None:
        """Release empty subnets in which no new address may be given out. A service without containers loses its bridge
        and subnets, and gets other subnets at its next attach."""
        for service in list(self._state.services.values()):
            if self._is_usable(service):
                continue
            self.shrink(service.name, service.mode)
            with self.holding(service.name, service.mode):
                current = self._state.services.get(service.name)
                if current is None or self._state.in_use(service.name) or self._is_usable(current):
                    continue
                self._remove_bridge(service.bridge)
                self._state.empty_service(service.name)

    def _is_usable(self, service: Service) -> bool:
        return all(self._state.is_usable(ipaddress.ip_network(subnet)) for subnet in service.subnets)

    def release_idle(self, kept: int) -> int:
        """Tear down empty services that an ADD made, the longest empty first, until at most `kept` are left. Returns
        how many were torn down. The caller holds no segment's lock. Never raises: a service that fails stays."""
        released = 0
        for service in self._idle.over(self._state.idle_services(), kept):
            try:
                with self.holding(service.name, service.mode):
                    if self._state.services.get(service.name) == service and not self._state.in_use(service.name):
                        self.teardown(service.name)
                        released += 1
            except (OSError, CniError) as error:
                log.warning("the empty service %s could not give its subnet back: %s", service.name, error)
        if released:
            log.info("%d services without a container gave their subnets back", released)
        return released

    def release_empty(self, now: float) -> None:
        """Tear down services that an ADD made and that have had no user for `EMPTY` seconds. `now`: seconds of the
        monotonic clock. A service that an agent set up stays until an agent tears it down."""
        names = [service.name for service in self._state.idle_services()]
        self._empty_since = {name: self._empty_since.get(name, now) for name in names}
        for name, since in self._empty_since.items():
            if now - since >= EMPTY:
                beat()
                log.info("service %s has had no user for %g s: it gives its subnets back", name, EMPTY)
                self.teardown_if_empty(name, "auto")

    def teardown_if_empty(self, name: str, mode: str) -> None:
        """After an ephemeral attachment was removed: tear the service down if it has no user. The shared bridge
        stays."""
        if mode == "shared":
            return
        with self.holding(name, mode):
            service = self._state.services.get(name)
            if service is not None and not self._state.in_use(name):
                self.teardown(name)

    def teardown(self, name: str) -> None:
        """Remove the service's bridge, subnets and record (contract 6.6). An unknown service is no error.

        The shared bridge stays: other services may use it.
        """
        with self.holding(name, "auto"):
            service = self._state.services.get(name)
            if service is not None and not service.subnets:
                self._state.drop_service(name)
                return
            bridge = service.bridge if service is not None else self._bridge_name(name)
            owner = self._owner_of(bridge)
            if owner is None or owner.name == name:  # an unknown service's name may hash to another's bridge
                self._unbuild(name, bridge)

    def _unbuild(self, segment: str, bridge: str) -> None:
        self._remove_bridge(bridge)
        for subject in (segment, f"{segment} subnets"):
            self._board.clear("service-incomplete", subject)
        self._state.drop_service(segment)

    def _remove_bridge(self, bridge: str) -> None:
        """Remove the bridge of that name; a link of another kind stays."""
        link = self._kernel.find(bridge)
        if link is not None and link.kind == "bridge":
            self._kernel.remove_link(bridge)
        self._ready.discard(bridge)
        self._barrier.remove_bridge(bridge)

    def teardown_shared(self) -> None:
        """Remove the shared bridge: only when the whole node is torn down."""
        with self.holding(SHARED, "shared"):
            service = self._state.services.get(SHARED)
            if service is not None:
                self._unbuild(SHARED, service.bridge)

    def restore(self) -> None:
        """After a restart: build the bridge and gateways of every recorded service, for every IP version that the node
        has now.

        A service that cannot be built keeps its record, and the reconciler tries again.
        """
        for service in list(self._state.services.values()):
            if not service.subnets:
                continue
            with self.holding(service.name, service.mode):
                completed = service
                with self._step(f"{service.name} subnets", f"service {service.name} lacks a subnet"):
                    completed = self._state.take_service(service.name, service.mode, service.bridge)
                with self._step(service.name, f"service {service.name} is not whole"):
                    self._build(completed)

    def _step(self, subject: str, what: str) -> AbstractContextManager[None]:
        """One step for one service: an exception becomes a problem of that service, and the others go on."""
        beat()
        return self._board.step("service-incomplete", subject, what)


def gateway(subnet: Network) -> Interface:
    """The gateway's address on the bridge, with the subnet's prefix."""
    return ipaddress.ip_interface(f"{ipam.gateway_of(subnet)}/{subnet.prefixlen}")
