"""Claiming ids, slots and keys in etcd, each by one transaction: whoever comes second is told who was first."""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Collection, Iterable, Mapping

import msgspec

from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.etcd_protocol import Compare, Delete, EtcdError, Get, Put
from cni.daemon.cluster.signing import Signer
from cni.daemon.cluster.store_records import SignedSlot
from cni.daemon.cluster.view import SERVICE, SLICE, SPARE, ClusterView, Network, Slot, StoreKeys
from cni.daemon.model.subnets import SubnetRegistry
from cni.daemon.state.identity import Member
from cni.daemon.state.tables import Tables
from cni.errors import PoolExhausted, TryAgainLater

log = logging.getLogger(__name__)

UNUSED = 300.0  # seconds for which a slot of ours that no service uses is kept: containers come back after a reboot
TRIES = 64  # ids beyond the known ones that are tried: many nodes may begin at once
SPARES = 2  # slots of each family that are held in advance, so that a new service can begin while etcd is down
FEW, SCARCE = 0.5, 0.75  # parts of a range taken from which on none is held in advance, and what was is given back


class Claims:
    """What this node holds. Safe from any thread."""

    def __init__(
        self, client: EtcdClient, keys: StoreKeys, registry: Tables, member: Member, signer: Signer | None = None
    ) -> None:
        """`signer`: signs the slots that are claimed; None for a tool that claims for no node."""
        self._etcd = client
        self._keys = keys
        self._registry = registry  # what we hold, for a start without etcd
        self.member = member
        self._signer = signer
        self._lock = threading.Lock()
        self._taking: dict[str, float] = {}
        self._idle: dict[str, float] = {}

    # --- for Services ------------------------------------------------------------------------------------------------

    def held(self, service: str, version: int) -> list[Network]:
        """What is claimed for the service already, from an earlier boot."""
        use = SERVICE + service
        mine = [_network(cidr) for cidr, slot in self._registry.slots.all().items() if slot.use == use]
        return sorted((n for n in mine if n.version == version), key=lambda n: int(n.network_address))

    def claim(self, network: Network, service: str) -> bool:
        """Whether the slot is this node's for the service. Raises TryAgainLater when etcd cannot be asked: then there
        are the spare ones."""
        if not self.member.node_id:
            raise TryAgainLater("this node has no part in the cluster yet: etcd has not been reached")
        cidr, use = str(network), SERVICE + service
        known = self._registry.slots.get(cidr)
        if known is not None and known.use == use:
            return True
        with self._lock:
            self._taking[cidr] = time.monotonic()
        try:
            return self._take(cidr, use, spare=known is not None and known.use == SPARE)
        except EtcdError as error:
            raise TryAgainLater(f"no subnet for service {service}: etcd cannot be asked", str(error)) from error

    def take_spare(self, version: int, service: str) -> Network | None:
        """A slot that was claimed in advance is the service's from now on; etcd is told when it can be."""
        with self._lock:
            mine = [_network(cidr) for cidr, slot in self._registry.slots.all().items() if slot.use == SPARE]
            found = next((network for network in mine if network.version == version), None)
            if found is not None:
                self._registry.slots.put(str(found), Slot(self.member.identity, SERVICE + service))
            return found

    # --- transactions ------------------------------------------------------------------------------------------------

    def _take(self, cidr: str, use: str, spare: bool = False) -> bool:
        """The slot is ours for that use, or somebody else's. Raises EtcdError."""
        key = self._keys.slot(cidr)
        wanted = Slot(self.member.identity, use)
        put = self._put(key, wanted)
        done, found = self._etcd.transact([Compare(key, "CREATE", 0)], [put], [Get(key)])
        if not done:
            there = _slot(found[0].value) if found else None
            mine = there is not None and there.owner == self.member.identity
            unsigned = there == wanted and found[0].value != put.value
            if there is not None and mine and (spare or there.use == SPARE or unsigned):
                done, _ = self._etcd.transact([Compare(key, "VALUE", found[0].value)], [put])
            elif there != wanted:
                return False
            else:
                done = True
        if done:
            self._registry.slots.put(cidr, wanted)
        return done

    def take_id(self, preferred: int, taken: Mapping[int, str]) -> int:
        """A node id that is this node's alone: the one it had or has taken, the preferred one, or the lowest free.
        `taken`: who has which. Raises EtcdError, PoolExhausted."""
        own = sorted(number for number, identity in taken.items() if identity == self.member.identity)
        for number in (self.member.node_id, *own, preferred):
            if number and self._take_plain(self._keys.id(number)):
                return number
        seen = set(taken)
        for number in range(1, len(seen) + TRIES):
            if number not in seen and self._take_plain(self._keys.id(number)):
                return number
        raise PoolExhausted("no node id is free", f"{len(seen)} are taken, and others are quicker")

    def take_key(self, public_key: str) -> str:
        """Claim a WireGuard key; returns who holds it, this node or another. One that this node has claimed before and
        not given back is its own, whatever stands there. Raises EtcdError."""
        key = self._keys.key(public_key)
        holder = self._take_plain_of(key)
        again = holder != self.member.identity and self.member.public_key == public_key
        if again and self.repair("", key, "", holder.encode()):
            log.warning("took the key %s back from %s, which had overwritten the claim", public_key, holder)
            return self.member.identity
        return holder

    def hold_keys(self, held: Collection[str], wanted: set[str], kept: Collection[str]) -> None:
        """Claim the keys `wanted`, and give those back that are neither wanted nor `kept`. `held`: what this node has
        claimed, as the store names it, like the others. Raises EtcdError."""
        for name in wanted - set(held):
            holder = self._take_plain_of(self._keys.named_key(name))
            if holder != self.member.identity:
                log.warning("the key %s of a service's device is claimed by %s", name, holder)
        for name in set(held) - wanted - set(kept):
            key = self._keys.named_key(name)
            self._etcd.transact([Compare(key, "VALUE", self._own)], [Delete(key)])

    def drop_key(self, public_key: str) -> None:
        """The key is nobody's, if it was this node's. Raises EtcdError."""
        key = self._keys.key(public_key)
        self._etcd.transact([Compare(key, "VALUE", self.member.identity.encode())], [Delete(key)])

    def _take_plain(self, key: str) -> bool:
        return self._take_plain_of(key) == self.member.identity

    def _take_plain_of(self, key: str) -> str:
        own = self.member.identity.encode()
        done, found = self._etcd.transact([Compare(key, "CREATE", 0)], [Put(key, own)], [Get(key)])
        return self.member.identity if done or not found else found[0].value.decode(errors="surrogateescape")

    def take_slice(self, cluster: str, node_id: int, view: ClusterView, before: str | None) -> str:
        """A slot of the range for the node itself. Raises EtcdError, PoolExhausted."""
        use = SLICE
        if before is not None and self._take(before, use):
            return before
        mine = [c for c, s in view.slots.items() if s == Slot(self.member.identity, use)]
        for cidr in mine:
            if _network(cidr).subnet_of(_network(cluster)) and self._take(cidr, use):  # type: ignore[arg-type]
                return cidr
        taken = [_network(cidr) for cidr in view.slots]
        segments = SubnetRegistry.over(cluster)
        while True:
            network, _ = segments.reserve_all(taken).assign("", str(node_id))
            if self._take(str(network), use):
                return str(network)
            taken.append(network)

    # --- now and then ------------------------------------------------------------------------------------------------

    def reconcile(self, view: ClusterView, used: dict[str, str], busy: Iterable[str], clusters: Iterable[str]) -> None:
        """Make etcd and our own list agree: tell it what was taken from the spares, give back what is used no more,
        hold some in advance. `used`: the service of each subnet in use; `busy`: slots with addresses in use.

        Raises EtcdError.
        """
        own, now, kept = self.member.identity, time.monotonic(), set(busy)
        with self._lock:
            self._taking = {cidr: since for cidr, since in self._taking.items() if now - since < 60.0}
            taking = set(self._taking)
        for cidr, service in used.items():
            if view.slots.get(cidr) != Slot(own, SERVICE + service):
                self._take(cidr, SERVICE + service, True)  # another's stays so: `Membership.heed_losses` tells
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
                self._give_back(cidr, mine[cidr])
        self._stock(view, clusters)

    def give_everything_back(self, view: ClusterView) -> None:
        """Nothing is this node's any more. Raises EtcdError."""
        for cidr, slot in list(view.slots.items()):
            if slot.owner == self.member.identity:
                self._give_back(cidr, slot)
        key = self._keys.id(self.member.node_id)
        self._etcd.transact([Compare(key, "VALUE", self.member.identity.encode())], [Delete(key)])

    def _give_back(self, cidr: str, slot: Slot) -> None:
        log.info("giving back the subnet %s, which %s needs no more", cidr, slot.use)
        key = self._keys.slot(cidr)
        self._registry.slots.drop(cidr)
        _, found = self._etcd.transact([], [Get(key)])
        if found and _slot(found[0].value) == slot:
            self._etcd.transact([Compare(key, "VALUE", found[0].value)], [Delete(key)])

    def _put(self, key: str, slot: Slot) -> Put:
        """The record of a slot, signed."""
        if self._signer is None:
            return Put(key, msgspec.json.encode(slot))
        signed = SignedSlot(slot.owner, slot.use, self._signer.name)
        return Put(key, self._signer.sealed(key, msgspec.json.encode(signed)))

    def sign(self, cidr: str, slot: Slot) -> None:
        """The record of a slot of this node, from a version that did not sign, is signed. Raises EtcdError."""
        self._take(cidr, slot.use)

    def repair(self, claim: str, key: str, use: str, instead: bytes) -> bool:
        """A claim of this node that another has overwritten stands again, unless it is another record by now than
        `instead`. `use`: of a slot. Raises EtcdError."""
        put = self._put(key, Slot(self.member.identity, use)) if "/" in claim else Put(key, self._own)
        return self._etcd.transact([Compare(key, "VALUE", instead)], [put])[0]

    @property
    def _own(self) -> bytes:
        return self.member.identity.encode()

    def _stock(self, view: ClusterView, clusters: Iterable[str]) -> None:
        for cluster in clusters:
            version = _network(cluster).version
            slots = self._registry.slots.all()
            taken = [each for each in map(_network, {*view.slots, *slots}) if each.version == version]
            have = sum(1 for c, s in slots.items() if s.use == SPARE and _network(c).version == version)
            segments = SubnetRegistry.over(cluster)
            if len(taken) >= segments.slots * SCARCE:
                self._give_spares_back(version)
                continue
            for n in range(have, SPARES):
                if len(taken) >= segments.slots * FEW:
                    break  # the rest is for those who need it now
                network, _ = segments.reserve_all(taken).assign(SPARE, f"{self.member.node_id}#{n}")
                self._take(str(network), SPARE)
                taken.append(network)

    def _give_spares_back(self, version: int) -> None:
        """Somebody else may need them now. Raises EtcdError."""
        with self._lock:  # no service takes one meanwhile
            slots = self._registry.slots.all().items()
            mine = [(c, s) for c, s in slots if s.use == SPARE and _network(c).version == version]
            for cidr, _ in mine:
                self._registry.slots.drop(cidr)
        for cidr, slot in mine:
            self._give_back(cidr, slot)


def _slot(value: bytes) -> Slot | None:
    """What stands there; None for what nobody can read, which is nobody's to take."""
    try:
        return msgspec.json.decode(value, type=Slot)
    except (msgspec.DecodeError, RecursionError):
        return None


def _network(cidr: str) -> Network:
    return ipaddress.ip_network(cidr)
