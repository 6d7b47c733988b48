"""The recorded services, the slots they hold, and the node that has the ranges: one half of the daemon's state.

Every change is written to the store before it takes effect. `state.py` has the other half, the attachments, under the
same lock.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

import msgspec

from cni.daemon.events import Events, NodeFactsChanged
from cni.daemon.model import slots
from cni.daemon.model.records import Node, NodeChanges, Service
from cni.daemon.model.subnets import Address, Network, SubnetRegistry, further
from cni.daemon.model.usage import PoolView
from cni.daemon.settings import Settings
from cni.daemon.state import restore
from cni.daemon.state.address_pool import AddressPool
from cni.daemon.state.store import Records


class ServiceBook:
    """The node, and the slots of each service. Reads return values; writes go to the store first."""

    def __init__(self, store: Records, settings: Settings, events: Events) -> None:
        self._store = store
        self._events = events
        self._lock = threading.RLock()
        self._addresses = AddressPool(settings.address_cooldown)
        self.service_cidr = settings.service_cidr
        self._foreign: list[Network] = []
        self.lost: frozenset[str] = frozenset()  # recorded subnets that another node has now (membership.py)
        self.connected: tuple[Network, ...] = ()  # the host's own networks that overlap the cluster's ranges
        self.own_addresses = restore.own_addresses(store)
        """The overlay's addresses that this daemon or an earlier one has added to lo, until they are removed."""
        self.notes_own_addresses = store.fresh or bool(store.load(restore.OWN_ADDRESS))
        self._services: dict[str, Service] = restore.services(store)
        self.node = restore.node(store) or Node(
            deployment=settings.deployment,
            instance_id=str(settings.instance_id),
            node_id=settings.node_id,
            cluster_cidr=settings.cluster_cidr,
            cluster_cidr6=settings.cluster_cidr6,
            slice_cidr=settings.slice_cidr,
            wg_port=settings.wg_port,
        )
        self._segments: dict[int, SubnetRegistry] = {}

    def _rebuild_segments(self) -> None:
        self._segments = self._segments_of(self.node)

    def _segments_of(self, node: Node) -> dict[int, SubnetRegistry]:
        """The slot registries of a node's ranges, by IP version. Raises InvalidConfig if a service holds a subnet that
        is no slot of them."""
        taken = [*self._foreign, *self.connected]
        return slots.registries(node, self._services.values(), self._addresses.held, taken, self.service_cidr)

    def _node_key(self, n: int) -> str:
        return further(str(self.node.node_id), n)

    # --- the node ----------------------------------------------------------------------------------------------

    @property
    def cidrs(self) -> tuple[str, ...]:
        """The cluster's ranges, the primary IP version first."""
        return self.node.cidrs

    @property
    def service_ranges(self) -> tuple[str, ...]:
        """The parts of the cluster's ranges in which this node's services have their subnets."""
        return tuple(slots.part_of(cidr, self.service_cidr) for cidr in self.cidrs)

    def may_take(self, network: Network) -> bool:
        """Whether a service may get this slot: it is usable, and inside the node's part of the range."""
        parts = map(ipaddress.ip_network, self.service_ranges)
        return self.is_usable(network) and any(network.overlaps(part) for part in parts)

    def versions(self) -> list[int]:
        """The IP versions of the cluster's ranges, sorted."""
        return sorted({ipaddress.ip_network(cidr).version for cidr in self.cidrs})

    def node_address(self, version: int) -> Address:
        """The node's own overlay address of a family (contract 6.2)."""
        return self.node.address(version)

    def node_addresses(self) -> list[Address]:
        """The node's own addresses, one of each family."""
        return [self.node_address(ipaddress.ip_network(cidr).version) for cidr in self.cidrs]

    def update_node(self, **changes: Unpack[NodeChanges]) -> Node:
        """Change the node's record. Services keep their subnets.

        Raises InvalidConfig, with nothing changed, if a service holds a subnet that is no slot of the new range.
        """
        with self._lock:
            node = msgspec.structs.replace(self.node, **changes)
            segments = self._segments_of(node)
            self._store.apply([("node", "node", msgspec.json.encode(node))])
            self.node, self._segments = node, segments
            return node

    def note_own_addresses(self, addresses: Collection[Address]) -> None:
        """Record the overlay's addresses on lo. Raises InputOutput."""
        with self._lock:
            fresh = frozenset(addresses)
            if fresh == self.own_addresses and self.notes_own_addresses:
                return
            gone = [(restore.OWN_ADDRESS, str(address), None) for address in self.own_addresses - fresh]
            noted = [(restore.OWN_ADDRESS, str(address), b"") for address in fresh]
            self._store.apply([(restore.OWN_ADDRESS, restore.NOTES_BEGUN, b""), *noted, *gone])
            self.own_addresses, self.notes_own_addresses = fresh, True

    def set_foreign(self, networks: Sequence[Network]) -> None:
        """Set the slots that other nodes hold: no service of this node gets them from now on."""
        with self._lock:
            if list(networks) != self._foreign:
                self._foreign = list(networks)
                self._rebuild_segments()

    def set_lost(self, cidrs: Collection[str]) -> None:
        """Set the subnets of this node's services that another node has: no new address is given out in them."""
        with self._lock:
            self.lost = frozenset(cidrs)

    def set_connected(self, networks: Sequence[Network]) -> bool:
        """Set the host's own networks that overlap the cluster's ranges: from now on no service gets a slot that
        overlaps them, and no new address is given out in them. Returns whether they changed."""
        with self._lock:
            if tuple(networks) == self.connected:
                return False
            self.connected = tuple(networks)
            self._rebuild_segments()
            return True

    def is_usable(self, network: Network) -> bool:
        """Whether a new address may be given out in this subnet."""
        if not self.lost and not self.connected:
            return True
        return str(network) not in self.lost and not any(
            network.version == other.version and network.overlaps(other) for other in self.connected
        )

    def usable(self, service: Service, version: int) -> list[Network]:
        """The subnets of a service in which a new address may be given out."""
        return [network for network in service.networks(version) if self.is_usable(network)]

    def pool_view(self) -> PoolView:
        """The addresses and subnets of the node at this moment. The lock is held for copies alone (some 30 us with
        4,096 released addresses); what is counted is counted without it."""
        with self._lock:
            services, held = tuple(self._services.values()), dict(self._addresses.held)
            rest = replace(self._addresses.rest(), released=dict(self._addresses.released))
            segments = dict(self._segments)
        return PoolView(
            services=services,
            held=tuple(held),
            cooling=tuple(address for address in rest.released if address not in held and rest.cooling(address)),
            spare_slots={version: registry.free for version, registry in segments.items()},
        )

    # --- services and their slots --------------------------------------------------------------------------------

    @property
    def services(self) -> dict[str, Service]:
        """The services by name: a copy, in the order of their creation."""
        with self._lock:
            return dict(self._services)

    def service(self, name: str) -> Service | None:
        """The record of a service; None if there is none."""
        with self._lock:
            return self._services.get(name)

    def lacks(self, name: str) -> list[int]:
        """The IP versions of which the service has no subnet yet."""
        with self._lock:
            service = self._services.get(name)
            return [version for version in self._segments if service is None or not service.networks(version)]

    def propose(self, name: str, version: int, n: int, refused: Sequence[Network] = ()) -> Network:
        """The slot that the service would get as its `n`th (0: its first), without those in `refused`, which other
        nodes have.

        Raises PoolExhausted.
        """
        with self._lock:
            return self._segments[version].reserve_all(refused).assign(name, self._node_key(n))[0]

    def next_slot(self, name: str, version: int) -> int:
        """The number of the service's next further slot."""
        with self._lock:
            n = 1
            while self._segments[version].get(name, self._node_key(n)) is not None:
                n += 1
            return n

    def check_slots(self) -> None:
        """Raises InvalidConfig, with the contract's text, if one of the cluster's ranges is no larger than a service's
        subnet, so that services cannot have subnets (contract 6.4)."""
        for cidr in self.service_ranges:
            SubnetRegistry.over(cidr)

    def take_service(
        self,
        name: str,
        mode: str,
        bridge: str,
        granted: Mapping[int, Network] | None = None,
        passing: bool | None = None,
        *,
        attach: str = "",
    ) -> Service:
        """Create or complete the record of a service, with a slot of each IP version.

        `granted`: the slots to take, by IP version; `passing`: whether the service may be released when it is empty
        (None: as before); `attach`: the kind of attach ("": as before). Raises PoolExhausted, InvalidConfig if a
        granted slot is taken, or if the ranges have no slots.
        """
        with self._lock:
            self.check_slots()
            before = self._services.get(name, Service(name=name, mode=mode, bridge=bridge))
            subnets, segments = list(before.subnets), dict(self._segments)
            for version, registry in self._segments.items():
                if not before.networks(version):
                    if granted and version in granted:
                        segments[version] = registry.hold(name, self._node_key(0), granted[version])
                        network = granted[version]
                    else:
                        network, segments[version] = registry.assign(name, self._node_key(0))
                    subnets.append(str(network))
            kind = before.passing if passing is None else passing
            service = msgspec.structs.replace(
                before, mode=mode, subnets=tuple(subnets), passing=kind, attach=attach or before.attach
            )
            if self._services.get(name) != service:
                self._save_service(service)
                self._segments = segments
            return service

    def grow_service(self, name: str, version: int, granted: Network | None = None) -> Service:
        """Give the service one more slot of an IP version; `granted`: the slot to take. Raises PoolExhausted if the
        cluster has none left, InvalidConfig if the slot is taken."""
        with self._lock:
            service = self._services[name]
            n = self.next_slot(name, version)
            if granted is None:
                network, registry = self._segments[version].assign_further(name, str(self.node.node_id), n)
            else:
                network, registry = granted, self._segments[version].hold(name, self._node_key(n), granted)
            grown = msgspec.structs.replace(service, subnets=(*service.subnets, str(network)))
            self._save_service(grown)
            self._segments[version] = registry
            return grown

    def idle_slots(self, name: str) -> tuple[Network, ...]:
        """The further slots of a service without a held address, and its first slot if that is empty, unusable and not
        its only one."""
        with self._lock:
            service = self._services.get(name)
            if service is None:
                return ()
            further = [network for version in self._segments for network in service.networks(version)[1:]]
            firsts = [networks[0] for version in self._segments if len(networks := service.networks(version)) > 1]
            unusable = [network for network in firsts if not self.is_usable(network)]
            return tuple(network for network in (*unusable, *further) if not self._addresses.any_in(network))

    def shrink_service(self, name: str, only: Sequence[Network] | None = None) -> tuple[Network, ...]:
        """Release the idle slots (of those in `only`, if given); returns them."""
        with self._lock:
            idle = tuple(n for n in self.idle_slots(name) if only is None or n in only)
            if idle:
                service = self._services[name]
                kept = tuple(s for s in service.subnets if ipaddress.ip_network(s) not in idle)
                self._save_service(msgspec.structs.replace(service, subnets=kept))
                self._rebuild_segments()
            return idle

    def empty_service(self, name: str) -> None:
        """Release all subnets of the service; it gets others when it is set up again."""
        with self._lock:
            service = self._services.get(name)
            if service is not None and service.subnets:
                self._save_service(msgspec.structs.replace(service, subnets=()))
                self._rebuild_segments()

    def drop_service(self, name: str) -> Service | None:
        """Delete a service's record; its slots are free as soon as they have no held address."""
        with self._lock:
            service = self._services.get(name)
            if service is not None:
                self._store.apply([("service", name, None)])
                del self._services[name]
                self._rebuild_segments()
                self._events.publish(NodeFactsChanged())
            return service

    def note_service(self, service: Service) -> Service:
        """Save the record of a service without a segment of its own (mode `shared`)."""
        with self._lock:
            return service if self._services.get(service.name) == service else self._save_service(service)

    def _save_service(self, service: Service) -> Service:
        self._store.apply([("service", service.name, msgspec.json.encode(service))])
        self._services[service.name] = service
        self._events.publish(NodeFactsChanged())
        return service
