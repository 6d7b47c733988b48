"""Services on this node: each has a bridge, a subnet of each family, and a gateway in each subnet (contract 6.4, 6.5).

A service in mode `shared` uses the node's one shared bridge, whose subnets are kept under a reserved name.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress

from cni.daemon.attachments import segment_names
from cni.daemon.attachments.segment_names import SHARED
from cni.daemon.attachments.slot_source import SlotSource
from cni.daemon.fence.members import FenceMembers
from cni.daemon.model import attach_kind, ipam, macs
from cni.daemon.model.records import Service
from cni.daemon.node.container_mtu import ContainerMtu
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import Settings
from cni.daemon.state.state import Locks, State
from cni.errors import AttachFailed, CniError, InvalidConfig
from cni.host.kernel import Kernel
from cni.host.links import Interface, Link, Network
from cni.host.worker import beat

log = logging.getLogger(__name__)


class Segments:
    """Creates and removes service segments. One lock per segment: see `holding`."""

    def __init__(
        self,
        *,
        state: State,
        kernel: Kernel,
        fence: FenceMembers,
        slots: SlotSource,
        container_mtu: ContainerMtu,
        board: ProblemBoard,
        settings: Settings,
        may_begin: Callable[[], None],
    ) -> None:
        """`may_begin` raises CniError while the node is not in service."""
        self._attach_kinds, self._attach_default = settings.attach_kinds, settings.attach
        self._state, self._kernel, self._fence = state, kernel, fence
        self._slots, self._container_mtu, self._board, self._may_begin = slots, container_mtu, board, may_begin
        self._locks = Locks()
        self._ready: set[str] = set()

    @contextmanager
    def holding(self, service: str, mode: str) -> Iterator[str]:
        """The segment's name, with its lock held: no other thread creates, grows or removes the segment."""
        segment = SHARED if mode == "shared" else service
        with self._locks.holding(segment):
            yield segment

    def ensure(self, name: str, mode: str, keep: bool = False, attach: str = "") -> Service:
        """Create the service's segment, with its bridge in the kernel, and return it. Idempotent: a repetition repairs
        what is missing.

        `attach`: the kind of attach that is asked for, "" for none (`attach_kind.wanted`).
        `keep`: the segment stays when it is empty, until `teardown`; else a new segment may be released when empty.

        Raises PoolExhausted if the cluster has no subnet left, AttachFailed if the kernel refuses, InvalidConfig for a
        name that no interface can have, for a change to or from `shared` or of the kind of attach while the service has
        addresses in use, and if a range of the cluster is too small for any service.
        """
        self._may_begin()
        with self.holding(name, mode) as segment:
            self._accept(name, mode, segment)
            self._state.check_slots()  # before a slot is claimed in the store
            before = self._state.service(segment)
            kind = self._kind(name, segment, before, attach)
            fresh = before is None
            if before is None:
                segment_names.refuse_same_bridge(self._state.node, segment, self._state.services.values())
            elif mode == "auto" and before.mode == "dedicated":
                mode = "dedicated"  # set by an agent; an attach without a mode of its own does not change it
            if mode == "dedicated" and (before is None or before.mode != mode):
                segment_names.refuse_same_device(self._state.node, name, self._state.services.values())
            if before is not None and before.attach != kind:
                self.dismantle(before)
            granted = self._slots.first(segment)
            passing = False if keep else True if fresh and segment != SHARED else None
            record = self._state.take_service(
                segment, mode, segment_names.bridge_name(self._state.node, segment), granted, passing, attach=kind
            )
            self._board.clear("service-incomplete", f"{segment} subnets")
            if segment == SHARED:
                self._state.note_service(Service(name=name, mode=mode, bridge=record.bridge, attach=record.attach))
            if not self._is_ready(record):
                self._build_or_forget(record, fresh)
            return record

    def _kind(self, name: str, segment: str, before: Service | None, asked: str) -> str:
        """The segment's kind of attach. Raises InvalidConfig."""
        kind = attach_kind.wanted(asked, self._attach_kinds, self._attach_default, name)
        if before is None or before.attach == kind or not self._state.in_use(segment):
            return kind
        return attach_kind.kept(asked, name, before.attach)

    def _is_ready(self, service: Service) -> bool:
        return service.bridge in self._ready and (service.is_routed or self._kernel.index_of(service.bridge) > 0)

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
        segment_names.usable_bridge_name(self._state.node, segment, name)
        record = self._state.service(name)
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

    def _build(self, service: Service) -> None:
        if service.is_routed:
            self._build_routed(service)
            return
        gateways = [gateway(ipaddress.ip_network(subnet)) for subnet in service.subnets]
        self._fence.add_bridge(service.bridge)
        try:
            self._kernel.ensure_bridge(
                service.bridge, macs.of_bridge(service.bridge), self._container_mtu.current(), gateways
            )
        except OSError as error:
            raise AttachFailed(f"cannot set up the bridge of service {service.name}: {error}") from error
        self._ready.add(service.bridge)
        self._board.clear("service-incomplete", service.name)

    def _build_routed(self, service: Service) -> None:
        """A routed segment: no link, and subnets in which only the routes of ports lead anywhere."""
        try:
            self._kernel.close_subnets(_subnets(service))
        except OSError as error:
            raise AttachFailed(f"cannot set up the subnets of service {service.name}: {error}") from error
        self._ready.add(service.bridge)
        self._board.clear("service-incomplete", service.name)

    def broken(self, seen: Mapping[str, Link]) -> list[str]:
        """The segments that need a repair, by the names of their bridges: the bridge is missing, down, or without one
        of its gateways, or a routed segment lacks the route of a subnet. `seen`: links by name."""
        addresses = self._kernel.all_addresses()
        services = [service for service in self._state.services.values() if service.subnets]
        closed = self._kernel.closed_subnets() if any(service.is_routed for service in services) else set()
        bridges = [s.bridge for s in services if s.is_routed and not closed.issuperset(_subnets(s))]
        for service in services:
            if service.is_routed:
                continue
            link = seen.get(service.bridge)
            gateways = {gateway(ipaddress.ip_network(subnet)) for subnet in service.subnets}
            if (
                link is None
                or not link.up
                or link.mac != macs.of_bridge(service.bridge)
                or not gateways <= addresses.get(link.index, set())
            ):
                bridges.append(service.bridge)
        return bridges

    def rebuild(self, bridge: str) -> None:
        """Build a bridge again, with its gateways; a failure becomes a problem. Never raises."""
        for service in self._state.services.values():
            if service.bridge == bridge and service.subnets:
                what = f"service {service.name} is not whole"
                with self._step(service.name, what), self.holding(service.name, service.mode):
                    self._build(service)

    def grow(self, segment: str, version: int) -> Service:
        """Add one more subnet and its gateway. The caller holds the segment's lock. Raises PoolExhausted,
        AttachFailed."""
        service = self._state.grow_service(segment, version, self._slots.further(segment, version))
        subnet = ipaddress.ip_network(service.subnets[-1])
        try:
            self._open(service, subnet)
        except OSError as error:
            # The gateway may have been set in spite of the error. If it cannot be removed, the service keeps the empty
            # subnet, and the reconciler's `shrink` releases it.
            with suppress(OSError):
                self.withdraw(service, subnet)
                self._state.shrink_service(segment, [subnet])
            raise AttachFailed(f"cannot give service {segment} the further subnet {subnet}: {error}") from error
        return service

    def _open(self, service: Service, subnet: Network) -> None:
        if service.is_routed:
            self._kernel.close_subnets([subnet])
        else:
            self._kernel.ensure_gateway(service.bridge, gateway(subnet))

    def withdraw(self, service: Service, subnet: Network) -> None:
        """Remove a further subnet from the kernel: its gateway, or its route. Raises OSError."""
        if service.is_routed:
            self._kernel.open_subnets([subnet])
        else:
            self._kernel.remove_gateway(service.bridge, gateway(subnet))

    def teardown(self, name: str) -> None:
        """Remove the service's bridge, subnets and record (contract 6.6). An unknown service is no error.

        The shared bridge stays: other services may use it.
        """
        with self.holding(name, "auto"):
            service = self._state.service(name)
            if service is not None and not service.subnets:
                self._state.drop_service(name)
                return
            bridge = service.bridge if service is not None else segment_names.bridge_name(self._state.node, name)
            owner = segment_names.owner_of(bridge, self._state.services.values())
            if owner is None or owner.name == name:  # an unknown service's name may hash to another's bridge
                self._unbuild(name, bridge)

    def _unbuild(self, segment: str, bridge: str) -> None:
        self.dismantle(self._state.service(segment) or Service(name=segment, mode="auto", bridge=bridge))
        for subject in (segment, f"{segment} subnets"):
            self._board.clear("service-incomplete", subject)
        self._state.drop_service(segment)

    def dismantle(self, service: Service) -> None:
        """Remove what a segment has in the kernel: its bridge, but no link of another kind of that name, or the routes
        of its subnets. Raises OSError."""
        if service.is_routed:
            self._kernel.open_subnets(_subnets(service))
            self._ready.discard(service.bridge)
            return
        link = self._kernel.find(service.bridge)
        if link is not None and link.kind == "bridge":
            self._kernel.remove_link(service.bridge)
        self._ready.discard(service.bridge)
        self._fence.remove_bridge(service.bridge)

    def teardown_shared(self) -> None:
        """Remove the shared bridge: only when the whole node is torn down."""
        with self.holding(SHARED, "shared"):
            service = self._state.service(SHARED)
            if service is not None:
                self._unbuild(SHARED, service.bridge)

    def restore(self) -> None:
        """After a restart: build the bridge and gateways of every recorded service, for every IP version that the node
        has now.

        A service that cannot be built keeps its record, and the reconciler tries again.
        """
        for service in self._state.services.values():
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


def _subnets(service: Service) -> list[Network]:
    return [ipaddress.ip_network(subnet) for subnet in service.subnets]


def gateway(subnet: Network) -> Interface:
    """The gateway's address on the bridge, with the subnet's prefix."""
    return ipaddress.ip_interface(f"{ipam.gateway_of(subnet)}/{subnet.prefixlen}")
