"""Claims ids, slots and keys in etcd, each by one transaction. A claim that is taken returns its holder."""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from cni.addresses import Network
from cni.daemon.cluster.store import ClusterStore, Compare, Delete, Get, Put, StoreError
from cni.daemon.cluster.store_records import StoreKeys, is_slot
from cni.daemon.cluster.view import ClusterView
from cni.daemon.model.cluster_records import SERVICE, SLICE, SPARE, SignedSlot, Slot
from cni.daemon.model.signing import Signer
from cni.daemon.model.subnets import SubnetRegistry
from cni.daemon.state.identity import Member
from cni.daemon.state.tables import Tables
from cni.errors import PoolExhausted, TryAgainLater

log = logging.getLogger(__name__)

UNUSED = 300.0  # seconds for which a slot of this node without a service is kept: containers return after a reboot
TRIES = 64  # ids beyond the known ones that are tried: many nodes may start at once
RESERVED = 2  # slots of each family that are claimed in advance, so that a new service can start while etcd is down
# Parts of a range that are taken: from FEW on no slot is claimed in advance, from SCARCE on the reserve is released.
FEW, SCARCE = 0.5, 0.75


class Claims:
    """The claims of this node. Thread-safe."""

    def __init__(
        self,
        store: ClusterStore,
        keys: StoreKeys,
        registry: Tables,
        member: Callable[[], Member],
        signer: Signer | None = None,
    ) -> None:
        """`member`: this node's membership now; `signer`: signs the records of slots; None for a tool that claims for
        no node."""
        self._store = store
        self._keys = keys
        self._registry = registry  # records what this node holds, for a start without etcd
        self._member = member
        self._signer = signer
        self._lock = threading.Lock()
        self._taking: dict[str, float] = {}
        self._idle: dict[str, float] = {}

    @property
    def member(self) -> Member:
        """This node's membership now."""
        return self._member()

    # --- for segments ------------------------------------------------------------------------------------------------

    def held(self, service: str, version: int) -> list[Network]:
        """The slots that are already claimed for the service, in order of address."""
        use = SERVICE + service
        mine = [_network(cidr) for cidr, slot in self._registry.slots.all().items() if slot.use == use]
        return sorted((n for n in mine if n.version == version), key=lambda n: int(n.network_address))

    def claim(self, network: Network, service: str) -> bool:
        """Claim the slot for the service; False if another node holds it. Raises TryAgainLater when etcd does not
        answer: the caller then uses a slot that was claimed in advance (`take_spare`)."""
        if not self.member.node_id:
            raise TryAgainLater(f"this node has not joined its cluster yet: {self._store.name} has not been reached")
        cidr, use = str(network), SERVICE + service
        recorded = self._registry.slots.get(cidr)
        if recorded is not None and recorded.use == use:
            return True
        with self._lock:
            self._taking[cidr] = time.monotonic()
        try:
            return self._take_slot(cidr, use, spare=recorded is not None and recorded.use == SPARE)
        except StoreError as error:
            raise TryAgainLater(
                f"no subnet for service {service}: {self._store.name} cannot be asked", str(error)
            ) from error

    def take_spare(self, version: int, service: str, usable: Callable[[Network], bool]) -> Network | None:
        """Give a slot that was claimed in advance, and that is `usable`, to the service; None if there is none.
        `reconcile` updates etcd when etcd answers."""
        with self._lock:
            mine = [_network(cidr) for cidr, slot in self._registry.slots.all().items() if slot.use == SPARE]
            spare = next((n for n in mine if n.version == version and usable(n)), None)
            if spare is not None:
                self._registry.slots.put(str(spare), Slot(self.member.identity, SERVICE + service))
            return spare

    # --- transactions ------------------------------------------------------------------------------------------------

    def _take_slot(self, cidr: str, use: str, spare: bool = False) -> bool:
        """Claim the slot for that use; False if another node holds it. `spare`: the slot is one that this node claimed
        in advance. Raises StoreError."""
        key = self._keys.slot(cidr)
        record = Slot(self.member.identity, use)
        put = self._put(key, record)
        done, records = self._store.transact([Compare(key, "CREATE", 0)], [put], [Get(key)])
        if not done:
            present = _slot(records[0].value) if records else None
            mine = present is not None and present.owner == self.member.identity
            unsigned = present == record and records[0].value != put.value
            if present is not None and mine and (spare or present.use == SPARE or unsigned):
                done, _ = self._store.transact([Compare(key, "VALUE", records[0].value)], [put])
            elif present != record:
                return False
            else:
                done = True
        if done:
            self._registry.slots.put(cidr, record)
        return done

    def take_id(self, preferred: int, taken: Mapping[int, str]) -> int:
        """Claim a node id: the recorded one, one that etcd lists for this node, the preferred one, or the lowest free
        one. `taken`: the holder of each id. Raises StoreError, PoolExhausted."""
        own = sorted(number for number, identity in taken.items() if identity == self.member.identity)
        for number in (self.member.node_id, *own, preferred):
            if number and self._claim_plain(self._keys.id(number)):
                return number
        seen = set(taken)
        for number in range(1, len(seen) + TRIES):
            if number not in seen and self._claim_plain(self._keys.id(number)):
                return number
        raise PoolExhausted("no node id is free", f"{len(seen)} are taken, and other nodes claimed {TRIES} more")

    def take_key(self, public_key: str) -> str:
        """Claim a WireGuard key. Returns the identity that holds it, of this node or another. A key that this node has
        claimed before and not released belongs to this node, whatever the record says. Raises StoreError."""
        key = self._keys.key(public_key)
        holder = self._claim_or_holder(key)
        again = holder != self.member.identity and self.member.public_key == public_key
        if again and self.repair("", key, "", holder.encode()):
            log.warning("restored the claim of the key %s, which %s had overwritten", public_key, holder)
            return self.member.identity
        return holder

    def hold_keys(self, claimed: Collection[str], needed: set[str], kept: Collection[str]) -> None:
        """Claim the keys `needed`, and release those that are neither `needed` nor `kept`. `claimed`: the keys that
        this node has claimed. All are in hexadecimal digits, as in the store. Raises StoreError."""
        for name in needed - set(claimed):
            holder = self._claim_or_holder(self._keys.named_key(name))
            if holder != self.member.identity:
                log.warning("the key %s of a service's device is claimed by %s", name, holder)
        for name in set(claimed) - needed - set(kept):
            key = self._keys.named_key(name)
            self._store.transact([Compare(key, "VALUE", self._own)], [Delete(key)])

    def drop_key(self, public_key: str) -> None:
        """Release the key if this node holds it. Raises StoreError."""
        key = self._keys.key(public_key)
        self._store.transact([Compare(key, "VALUE", self.member.identity.encode())], [Delete(key)])

    def _claim_plain(self, key: str) -> bool:
        return self._claim_or_holder(key) == self.member.identity

    def _claim_or_holder(self, key: str) -> str:
        own = self.member.identity.encode()
        done, records = self._store.transact([Compare(key, "CREATE", 0)], [Put(key, own)], [Get(key)])
        return self.member.identity if done or not records else records[0].value.decode(errors="surrogateescape")

    def take_slice(
        self, cluster: str, node_id: int, view: ClusterView, before: str | None, preferred: str | None = None
    ) -> str:
        """Claim a slot of the range as the node's own slice. `before`: the slice it had; `preferred`: the one to take
        if it is free and a slot of the range. Raises StoreError, PoolExhausted."""
        use = SLICE
        if before is not None and is_slot(before, (cluster,)) and self._take_slot(before, use):
            return before
        mine = [c for c, s in view.slots.items() if s == Slot(self.member.identity, use)]
        for cidr in mine:
            if _network(cidr).subnet_of(_network(cluster)) and self._take_slot(cidr, use):  # type: ignore[arg-type]
                return cidr
        if preferred is not None and is_slot(preferred, (cluster,)) and self._take_slot(preferred, use):
            return preferred
        taken = [_network(cidr) for cidr in view.slots]
        segments = SubnetRegistry.over(cluster)
        while True:
            network, _ = segments.reserve_all(taken).assign("", str(node_id))
            if self._take_slot(str(network), use):
                return str(network)
            taken.append(network)

    # --- now and then ------------------------------------------------------------------------------------------------

    def reconcile(self, view: ClusterView, used: dict[str, str], busy: Iterable[str], ranges: Iterable[str]) -> None:
        """Bring etcd and this node's records into agreement: write slots that were taken from the reserve, release
        slots that are no longer used, refill the reserve. `used`: the service of each subnet in use; `busy`: slots with
        addresses in use; `ranges`: the ranges of this node's services, one of each family.

        Raises StoreError.
        """
        own, now, kept = self.member.identity, time.monotonic(), set(busy)
        with self._lock:
            self._taking = {cidr: since for cidr, since in self._taking.items() if now - since < 60.0}
            taking = set(self._taking)
        for cidr, service in used.items():
            if view.slots.get(cidr) != Slot(own, SERVICE + service):
                # A slot of another node is left alone; `Membership.note_losses` reports it.
                self._take_slot(cidr, SERVICE + service, True)
        mine = {cidr: slot for cidr, slot in view.slots.items() if slot.owner == own}
        for cidr, slot in mine.items():
            if self._registry.slots.get(cidr) != slot and cidr not in used:
                self._registry.slots.put(cidr, slot)
        for cidr in set(self._registry.slots.all()) - view.slots.keys() - taking - kept - used.keys():
            self._registry.slots.drop(cidr)
        for cidr in [c for c in self._registry.slots.all() if c in view.slots and view.slots[c].owner != own]:
            self._registry.slots.drop(cidr)
        idle = {c for c, s in mine.items() if s.use.startswith(SERVICE) and c not in {*used, *kept, *taking}}
        self._idle = {cidr: self._idle.get(cidr, now) for cidr in idle}
        for cidr, since in self._idle.items():
            if now - since >= UNUSED:
                self._release(cidr, mine[cidr])
        self._refill_reserve(view, ranges)

    def release_all(self, view: ClusterView) -> None:
        """Release all slots and the id of this node. Raises StoreError."""
        for cidr, slot in list(view.slots.items()):
            if slot.owner == self.member.identity:
                self._release(cidr, slot)
        key = self._keys.id(self.member.node_id)
        self._store.transact([Compare(key, "VALUE", self.member.identity.encode())], [Delete(key)])

    def _release(self, cidr: str, slot: Slot) -> None:
        log.info("releasing the subnet %s (%s): no longer used", cidr, slot.use)
        key = self._keys.slot(cidr)
        self._registry.slots.drop(cidr)
        _, records = self._store.transact([], [Get(key)])
        if records and _slot(records[0].value) == slot:
            self._store.transact([Compare(key, "VALUE", records[0].value)], [Delete(key)])

    def _put(self, key: str, slot: Slot) -> Put:
        """The write of a slot's record, signed if there is a signer."""
        if self._signer is None:
            return Put(key, msgspec.json.encode(slot))
        signed = SignedSlot(slot.owner, slot.use, self._signer.name)
        return Put(key, self._signer.sealed(key, msgspec.json.encode(signed)))

    def sign(self, cidr: str, slot: Slot) -> None:
        """Sign the record of a slot that an earlier version of this node left unsigned. Raises StoreError."""
        self._take_slot(cidr, slot.use)

    def repair(self, claim: str, key: str, use: str, instead: bytes) -> bool:
        """Write the record of this node's claim again that another machine has overwritten with `instead`. False if the
        record has changed since. `use`: of a slot. Raises StoreError."""
        put = self._put(key, Slot(self.member.identity, use)) if "/" in claim else Put(key, self._own)
        return self._store.transact([Compare(key, "VALUE", instead)], [put])[0]

    @property
    def _own(self) -> bytes:
        return self.member.identity.encode()

    def _refill_reserve(self, view: ClusterView, ranges: Iterable[str]) -> None:
        for cidr in ranges:
            own = _network(cidr)
            self._release_reserve(own, inside=False)
            slots = self._registry.slots.all()
            taken = [network for network in map(_network, {*view.slots, *slots}) if network.overlaps(own)]
            have = sum(1 for c, s in slots.items() if s.use == SPARE and _network(c).overlaps(own))
            segments = SubnetRegistry.over(cidr)
            if len(taken) >= segments.slots * SCARCE:
                self._release_reserve(own, inside=True)
                continue
            for n in range(have, RESERVED):
                if len(taken) >= segments.slots * FEW:
                    break  # leave the rest for services that need a slot now
                network, _ = segments.reserve_all(taken).assign(SPARE, f"{self.member.node_id}#{n}")
                self._take_slot(str(network), SPARE)
                taken.append(network)

    def _release_reserve(self, own: Network, *, inside: bool) -> None:
        """Release the slots of the family of `own` that were claimed in advance, inside of `own` or outside, for other
        nodes. Raises StoreError."""
        with self._lock:  # so that no service takes one meanwhile
            slots = self._registry.slots.all().items()
            spare = [(c, s) for c, s in slots if s.use == SPARE and _network(c).version == own.version]
            mine = [(c, s) for c, s in spare if _network(c).overlaps(own) == inside]
            for cidr, _ in mine:
                self._registry.slots.drop(cidr)
        for cidr, slot in mine:
            self._release(cidr, slot)


def _slot(value: bytes) -> Slot | None:
    """The slot in a record; None if the record is unreadable. Such a slot cannot be claimed."""
    try:
        return msgspec.json.decode(value, type=Slot)
    except (msgspec.DecodeError, RecursionError):
        return None


def _network(cidr: str) -> Network:
    return ipaddress.ip_network(cidr)
