"""The context of every operation: the parts of the daemon that operations use, and locks for resources without one of
their own."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from cni.daemon.attachments.admission import Admission
from cni.daemon.attachments.attach import Attacher
from cni.daemon.attachments.overlay import DnsOffer
from cni.daemon.attachments.segment_release import SegmentRelease
from cni.daemon.attachments.segments import Segments
from cni.daemon.events import Events
from cni.daemon.fence.status import FenceStatus
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model.records import AssignedAddress
from cni.daemon.nat.traversal import Traversal
from cni.daemon.node.ranges import Ranges
from cni.daemon.reconcile.data_path import DataPath
from cni.daemon.settings import Settings
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import Locks, NeedsSlot, State
from cni.daemon.state.tables import Tables
from cni.errors import CniError, PoolExhausted, TryAgainLater
from cni.host.kernel import Kernel

NODE = "node"
"""The name of the lock on the node's record: its names, its ranges, and whether the global overlay is up."""


class OperationRefused(CniError):
    """The operation cannot be done in the present state. The message is the contract's, where the contract has one."""

    code = 7


class EdgeClock:
    """When each edge peer had its last handshake, in seconds of the boot clock."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}

    def note(self, name: str, shaken: int | None, now: float) -> float | None:
        """`shaken`: the time of the last handshake as the device reports it (0 for none, None without a device).

        Returns the boot clock at which the last new handshake was seen, 0 if there was none, None without a device. A
        handshake from before this daemon started counts from the first call.
        """
        if shaken is None:
            return None
        before = self._seen.get(name)
        if shaken and (before is None or before[0] != shaken):
            self._seen[name] = (shaken, now)
        return self._seen[name][1] if name in self._seen else 0.0

    def forget(self, name: str) -> None:
        """Forget an edge peer that was removed."""
        self._seen.pop(name, None)


class OperationContext:
    """The objects that operations work on. Each operation locks only the resource that it changes."""

    def __init__(
        self,
        *,
        settings: Settings,
        state: State,
        kernel: Kernel,
        fence: FenceStatus,
        ranges: Ranges,
        data_path: DataPath,
        segments: Segments,
        release: SegmentRelease,
        attacher: Attacher,
        admission: Admission,
        registry: Tables,
        identity: Identity,
        events: Events,
        mesh: Mesh,
        traversal: Traversal,
        resolver: Callable[[], DnsOffer],
    ) -> None:
        """`resolver`: the addresses at which the node's DNS server answers now, and its search domains."""
        self.settings, self.state, self.kernel, self.fence = settings, state, kernel, fence
        self.ranges, self.data_path, self.segments = ranges, data_path, segments
        self.attacher, self.admission, self.events = attacher, admission, events
        self.registry, self.identity, self.mesh = registry, identity, mesh
        self.traversal, self._resolver = traversal, resolver
        self.locks = Locks()
        self.edge_clock = EdgeClock()
        self._release = release

    def resolver(self) -> tuple[str | None, str | None]:
        """The node's DNS server for a machine behind its tunnel, and its domain; None, None while it does not serve."""
        servers, search = self._resolver()
        return (servers[0], search[0]) if servers else (None, None)

    def refresh(self) -> None:
        """Apply changes to the WireGuard devices. A failure is shown by `status`, and retried."""
        self.mesh.sync()

    def is_up(self) -> bool:
        """Whether the global overlay is set up, by an agent or by the YAML."""
        return self.state.node.set_up or self.mesh.wanted()

    def lease(self, service: str, owner: str = "") -> AssignedAddress:
        """Lease an address of the service's segment, or of the node's slice if the service is unknown (contract 6.7,
        6.10).

        A full segment grows. The tracked flows of the address's last owner are deleted. Raises PoolExhausted,
        TryAgainLater while the free addresses are in cooldown.
        """
        lease = self._lease(service, owner)
        self.kernel.finish_flows([lease.ip])
        return lease

    def _lease(self, service: str, owner: str) -> AssignedAddress:
        record = self.state.service(service)
        if record is None:
            return self._lease_home(owner)
        with self.segments.holding(service, record.mode) as segment:
            while self.state.service(segment) is not None:
                try:
                    return self.state.lease(segment, owner)
                except NeedsSlot as full:
                    try:
                        self.segments.grow(segment, full.version)
                    except PoolExhausted as exhausted:
                        raise self.state.full(segment, full.version) from exhausted
        return self._lease_home(owner)

    def lease_home(self, owner: str = "") -> AssignedAddress:
        """Lease an address of the node's slice. If the slice is full, raises PoolExhausted, or TryAgainLater while some
        of its addresses are in cooldown; the message is the contract's (6.4)."""
        lease = self._lease_home(owner)
        self.kernel.finish_flows([lease.ip])
        return lease

    def _lease_home(self, owner: str) -> AssignedAddress:
        try:
            return self.state.lease_home(owner)
        except PoolExhausted as full:
            home = self.state.node.home(ipaddress.ip_network(self.state.node.cluster_cidr).version)
            beyond = home.broadcast_address + (home.version == 6)  # IPv6 has no broadcast address: one more host
            message = f"overlay engine error: IP allocator exhausted: next address {beyond} is outside slice {home}"
            resting, cooldown = self.state.resting(home), self.settings.address_cooldown
            if resting:
                raise TryAgainLater(f"{message}; {resting} of it rest for {cooldown:g} s after use") from full
            raise PoolExhausted(message) from full

    def release(self, address: str, owner: str = "") -> None:
        """Return a leased address; nothing happens if `owner` does not have it."""
        lease_before = self.state.lease_of(address)
        if lease_before is not None and lease_before.owner == owner:
            # Before another attach can have the address: it waits for the deletions that are queued.
            self.kernel.forget_flows([address])
        lease = self.state.release(address, owner)
        record = self.state.service(lease.service) if lease is not None else None
        if record is not None:
            self._release.shrink(record.name, record.mode)
