"""The node's state in memory, with its copy in the store: who is attached, which service has which slots, what rests.

Every change is written before it counts. One lock guards the whole: it is held for lookups and a SQLite write (some
0.1 ms), never for anything the kernel does. Locks for longer work are handed out by `Locks`, one per resource.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from cni.daemon import ipam
from cni.daemon.records import Attachment, AttachmentKey, Held, Lease, Node, Service, encode_key
from cni.daemon.segments import Segments
from cni.daemon.settings import Settings
from cni.daemon.store import Change, Store
from cni.errors import AddressUnavailable, PoolExhausted, TryAgainLater

Address = ipam.Address
Network = ipam.Network
COOLING = "released"


def boot_clock() -> float:
    """Seconds since boot, suspended time included: comparable between the daemons of one boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Locks:
    """A lock per name, made when first wanted and forgotten when nobody wants it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[object, tuple[threading.RLock, int]] = {}

    @contextmanager
    def holding(self, name: object) -> Iterator[None]:
        with self._guard:
            lock, users = self._held.get(name, (threading.RLock(), 0))
            self._held[name] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._held[name]
                if users == 1:
                    del self._held[name]
                else:
                    self._held[name] = (lock, users - 1)


class State:
    """Everything the daemon knows. Reads give values; writes go to the store first."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._lock = threading.RLock()
        self.cooldown = settings.address_cooldown
        self.attachments: dict[AttachmentKey, Attachment] = {}
        self.services: dict[str, Service] = {}
        self.leases: dict[str, Lease] = {}
        self._held: dict[Address, int] = {}
        self._released: dict[Address, float] = {}
        self.node = Node(
            deployment=settings.deployment,
            instance_id=str(settings.instance_id),
            node_id=settings.node_id,
            cluster_cidr=settings.cluster_cidr,
            cluster_cidr6=settings.cluster_cidr6,
            slice_cidr=settings.slice_cidr,
            wg_port=settings.wg_port,
        )
        self._restore()

    # --- restoring ---------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        for _, body in self._store.load("node"):
            self.node = msgspec.json.decode(body, type=Node)
        for _, body in self._store.load("attachment"):
            attachment = msgspec.json.decode(body, type=Attachment)
            self.attachments[attachment.key] = attachment
            self._hold(attachment.addresses)
        for key, body in self._store.load("lease"):
            self.leases[key] = msgspec.json.decode(body, type=Lease)
            self._hold([Held(key, "")])
        for key, body in self._store.load(COOLING):
            self._released[ipaddress.ip_address(key)] = float(body)
        for key, body in self._store.load("service"):
            self.services[key] = msgspec.json.decode(body, type=Service)
        self._rebuild_segments()

    def _rebuild_segments(self) -> None:
        self._segments = self._segments_of(self.node)

    def _segments_of(self, node: Node) -> dict[int, Segments]:
        """The slot registries, as a node's ranges and the services' records say.

        Raises InvalidConfig if a service holds what is no slot of them.
        """
        found: dict[int, Segments] = {}
        for cidr in node.cidrs:
            segments = Segments.over(cidr)
            version = segments.cluster.version
            segments = segments.reserve(node.home(version))
            for service in self.services.values():
                for n, network in enumerate(service.networks(version)):
                    segments = segments.hold(service.name, f"{node.node_id}#{n}" if n else str(node.node_id), network)
            found[version] = segments
        return found

    def _node_key(self, n: int) -> str:
        return f"{self.node.node_id}#{n}" if n else str(self.node.node_id)

    # --- the node ----------------------------------------------------------------------------------------------

    @property
    def cidrs(self) -> tuple[str, ...]:
        """The cluster's ranges, the first family first."""
        return self.node.cidrs

    def node_address(self, version: int) -> Address:
        """The node's own overlay address of a family (contract 6.2)."""
        return self.node.address(version)

    def node_addresses(self) -> list[Address]:
        """The node's own addresses, one of each family."""
        return [self.node_address(ipaddress.ip_network(cidr).version) for cidr in self.cidrs]

    def update_node(self, **changes: object) -> Node:
        """Change what the node is. What services hold, they keep.

        Raises InvalidConfig, with nothing changed, if a service holds what would be no slot of the new range.
        """
        with self._lock:
            node = msgspec.structs.replace(self.node, **changes)
            segments = self._segments_of(node)
            self._store.apply([("node", "node", msgspec.json.encode(node))])
            self.node, self._segments = node, segments
            return node

    # --- services and their slots --------------------------------------------------------------------------------

    def take_service(self, name: str, mode: str, bridge: str) -> Service:
        """The record of a service, with a first slot of each family; made if there is none. Raises PoolExhausted."""
        with self._lock:
            found = self.services.get(name)
            if found is not None:
                if found.mode != mode:
                    found = self._save_service(msgspec.structs.replace(found, mode=mode))
                return found
            subnets, segments = [], dict(self._segments)
            for version, registry in self._segments.items():
                network, segments[version] = registry.assign(name, self._node_key(0))
                subnets.append(str(network))
            service = self._save_service(Service(name=name, mode=mode, bridge=bridge, subnets=tuple(subnets)))
            self._segments = segments
            return service

    def grow_service(self, name: str, version: int) -> Service:
        """The service with one more slot of a family. Raises PoolExhausted when the cluster has none left."""
        with self._lock:
            service = self.services[name]
            n = 1
            while self._segments[version].get(name, self._node_key(n)) is not None:
                n += 1
            network, registry = self._segments[version].assign_further(name, str(self.node.node_id), n)
            grown = msgspec.structs.replace(service, subnets=(*service.subnets, str(network)))
            self._save_service(grown)
            self._segments[version] = registry
            return grown

    def shrink_service(self, name: str) -> tuple[Network, ...]:
        """Give back the further slots in which nobody holds an address; returns them."""
        with self._lock:
            service = self.services.get(name)
            if service is None:
                return ()
            idle = [
                network
                for version in self._segments
                for network in service.networks(version)[1:]
                if not any(address in network for address in self._held if address.version == version)
            ]
            if not idle:
                return ()
            kept = tuple(s for s in service.subnets if ipaddress.ip_network(s) not in idle)
            self._save_service(msgspec.structs.replace(service, subnets=kept))
            self._rebuild_segments()
            return tuple(idle)

    def drop_service(self, name: str) -> Service | None:
        """Forget a service; its slots are free at once. Attachments it has keep their addresses."""
        with self._lock:
            service = self.services.get(name)
            if service is not None:
                self._store.apply([("service", name, None)])
                del self.services[name]
                self._rebuild_segments()
            return service

    def note_service(self, service: Service) -> Service:
        """Record a service that has no segment of its own (mode `shared`)."""
        with self._lock:
            return service if self.services.get(service.name) == service else self._save_service(service)

    def _save_service(self, service: Service) -> Service:
        self._store.apply([("service", service.name, msgspec.json.encode(service))])
        self.services[service.name] = service
        return service

    # --- attachments and addresses -------------------------------------------------------------------------------

    def reserve(self, attachment: Attachment, segment: str, wanted: Sequence[Address]) -> Attachment:
        """Save `attachment` as an intent, with one address of each family of the service `segment`.

        `wanted` are addresses it asked for, at most one a family. Raises AddressUnavailable, TryAgainLater while what
        would serve is cooling, LookupError with the family when the service needs a further slot.
        """
        with self._lock:
            service = self.services[segment]
            rest = ipam.Rest(self._released, boot_clock(), self.cooldown)
            addresses = []
            for version in self._segments:
                asked = next((a for a in wanted if a.version == version), None)
                addresses.append(self._pick(service.networks(version), asked, rest))
            intent = msgspec.structs.replace(attachment, state="intent", addresses=tuple(addresses))
            self.save(intent)
            return intent

    def _pick(self, subnets: list[Network], asked: Address | None, rest: ipam.Rest) -> Held:
        if asked is not None:
            subnet = ipam.claim(subnets, asked, self._held, rest)
            return Held(f"{asked}/{subnet.prefixlen}", str(ipam.gateway_of(subnet)))
        for subnet in subnets:
            address = ipam.choose(subnet, self._held, rest)
            if address is not None:
                return Held(f"{address}/{subnet.prefixlen}", str(ipam.gateway_of(subnet)))
        raise NeedsSlot(subnets[0].version)

    def full(self, service: str, version: int) -> TryAgainLater | PoolExhausted:
        """The error for a service that finds no address and no further slot: passing while something is cooling."""
        with self._lock:
            rest = ipam.Rest(self._released, boot_clock(), self.cooldown)
            subnets = self.services[service].networks(version)
            cooling = sum(1 for a in self._released if rest.cooling(a) and any(a in s for s in subnets))
        where = f"service {service} has {', '.join(map(str, subnets))}, and the cluster has no further subnet"
        if cooling:
            return TryAgainLater(f"no IP address is free yet: {cooling} are cooling down", where)
        return PoolExhausted("no IP addresses available: every one is in use", where)

    def has_room(self, service: str) -> bool:
        """Whether an attach to the service would find an address of every family now."""
        with self._lock:
            rest = ipam.Rest(self._released, boot_clock(), self.cooldown)
            known = self.services.get(service)
            for version, registry in self._segments.items():
                subnets = known.networks(version) if known else []
                if any(ipam.choose(s, self._held, rest) is not None for s in subnets):
                    continue
                try:
                    registry.assign_further(service, str(self.node.node_id), len(registry.held) + 1)
                except PoolExhausted:
                    return False
            return True

    def save(self, attachment: Attachment) -> None:
        """Write an attachment's record, new or changed."""
        with self._lock:
            self._store.apply([("attachment", encode_key(attachment.key), msgspec.json.encode(attachment))])
            before = self.attachments.get(attachment.key)
            self.attachments[attachment.key] = attachment
            self._hold(attachment.addresses)
            if before is not None:
                self._let_go(before.addresses)

    def drop(self, key: AttachmentKey, used: bool = True) -> None:
        """Forget an attachment; its addresses begin to cool, unless they were never `used`. Twice changes nothing."""
        with self._lock:
            attachment = self.attachments.get(key)
            if attachment is None:
                return
            now = boot_clock()
            gone: list[Change] = [("attachment", encode_key(key), None)]
            gone += self._forget_rested(now)
            resting = attachment.addresses if used else ()
            gone += [(COOLING, held.ip, str(now).encode()) for held in resting]
            self._store.apply(gone)
            del self.attachments[key]
            self._let_go(attachment.addresses)
            for held in resting:
                self._released[ipaddress.ip_address(held.ip)] = now

    def _forget_rested(self, now: float) -> list[Change]:
        """Drop the oldest of what has rested, once there is a lot: the order matters only among recent ones."""
        if len(self._released) < 4096:
            return []
        old = [a for a, since in self._released.items() if now - since > max(self.cooldown, 300.0)]
        for address in old:
            del self._released[address]
        return [(COOLING, str(address), None) for address in old]

    def _hold(self, addresses: Iterable[Held]) -> None:
        for held in addresses:
            ip = ipaddress.ip_address(held.ip)
            self._held[ip] = self._held.get(ip, 0) + 1

    def _let_go(self, addresses: Iterable[Held]) -> None:
        for held in addresses:
            ip = ipaddress.ip_address(held.ip)
            self._held[ip] = self._held.get(ip, 0) - 1
            if self._held[ip] <= 0:
                del self._held[ip]

    def members(self, bridge: str) -> list[Attachment]:
        """The attachments on a bridge."""
        with self._lock:
            return [a for a in self.attachments.values() if a.bridge == bridge]

    def snapshot(self) -> list[Attachment]:
        """Every attachment, in the order they were made."""
        with self._lock:
            return list(self.attachments.values())

    # --- bare leases -----------------------------------------------------------------------------------------------

    def lease(self, service: str, owner: str = "") -> Held:
        """An address of the segment `service` that no container has (contract 6.7, 6.10); `owner` says whose it is,
        empty for allocate_ip's. Raises NeedsSlot, KeyError for no such service."""
        with self._lock:
            version = ipaddress.ip_network(self.node.cluster_cidr).version
            return self._lease(self.services[service].networks(version), service, owner)

    def lease_home(self, owner: str = "") -> Held:
        """An address of the node's own slice, for what belongs to no service. Raises PoolExhausted."""
        with self._lock:
            home = self.node.home(ipaddress.ip_network(self.node.cluster_cidr).version)
            try:
                return self._lease([home], "", owner)
            except NeedsSlot as full:
                raise PoolExhausted(f"IP allocator exhausted: no address of slice {home} is free") from full

    def _lease(self, subnets: list[Network], service: str, owner: str) -> Held:
        rest = ipam.Rest(self._released, boot_clock(), self.cooldown)
        held = self._pick(subnets, None, rest)
        lease = Lease(held.ip, service, owner)
        self._store.apply([("lease", held.ip, msgspec.json.encode(lease))])
        self.leases[held.ip] = lease
        self._hold([held])
        return held

    def release(self, address: str, owner: str = "") -> Lease | None:
        """Give back a lease of that owner and return it; None if there is none (an attachment's is not touched)."""
        with self._lock:
            lease = self.leases.get(address)
            if lease is None or lease.owner != owner:
                return None
            now = boot_clock()
            self._store.apply([("lease", address, None), (COOLING, address, str(now).encode())])
            del self.leases[address]
            self._let_go([Held(address, "")])
            self._released[ipaddress.ip_address(address)] = now
            return lease

    def in_use(self, segment: str) -> bool:
        """Whether anybody has an address of the segment: a container on its bridge, a guest, or a bare lease."""
        with self._lock:
            service = self.services.get(segment)
            if service is None:
                return False
            leased = any(lease.service == segment for lease in self.leases.values())
            return leased or any(each.bridge == service.bridge for each in self.attachments.values())


class NeedsSlot(AddressUnavailable):
    """Internal to the daemon: the subnets the service has are full; `version` is the family."""

    def __init__(self, version: int) -> None:
        super().__init__(f"the service's IPv{version} subnets are full")
        self.version = version
