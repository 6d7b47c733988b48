"""The node's state in memory, with its copy in the store: who is attached, which service has which slots, what rests.

Every change is written before it counts. One lock guards the whole: it is held for lookups and a SQLite write (some
0.1 ms), never for anything the kernel does. Locks for longer work are handed out by `Locks`, one per resource.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from cni.daemon.books import addresses as book
from cni.daemon.books import macs
from cni.daemon.books.addresses import Addresses, NeedsSlot, boot_clock
from cni.daemon.books.records import Attachment, AttachmentKey, Held, Lease, Node, Service, encode_key
from cni.daemon.books.segments import Segments, fits
from cni.daemon.books.store import Change, Store
from cni.daemon.settings import Settings
from cni.errors import AddressUnavailable, PoolExhausted, TryAgainLater

__all__ = ["Locks", "NeedsSlot", "State", "boot_clock"]

log = logging.getLogger(__name__)

Address = book.Address
Network = book.Network
T = TypeVar("T")


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
        self.addresses = Addresses(settings.address_cooldown)
        self.service_cidr = settings.service_cidr
        self._foreign: list[Network] = []
        self.changed: Callable[[], None] = lambda: None  # called after every change of attachments and services
        self.attachments: dict[AttachmentKey, Attachment] = {}
        self.services: dict[str, Service] = {}
        self.leases: dict[str, Lease] = {}
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
        for _, node in self._read("node", lambda body: msgspec.json.decode(body, type=Node)):
            self.node = node
        for _, attachment in self._read("attachment", lambda body: msgspec.json.decode(body, type=Attachment)):
            self.attachments[attachment.key] = attachment
            self.addresses.hold(attachment.ips)
        for key, lease in self._read("lease", lambda body: msgspec.json.decode(body, type=Lease)):
            self.leases[key] = lease
            self.addresses.hold([key])
        for key, since in self._read(book.KIND, float):
            self.addresses.cool([key], since)
        for key, service in self._read("service", lambda body: msgspec.json.decode(body, type=Service)):
            self.services[key] = service
        self._rebuild_segments()

    def _read(self, kind: str, decode: Callable[[bytes], T]) -> Iterator[tuple[str, T]]:
        """The records of a kind. One that cannot be read is set aside: it must not keep the daemon from starting."""
        for key, body in self._store.load(kind):
            try:
                if kind in ("lease", book.KIND):
                    ipaddress.ip_address(key)
                yield key, decode(body)
            except ValueError as error:
                log.error("the record %s %s cannot be read and is set aside: %s", kind, key, error)
                self._set_aside(kind, key, body)

    def _set_aside(self, kind: str, key: str, body: bytes) -> None:
        self._store.apply([(kind, key, None), (f"unreadable {kind}", key, body)])

    def _rebuild_segments(self) -> None:
        self._segments = self._segments_of(self.node)

    def _segments_of(self, node: Node) -> dict[int, Segments]:
        """The slot registries, as a node's ranges and the services' records say.

        A slot whose service is gone stays nobody's for as long as anyone has an address in it. A range that is too
        small for slots has none: `check_slots` says so to whoever wants one. Raises InvalidConfig if a service holds
        what is no slot of the ranges.
        """
        found: dict[int, Segments] = {}
        for cidr in node.cidrs:
            version = ipaddress.ip_network(cidr).version
            if not fits(self._slots_of(cidr)) and not any(s.networks(version) for s in self.services.values()):
                continue
            segments = Segments.over(self._slots_of(cidr))
            segments = segments.reserve(node.home(version)).reserve_all(self._foreign)
            for service in self.services.values():
                for n, network in enumerate(service.networks(version)):
                    segments = segments.hold(service.name, f"{node.node_id}#{n}" if n else str(node.node_id), network)
            for address in self._homeless(version):
                segments = segments.reserve(address)
            found[version] = segments
        return found

    def _slots_of(self, cidr: str) -> str:
        """The part of a cluster range that this node's services get their subnets from."""
        own = ipaddress.ip_network(self.service_cidr) if self.service_cidr else None
        cluster = ipaddress.ip_network(cidr)
        if own is not None and own.version == cluster.version and own.subnet_of(cluster):  # type: ignore[arg-type]
            return str(own)
        return cidr

    def _homeless(self, version: int) -> list[Address]:
        """Addresses that are held but in no service's subnet."""
        networks = [network for service in self.services.values() for network in service.networks(version)]
        held = [address for address in self.addresses.held if address.version == version]
        return [address for address in held if not any(address in network for network in networks)]

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

    def set_foreign(self, networks: Sequence[Network]) -> None:
        """Slots that other nodes hold: no service of this one gets them from now on."""
        with self._lock:
            if list(networks) != self._foreign:
                self._foreign = list(networks)
                self._rebuild_segments()

    # --- services and their slots --------------------------------------------------------------------------------

    def lacks(self, name: str) -> list[int]:
        """The families of which the service has no subnet yet."""
        with self._lock:
            found = self.services.get(name)
            return [version for version in self._segments if found is None or not found.networks(version)]

    def propose(self, name: str, version: int, n: int, refused: Sequence[Network] = ()) -> Network:
        """The slot that the service would get as its `n`th (0: its first), if those in `refused` are others'.

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
        """Whether services can have subnets here at all. Raises InvalidConfig, in the contract's words, where one of
        the cluster's ranges is no larger than such a subnet (contract 6.4)."""
        for cidr in self.cidrs:
            Segments.over(self._slots_of(cidr))

    def take_service(self, name: str, mode: str, bridge: str, granted: Mapping[int, Network] | None = None) -> Service:
        """The record of a service, with a slot of each family; made, or completed. `granted`: the very slots to take,
        by family. Raises PoolExhausted, InvalidConfig if such a slot is taken and where there are none."""
        with self._lock:
            self.check_slots()
            found = self.services.get(name, Service(name=name, mode=mode, bridge=bridge))
            subnets, segments = list(found.subnets), dict(self._segments)
            for version, registry in self._segments.items():
                if not found.networks(version):
                    if granted and version in granted:
                        segments[version] = registry.hold(name, self._node_key(0), granted[version])
                        network = granted[version]
                    else:
                        network, segments[version] = registry.assign(name, self._node_key(0))
                    subnets.append(str(network))
            wanted = msgspec.structs.replace(found, mode=mode, subnets=tuple(subnets))
            if self.services.get(name) != wanted:
                self._save_service(wanted)
                self._segments = segments
            return wanted

    def grow_service(self, name: str, version: int, granted: Network | None = None) -> Service:
        """The service with one more slot of a family; `granted`: that very one. Raises PoolExhausted when the cluster
        has none left, InvalidConfig if the slot is taken."""
        with self._lock:
            service = self.services[name]
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
        """The further slots of a service in which nobody holds an address."""
        with self._lock:
            service = self.services.get(name)
            if service is None:
                return ()
            further = [network for version in self._segments for network in service.networks(version)[1:]]
            return tuple(network for network in further if not self.addresses.any_in(network))

    def shrink_service(self, name: str, only: Sequence[Network] | None = None) -> tuple[Network, ...]:
        """Give back the further slots that are idle (of those in `only`, if given); returns them."""
        with self._lock:
            idle = tuple(n for n in self.idle_slots(name) if only is None or n in only)
            if idle:
                service = self.services[name]
                kept = tuple(s for s in service.subnets if ipaddress.ip_network(s) not in idle)
                self._save_service(msgspec.structs.replace(service, subnets=kept))
                self._rebuild_segments()
            return idle

    def drop_service(self, name: str) -> Service | None:
        """Forget a service; its slots are free as soon as nobody has an address in them."""
        with self._lock:
            service = self.services.get(name)
            if service is not None:
                self._store.apply([("service", name, None)])
                del self.services[name]
                self._rebuild_segments()
                self.changed()
            return service

    def note_service(self, service: Service) -> Service:
        """Record a service that has no segment of its own (mode `shared`)."""
        with self._lock:
            return service if self.services.get(service.name) == service else self._save_service(service)

    def _save_service(self, service: Service) -> Service:
        self._store.apply([("service", service.name, msgspec.json.encode(service))])
        self.services[service.name] = service
        self.changed()
        return service

    # --- attachments and addresses -------------------------------------------------------------------------------

    def reserve(self, attachment: Attachment, segment: str, wanted: Sequence[Address]) -> Attachment:
        """Save `attachment` as an intent, with one address of each family of the service `segment`, and with the MAC
        that follows from the first if it has none.

        `wanted` are addresses it asked for, at most one a family; else it keeps those that its earlier record has, if
        they fit. Raises AddressUnavailable, also for a MAC, TryAgainLater while what would serve is cooling, NeedsSlot.
        """
        with self._lock:
            service = self.services[segment]
            strange = [a for a in wanted if a.version not in self._segments]
            if strange:
                raise AddressUnavailable(
                    f"the requested address {strange[0]} is not to be had: this overlay has no IPv{strange[0].version}"
                )
            before = self.attachments.get(attachment.key)
            own = self.addresses.own(before.ips if before is not None else (), attachment.container, wanted)
            picked = []
            for version in self._segments:
                asked = next((a for a in wanted if a.version == version), None)
                picked.append(self.addresses.pick(version, service.networks(version), asked, own))
            mac = attachment.mac or macs.of_address(picked[0].ip)
            if mac != macs.of_address(picked[0].ip):
                self._refuse_taken(mac, attachment)
            intent = msgspec.structs.replace(attachment, state="intent", addresses=tuple(picked), mac=mac)
            self.save(intent)  # whole: a daemon that finds it must be able to undo it
            return intent

    def check_mac(self, mac: str, attachment: Attachment) -> None:
        """Whether the attachment may have that MAC, which is not the one it was given. Raises AddressUnavailable."""
        with self._lock:
            if mac not in [macs.of_address(ip) for ip in attachment.ips]:
                self._refuse_taken(mac, attachment)

    def _refuse_taken(self, mac: str, wanted: Attachment) -> None:
        """Raises AddressUnavailable for a MAC that is, or may become, another's on the bridge, or the node's own there:
        whoever shares one hears what the bridge has for the other."""
        taken = {macs.of_bridge(wanted.bridge), wanted.host_mac}
        for other in self.attachments.values():
            if other.bridge == wanted.bridge and other.key != wanted.key:
                taken |= {other.mac, other.host_mac}
        if mac in taken or mac.startswith(macs.OF_ADDRESSES):
            raise AddressUnavailable(
                f"the requested MAC {mac} is not to be had: it is another's, or the node's own",
                f"those that begin with {macs.OF_ADDRESSES} go with their addresses",
            )

    def full(self, service: str, version: int) -> TryAgainLater | PoolExhausted:
        """The error for a service that finds no address and no further slot: passing while something is cooling."""
        with self._lock:
            subnets = self.services[service].networks(version)
            cooling = self.addresses.cooling(subnets)
        where = f"service {service} has {', '.join(map(str, subnets))}, and the cluster has no further subnet"
        if cooling:
            return TryAgainLater(f"no IP address is free yet: {cooling} are cooling down", where)
        return PoolExhausted("no IP addresses available: every one is in use", where)

    def has_room(self, service: str) -> bool:
        """Whether an attach to the service would find an address of every family now."""
        with self._lock:
            if not all(fits(self._slots_of(cidr)) for cidr in self.cidrs):
                return False
            known = self.services.get(service)
            for version, registry in self._segments.items():
                if known is not None and self.addresses.has_free(known.networks(version)):
                    continue
                try:
                    registry.assign_further(service, str(self.node.node_id), len(registry.held) + 1)
                except PoolExhausted:
                    return False
            return True

    def save(self, attachment: Attachment) -> None:
        """Write an attachment's record, new or changed. Addresses it had before and has no more begin to cool."""
        with self._lock:
            before = self.attachments.get(attachment.key)
            lost = [ip for ip in before.ips if ip not in attachment.ips] if before is not None else []
            now = boot_clock()
            record: Change = ("attachment", encode_key(attachment.key), msgspec.json.encode(attachment))
            self._store.apply([record, *self.addresses.resting(lost, now)])
            self.attachments[attachment.key] = attachment
            self.changed()
            self.addresses.hold(attachment.ips)
            if before is not None:
                self.addresses.let_go(before.ips)
                self.addresses.cool(lost, now)

    def drop(self, key: AttachmentKey, used: bool = True) -> None:
        """Forget an attachment; its addresses begin to cool, unless they were never `used`. Twice changes nothing."""
        with self._lock:
            attachment = self.attachments.get(key)
            if attachment is None:
                return
            now = boot_clock()
            cooling = attachment.ips if used else ()
            self._store.apply([("attachment", encode_key(key), None), *self.addresses.resting(cooling, now)])
            del self.attachments[key]
            self.changed()
            self.addresses.let_go(attachment.ips)
            self.addresses.cool(cooling, now, attachment.container)
            if attachment.service not in self.services:
                self._rebuild_segments()  # its slot was kept for it

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
        held = self.addresses.pick(subnets[0].version, subnets)
        lease = Lease(held.ip, service, owner)
        self._store.apply([("lease", held.ip, msgspec.json.encode(lease))])
        self.leases[held.ip] = lease
        self.addresses.hold([held.ip])
        return held

    def release(self, address: str, owner: str = "") -> Lease | None:
        """Give back a lease of that owner and return it; None if there is none (an attachment's is not touched)."""
        with self._lock:
            lease = self.leases.get(address)
            if lease is None or lease.owner != owner:
                return None
            now = boot_clock()
            self._store.apply([("lease", address, None), *self.addresses.resting([address], now)])
            del self.leases[address]
            self.addresses.let_go([address])
            self.addresses.cool([address], now)
            return lease

    def in_use(self, segment: str) -> bool:
        """Whether anybody has an address of the segment: a container on its bridge, a guest, or a bare lease."""
        with self._lock:
            service = self.services.get(segment)
            if service is None:
                return False
            leased = any(lease.service == segment for lease in self.leases.values())
            return leased or any(each.bridge == service.bridge for each in self.attachments.values())
