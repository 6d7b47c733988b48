"""The node's state in memory, with its copy in the store: who is attached, which service has which slots, what rests.

Every change is written before it counts. One lock guards the whole: it is held for lookups and a SQLite write (some
0.1 ms), never for anything the kernel does. Locks for longer work are handed out by `Locks`, one per resource.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence

import msgspec

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
    """The error for a host end whose name is another's; `owner` says whose."""
    return InterfaceExists(
        f"the host interface {host_veth} belongs to {owner}",
        "two attachments may not share one: nothing of the other was touched; attach under another container ID",
    )


class State(ServiceBook):
    """Everything the daemon knows. Reads give values; writes go to the store first."""

    def __init__(self, store: Records, settings: Settings) -> None:
        super().__init__(store, settings)
        self.attachments: dict[AttachmentKey, Attachment] = {}
        self._ports: dict[str, AttachmentKey] = {}  # whose a host end's name is
        for attachment in restore.attachments(store):
            self.attachments[attachment.key] = attachment
            self._ports.setdefault(attachment.host_veth, attachment.key)
            self.addresses.hold(attachment.ips)
        self.leases: dict[str, Lease] = restore.leases(store)
        self.addresses.hold(self.leases)
        for address, since in restore.released(store).items():
            self.addresses.cool([address], min(since, boot_clock()))
        self._drop_empty_misfits()
        self._rebuild_segments()

    def _drop_empty_misfits(self) -> None:
        """A service without users gives back subnets that are none of the ranges which the node has now: other ranges
        in the YAML must not keep the daemon from starting for the sake of what is not used."""
        for service in list(self.services.values()):
            fits_in = slots.holds_slots(self.node, service, self.service_cidr)
            if not fits_in and not self.in_use(service.name):
                log.warning("service %s has no users and gives back %s", service.name, ", ".join(service.subnets))
                self._store.apply([("service", service.name, None)])
                del self.services[service.name]

    # --- attachments and addresses -------------------------------------------------------------------------------

    def reserve(self, attachment: Attachment, segment: str, wanted: Sequence[Address]) -> Attachment:
        """Save `attachment` as an intent, with one address of each family of the service `segment`, and with the MAC
        that follows from the first if it has none.

        `wanted` are addresses it asked for, at most one a family; else it keeps those that its earlier record has, if
        they fit. Raises AddressUnavailable, also for a MAC, InterfaceExists where the host end's name is another's,
        TryAgainLater while what would serve is cooling, NeedsSlot.
        """
        with self._lock:
            self.refuse_port(attachment.host_veth, attachment.key)
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
                picked.append(self.addresses.pick(version, self.usable(service, version), asked, own))
            mac = attachment.mac or macs.of_address(picked[0].ip)
            if mac != macs.of_address(picked[0].ip):
                self._refuse_taken(mac, attachment)
            intent = msgspec.structs.replace(attachment, state="intent", addresses=tuple(picked), mac=mac)
            self.save(intent)  # whole: a daemon that finds it must be able to undo it
            return intent

    def owner_of_port(self, host_veth: str) -> AttachmentKey | None:
        """The attachment whose host end has that name by its record; None where no record names it."""
        with self._lock:
            return self._ports.get(host_veth)

    def refuse_port(self, host_veth: str, key: AttachmentKey) -> None:
        """Raises InterfaceExists (101) where the host end's name is another attachment's. Such a name is 40 bits of a
        hash without a secret: two attachments that share one are found in about a second."""
        owner = self.owner_of_port(host_veth)
        if owner is not None and owner != key:
            raise name_taken(host_veth, "/".join(owner))

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
            if not all(fits(slots.part_of(cidr, self.service_cidr)) for cidr in self.cidrs):
                return False
            known = self.services.get(service)
            for version, registry in self._segments.items():
                if known is not None and self.addresses.has_free(self.usable(known, version)):
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
            self._store.apply([record, *self.addresses.locked(lost, now)])
            self.attachments[attachment.key] = attachment
            if before is not None and before.host_veth != attachment.host_veth:
                self._forget_port(before)
            self._ports[attachment.host_veth] = attachment.key
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
            self._store.apply([("attachment", encode_key(key), None), *self.addresses.locked(cooling, now)])
            del self.attachments[key]
            self._forget_port(attachment)
            self.changed()
            self.addresses.let_go(attachment.ips)
            self.addresses.cool(cooling, now, attachment.container)
            if attachment.service not in self.services:
                self._rebuild_segments()  # its slot was kept for it

    def _forget_port(self, attachment: Attachment) -> None:
        if self._ports.get(attachment.host_veth) == attachment.key:
            del self._ports[attachment.host_veth]

    def members(self, bridge: str) -> list[Attachment]:
        """The attachments on a bridge."""
        with self._lock:
            return [a for a in self.attachments.values() if a.bridge == bridge]

    def snapshot(self) -> list[Attachment]:
        """Every attachment, in the order they were made."""
        with self._lock:
            return list(self.attachments.values())

    # --- bare leases -----------------------------------------------------------------------------------------------

    def lease(self, service: str, owner: str = "") -> AssignedAddress:
        """An address of the segment `service` that no container has (contract 6.7, 6.10); `owner` says whose it is,
        empty for allocate_ip's. Raises NeedsSlot, KeyError for no such service."""
        with self._lock:
            version = ipaddress.ip_network(self.node.cluster_cidr).version
            return self._lease(version, self.usable(self.services[service], version), service, owner)

    def lease_home(self, owner: str = "") -> AssignedAddress:
        """An address of the node's own slice, for what belongs to no service. Raises PoolExhausted."""
        with self._lock:
            home = self.node.home(ipaddress.ip_network(self.node.cluster_cidr).version)
            if not self.is_usable(home):
                raise PoolExhausted(f"IP allocator exhausted: slice {home} lies in a network of the host's own")
            try:
                return self._lease(home.version, [home], "", owner)
            except NeedsSlot as full:
                raise PoolExhausted(f"IP allocator exhausted: no address of slice {home} is free") from full

    def _lease(self, version: int, subnets: list[Network], service: str, owner: str) -> AssignedAddress:
        held = self.addresses.pick(version, subnets)
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
            self._store.apply([("lease", address, None), *self.addresses.locked([address], now)])
            del self.leases[address]
            self.addresses.let_go([address])
            self.addresses.cool([address], now)
            return lease

    def idle_services(self) -> list[Service]:
        """The services that an ADD made and that have a subnet and nobody in it. O(attachments and services): not for
        every attach."""
        with self._lock:
            bridges = {each.bridge for each in self.attachments.values()}
            leased = {lease.service for lease in self.leases.values()}
            found = [s for s in self.services.values() if s.passing and s.subnets]
            return [s for s in found if s.bridge not in bridges and s.name not in leased]

    def in_use(self, segment: str) -> bool:
        """Whether anybody has an address of the segment: a container on its bridge, a guest, or a bare lease."""
        with self._lock:
            service = self.services.get(segment)
            if service is None:
                return False
            leased = any(lease.service == segment for lease in self.leases.values())
            return leased or any(each.bridge == service.bridge for each in self.attachments.values())
