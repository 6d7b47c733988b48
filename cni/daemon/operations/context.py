"""What every operation is given: the node's service, the registry, the node's keys, and locks for what has none."""

from __future__ import annotations

import ipaddress

from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model.records import AssignedAddress
from cni.daemon.state.identity import Identity
from cni.daemon.state.state import Locks, NeedsSlot
from cni.daemon.state.tables import Tables
from cni.errors import CniError, PoolExhausted, TryAgainLater

NODE = "node"
"""The name of the lock of what the node is: its names, its ranges, and whether the global overlay is up."""


class OperationRefused(CniError):
    """What was asked cannot be done as things are; the message is the protocol's, where the contract has one."""

    code = 7


class EdgeClock:
    """When each edge peer was last heard of, by the boot clock."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}

    def note(self, name: str, shaken: int | None, now: float) -> float | None:
        """`shaken`: the handshake that the device shows (0 for none, None without a device). Returns the boot clock at
        the last new one, 0 if there was none. What was before this daemon began counts from its first look."""
        if shaken is None:
            return None
        before = self._seen.get(name)
        if shaken and (before is None or before[0] != shaken):
            self._seen[name] = (shaken, now)
        return self._seen[name][1] if name in self._seen else 0.0

    def forget(self, name: str) -> None:
        """There is no such edge any more."""
        self._seen.pop(name, None)


class OperationContext:
    """Where requests are carried out. Operations take the lock of what they change, never one for all."""

    def __init__(self, service: OverlayService, registry: Tables, identity: Identity, mesh: Mesh | None = None) -> None:
        """Without a `mesh` peers are only remembered."""
        self.service = service
        self.mesh = mesh
        self.state = service.state
        self.registry = registry
        self.identity = identity
        self.locks = Locks()
        self.edge_clock = EdgeClock()

    def refresh(self) -> None:
        """Put what has changed on the WireGuard devices. What cannot be done now is told by `status`, and retried."""
        if self.mesh is not None:
            self.mesh.sync()

    def is_up(self) -> bool:
        """Whether the global overlay is set up: by an agent, or by the YAML."""
        return self.state.node.set_up or (self.mesh is not None and self.mesh.wanted())

    def lease(self, service: str, owner: str = "") -> AssignedAddress:
        """An address of the service's segment, else of the node's slice (contract 6.7, 6.10).

        A full segment grows. Raises PoolExhausted, TryAgainLater while what would serve is cooling.
        """
        known = self.state.services.get(service)
        if known is None:
            return self.lease_home(owner)
        services = self.service.services
        with services.holding(service, known.mode) as segment:
            while segment in self.state.services:
                try:
                    return self.state.lease(segment, owner)
                except NeedsSlot as full:
                    try:
                        services.grow(segment, full.version)
                    except PoolExhausted as exhausted:
                        raise self.state.full(segment, full.version) from exhausted
        return self.lease_home(owner)

    def lease_home(self, owner: str = "") -> AssignedAddress:
        """An address of the node's slice. When it is full, in the contract's words (6.4), raises PoolExhausted, or
        TryAgainLater while some of it is only resting."""
        try:
            return self.state.lease_home(owner)
        except PoolExhausted as full:
            home = self.state.node.home(ipaddress.ip_network(self.state.node.cluster_cidr).version)
            beyond = home.broadcast_address + (home.version == 6)  # IPv6 has no broadcast, and so one host more
            words = f"overlay engine error: IP allocator exhausted: next address {beyond} is outside slice {home}"
            rest = self.state.addresses.rest()
            resting = sum(1 for address in tuple(rest.released) if address in home and rest.cooling(address))
            if resting:
                raise TryAgainLater(f"{words}; {resting} of it rest for {rest.cooldown:g} s after use") from full
            raise PoolExhausted(words) from full

    def release(self, address: str, owner: str = "") -> None:
        """Give such an address back; nothing happens if nobody of that name has it."""
        lease = self.state.release(address, owner)
        known = self.state.services.get(lease.service) if lease is not None else None
        if known is not None:
            self.service.services.shrink(known.name, known.mode)
