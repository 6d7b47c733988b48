"""The node's state in memory, with its copy in the store: attachments, the services' slots, addresses in cooldown.

Every change is written to the store before it takes effect. One lock guards the whole state: it is held for lookups and
a SQLite write (some 0.1 ms), never for work of the kernel. Readers get values or copies, never a container that another
thread changes while they iterate. `Locks` has the locks for longer work, one per resource.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from cni.daemon.events import Events, NodeFactsChanged
from cni.daemon.model import macs, slots
from cni.daemon.model.records import AssignedAddress, Attachment, AttachmentKey, Lease, Service, encode_key
from cni.daemon.model.subnets import Address, Network, fits
from cni.daemon.settings import Settings
from cni.daemon.state import restore
from cni.daemon.state.address_pool import NeedsSlot, boot_clock
from cni.daemon.state.locks import Locks
from cni.daemon.state.services import ServiceBook
from cni.daemon.state.store import Change, Records
from cni.errors import AddressUnavailable, InterfaceExists, PoolExhausted, TryAgainLater

log = logging.getLogger(__name__)

__all__ = ["Locks", "NeedsSlot", "State", "boot_clock"]


def name_taken(host_veth: str, owner: str) -> InterfaceExists:
    """The error for a host end whose name `owner` has."""
    return InterfaceExists(
        f"the host interface {host_veth} belongs to {owner}",
        "two attachments may not share one: nothing of the other was touched; attach under another container ID",
    )


class State(ServiceBook):
    """The daemon's whole state. Reads return values; writes go to the store first."""

    def __init__(self, store: Records, settings: Settings, events: Events) -> None:
        super().__init__(store, settings, events)
        self._attachments: dict[AttachmentKey, Attachment] = {}
        self._ports: dict[str, AttachmentKey] = {}  # the owner of each host end's name
        self._on_bridge: Counter[str] = Counter()  # how many attachments each bridge has
        for attachment in restore.attachments(store):
            self._attachments[attachment.key] = attachment
            self._on_bridge[attachment.bridge] += 1
            self._ports.setdefault(attachment.host_veth, attachment.key)
            self._addresses.hold(attachment.ips)
        self._leases: dict[str, Lease] = restore.leases(store)
        self._addresses.hold(self._leases)
        for address, since in restore.released(store).items():
            self._addresses.cool([address], min(since, boot_clock()))
        self._drop_empty_misfits()
        self._rebuild_segments()

    def _drop_empty_misfits(self) -> None:
        """Drop services without users whose subnets are outside the node's present ranges: an unused service must not
        keep the daemon from starting after the ranges in the YAML changed."""
        for service in list(self._services.values()):
            fits_in = slots.holds_slots(self.node, service, self.service_cidr)
            if not fits_in and not self.in_use(service.name):
                log.warning("service %s has no users and gives back %s", service.name, ", ".join(service.subnets))
                self._store.apply([("service", service.name, None)])
                del self._services[service.name]

    # --- attachments and addresses -------------------------------------------------------------------------------

    def reserve(self, attachment: Attachment, segment: str, requested: Sequence[Address]) -> Attachment:
        """Save `attachment` as an intent, with one address of each IP version of the service `segment`, and, if it has
        no MAC, with the MAC that follows from the first address.

        `requested`: the requested addresses, at most one per IP version; without them the attachment keeps the
        addresses of its earlier record, if they fit. Raises AddressUnavailable (for an address or a MAC),
        InterfaceExists if another attachment has the host end's name, NeedsSlot.
        """
        with self._lock:
            self.refuse_port(attachment.host_veth, attachment.key)
            service = self._services[segment]
            other_family = [a for a in requested if a.version not in self._segments]
            if other_family:
                raise AddressUnavailable(
                    f"the requested address {other_family[0]} is not to be had: "
                    f"this overlay has no IPv{other_family[0].version}"
                )
            before = self._attachments.get(attachment.key)
            own = [ipaddress.ip_address(ip) for ip in before.ips] if before is not None else []
            picked = []
            for version in self._segments:
                asked = next((a for a in requested if a.version == version), None)
                one = self._addresses.pick(version, self.usable(service, version), asked, own)
                picked.append(one.alone() if attachment.is_routed else one)
            mac = attachment.mac or macs.of_address(picked[0].ip)
            if mac != macs.of_address(picked[0].ip):
                self._refuse_taken(mac, attachment)
            intent = msgspec.structs.replace(attachment, state="intent", addresses=tuple(picked), mac=mac)
            self.save(intent)  # complete: a daemon that restarts must be able to undo it
            return intent

    def owner_of_port(self, host_veth: str) -> AttachmentKey | None:
        """The attachment whose record has that host end's name; None if there is none."""
        with self._lock:
            return self._ports.get(host_veth)

    def refuse_port(self, host_veth: str, key: AttachmentKey) -> None:
        """Raises InterfaceExists (101) if another attachment has the host end's name. The name is 40 bits of a hash
        without a secret: a collision is computed in about a second."""
        owner = self.owner_of_port(host_veth)
        if owner is not None and owner != key:
            raise name_taken(host_veth, "/".join(owner))

    def check_mac(self, mac: str, attachment: Attachment) -> None:
        """Raises AddressUnavailable if the attachment may not have that MAC, which is not its recorded one."""
        with self._lock:
            if mac not in [macs.of_address(ip) for ip in attachment.ips]:
                self._refuse_taken(mac, attachment)

    def _refuse_taken(self, mac: str, attachment: Attachment) -> None:
        """Raises AddressUnavailable for a MAC that another attachment of the bridge has or may get, or that the node
        has there: two ports with one MAC receive each other's frames."""
        taken = {macs.of_bridge(attachment.bridge), attachment.host_mac}
        for other in self._attachments.values():
            if other.bridge == attachment.bridge and other.key != attachment.key:
                taken |= {other.mac, other.host_mac}
        if mac in taken or mac.startswith(macs.OF_ADDRESSES):
            raise AddressUnavailable(
                f"the requested MAC {mac} is not to be had: it is another's, or the node's own",
                f"those that begin with {macs.OF_ADDRESSES} go with their addresses",
            )

    def full(self, service: str, version: int) -> TryAgainLater | PoolExhausted:
        """The error for a service that finds no address and no further slot: TryAgainLater while addresses are in
        cooldown, else PoolExhausted."""
        with self._lock:
            subnets = self._services[service].networks(version)
            cooling = self._addresses.cooling(subnets)
        where = f"service {service} has {', '.join(map(str, subnets))}, and the cluster has no further subnet"
        if cooling:
            return TryAgainLater(f"no IP address is free yet: {cooling} are cooling down", where)
        return PoolExhausted("no IP addresses available: every one is in use", where)

    def has_room(self, service: str) -> bool:
        """Whether an attach to the service would find an address of every IP version now."""
        with self._lock:
            if not all(map(fits, self.service_ranges)):
                return False
            record = self._services.get(service)
            for version, registry in self._segments.items():
                if record is not None and self._addresses.has_free(self.usable(record, version)):
                    continue
                try:
                    registry.assign_further(service, str(self.node.node_id), len(registry.held) + 1)
                except PoolExhausted:
                    return False
            return True

    def save(self, attachment: Attachment) -> None:
        """Write an attachment's record, new or changed. The cooldown begins for addresses that only the earlier record
        has."""
        with self._lock:
            before = self._attachments.get(attachment.key)
            lost = [ip for ip in before.ips if ip not in attachment.ips] if before is not None else []
            now = boot_clock()
            record: Change = ("attachment", encode_key(attachment.key), msgspec.json.encode(attachment))
            self._store.apply([record, *self._addresses.locked(lost, now)])
            self._attachments[attachment.key] = attachment
            self._on_bridge[attachment.bridge] += 1
            if before is not None:
                self._leave_bridge(before)
            if before is not None and before.host_veth != attachment.host_veth:
                self._forget_port(before)
            self._ports[attachment.host_veth] = attachment.key
            self._events.publish(NodeFactsChanged())
            self._addresses.hold(attachment.ips)
            if before is not None:
                self._addresses.release_hold(before.ips)
                self._addresses.cool(lost, now, before.mac)

    def drop(self, key: AttachmentKey, used: bool = True) -> None:
        """Delete an attachment's record; its addresses begin their cooldown, unless they were never `used`.
        Idempotent."""
        with self._lock:
            attachment = self._attachments.get(key)
            if attachment is None:
                return
            now = boot_clock()
            cooling = attachment.ips if used else ()
            self._store.apply([("attachment", encode_key(key), None), *self._addresses.locked(cooling, now)])
            del self._attachments[key]
            self._leave_bridge(attachment)
            self._forget_port(attachment)
            self._events.publish(NodeFactsChanged())
            self._addresses.release_hold(attachment.ips)
            self._addresses.cool(cooling, now, attachment.mac)
            if attachment.service not in self._services:
                self._rebuild_segments()  # the attachment had kept the dropped service's slot

    def _leave_bridge(self, attachment: Attachment) -> None:
        self._on_bridge[attachment.bridge] -= 1
        if not self._on_bridge[attachment.bridge]:
            del self._on_bridge[attachment.bridge]

    def _forget_port(self, attachment: Attachment) -> None:
        if self._ports.get(attachment.host_veth) == attachment.key:
            del self._ports[attachment.host_veth]

    def members(self, bridge: str) -> list[Attachment]:
        """The attachments on a bridge."""
        with self._lock:
            return [a for a in self._attachments.values() if a.bridge == bridge]

    @property
    def attachments(self) -> dict[AttachmentKey, Attachment]:
        """Every attachment by its key, oldest first: a copy."""
        with self._lock:
            return dict(self._attachments)

    def attachment(self, key: AttachmentKey) -> Attachment | None:
        """The record of an attachment; None if there is none."""
        with self._lock:
            return self._attachments.get(key)

    def snapshot(self) -> list[Attachment]:
        """Every attachment, oldest first."""
        with self._lock:
            return list(self._attachments.values())

    def in_cooldown(self, addresses: Iterable[str]) -> list[str]:
        """Those of the addresses that are in cooldown, in use again or not."""
        with self._lock:
            return self._addresses.in_cooldown(addresses)

    def had_other_mac(self, addresses: Iterable[str], mac: str) -> bool:
        """Whether a neighbour may know one of the addresses with another MAC than `mac`: a former owner had it, or the
        former owner's MAC is not known any more."""
        with self._lock:
            return self._addresses.had_other_mac(addresses, mac)

    def left_behind(self) -> list[str]:
        """The released addresses that are not in use again."""
        with self._lock:
            return self._addresses.left_behind()

    def resting(self, network: Network) -> int:
        """How many addresses of the network are in cooldown."""
        with self._lock:
            return self._addresses.cooling([network])

    def has_held_address(self, network: Network) -> bool:
        """Whether an address of the network is in use."""
        with self._lock:
            return self._addresses.any_in(network)

    # --- leases without a container --------------------------------------------------------------------------------

    @property
    def leases(self) -> dict[str, Lease]:
        """Every lease by its address: a copy."""
        with self._lock:
            return dict(self._leases)

    def lease_of(self, address: str) -> Lease | None:
        """The lease of an address; None if there is none."""
        with self._lock:
            return self._leases.get(address)

    def lease(self, service: str, owner: str = "") -> AssignedAddress:
        """Lease an address of the segment `service` without a container (contract 6.7, 6.10); `owner`: "" for
        allocate_ip. Raises NeedsSlot, KeyError for an unknown service."""
        with self._lock:
            version = ipaddress.ip_network(self.node.cluster_cidr).version
            return self._lease(version, self.usable(self._services[service], version), service, owner)

    def lease_home(self, owner: str = "") -> AssignedAddress:
        """Lease an address of the node's own slice, without a service. Raises PoolExhausted."""
        with self._lock:
            home = self.node.home(ipaddress.ip_network(self.node.cluster_cidr).version)
            if not self.is_usable(home):
                raise PoolExhausted(f"IP allocator exhausted: slice {home} lies in a network of the host's own")
            try:
                return self._lease(home.version, [home], "", owner)
            except NeedsSlot as full:
                raise PoolExhausted(f"IP allocator exhausted: no address of slice {home} is free") from full

    def _lease(self, version: int, subnets: list[Network], service: str, owner: str) -> AssignedAddress:
        assigned = self._addresses.pick(version, subnets)
        lease = Lease(assigned.ip, service, owner)
        self._store.apply([("lease", assigned.ip, msgspec.json.encode(lease))])
        self._leases[assigned.ip] = lease
        self._addresses.hold([assigned.ip])
        return assigned

    def release(self, address: str, owner: str = "") -> Lease | None:
        """Return a lease of that owner to the pool; None if there is none. An attachment's address is not touched."""
        with self._lock:
            lease = self._leases.get(address)
            if lease is None or lease.owner != owner:
                return None
            now = boot_clock()
            self._store.apply([("lease", address, None), *self._addresses.locked([address], now)])
            del self._leases[address]
            self._addresses.release_hold([address])
            self._addresses.cool([address], now)
            return lease

    def idle_services(self) -> list[Service]:
        """The services that an ADD made and that have a subnet without a user. O(services): not for every attach."""
        with self._lock:
            bridges = set(self._on_bridge)
            leased = {lease.service for lease in self._leases.values()}
            candidates = [s for s in self._services.values() if s.passing and s.subnets]
            return [s for s in candidates if s.bridge not in bridges and s.name not in leased]

    def in_use(self, segment: str) -> bool:
        """Whether an address of the segment is in use: by a container on its bridge, a guest, or another lease."""
        with self._lock:
            service = self._services.get(segment)
            if service is None:
                return False
            return service.bridge in self._on_bridge or any(lease.service == segment for lease in self._leases.values())
