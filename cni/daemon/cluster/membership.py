"""What makes this node a member of its cluster: an id, a slice of each range and its key, claimed in etcd and looked
after, with the subnets of its services.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Callable

import msgspec

from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.cluster.claims import Claims
from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.etcd_protocol import Unreachable
from cni.daemon.cluster.reading import as_records, everything
from cni.daemon.cluster.store_records import hexadecimal
from cni.daemon.cluster.view import ClusterView
from cni.daemon.state.identity import Identity, Member

log = logging.getLogger(__name__)


class Membership:
    """Of one node. Safe from any thread."""

    def __init__(
        self,
        service: OverlayService,
        identity: Identity,
        claims: Claims,
        *,
        etcd: EtcdClient,
        view: ClusterView,
        lock: threading.RLock,
        note: Callable[[str, str], None],
    ) -> None:
        """`lock`: of the view; `note`: a problem of that name is told in these words, or is none any more."""
        self._service, self._identity, self._etcd, self.claims = service, identity, etcd, claims
        self._view, self._lock, self._note = view, lock, note
        self._claimed = ""  # the key that stands in etcd as ours
        self.joined = threading.Event()
        self.running = False  # before, there is no fence yet that would have to follow

    def restore(self) -> None:
        """The node is what it was the last time, whether etcd answers or not."""
        if self.claims.member.node_id:
            self.become(self.claims.member)
            self.joined.set()

    def join(self) -> None:
        """Claim id, slices and key. Idempotent. Raises EtcdError, CniError."""
        items, _ = everything(self._etcd, self._view.keys.base)
        with self._lock:
            self._view.load(as_records(items), time.monotonic())
            view, member = self._view, self.claims.member
        self.claim_key()  # first: whoever has another's key stays out, and must hold nothing
        node_id = self.claims.take_id(self._service.settings.node_id, dict(view.ids))
        slices = []
        for cluster in self._service.state.cidrs:
            range_ = ipaddress.ip_network(cluster)
            before = next((s for s in member.slices if ipaddress.ip_network(s).version == range_.version), None)
            slices.append(self.claims.take_slice(cluster, node_id, view, before))
        fresh = msgspec.structs.replace(self.claims.member, node_id=node_id, slices=tuple(slices))
        self._identity.keep_member(fresh)
        self.claims.member = fresh
        self.become(fresh)
        self._note("not-joined", "")
        self.joined.set()

    def become(self, member: Member) -> None:
        """The node has that id and these slices."""
        by_family: dict[int, str] = {ipaddress.ip_network(cidr).version: cidr for cidr in member.slices}
        first: int = ipaddress.ip_network(self._service.state.cidrs[0]).version
        wanted = {
            "node_id": member.node_id,
            "slice_cidr": by_family.get(first),
            "slice_cidr6": by_family.get(10 - first),
        }
        node = self._service.state.node
        if wanted != {key: getattr(node, key) for key in wanted}:
            with self._lock:
                self._service.state.set_foreign(self._view.foreign(member.identity))
            # Before the start there is no fence yet that would have to follow.
            (self._service.change_node if self.running else self._service.state.update_node)(**wanted)

    def claim_key(self) -> None:
        """The node's key is this node's alone; an earlier one is given back. Raises EtcdError."""
        key = self._identity.public_key()
        holder = self.claims.take_key(key)
        if holder != self.claims.member.identity:
            with self._lock:
                who = self._view.name_of(holder)
            self._note(
                "key-in-use",
                f"{who} has this node's WireGuard key: one data directory is a copy of the other's; "
                "make a new key on this node (zlayer-cni peer rotate)",
            )
            raise Unreachable("the node's key is another's")
        self._note("key-in-use", "")
        earlier = self.claims.member.public_key
        if earlier and earlier != key:
            self.claims.drop_key(earlier)
        self._claimed = key
        if earlier != key:
            self.claims.member = msgspec.structs.replace(self.claims.member, public_key=key)
            self._identity.keep_member(self.claims.member)

    def has_claimed_its_key(self) -> bool:
        """Whether the key that the node has now stands in etcd as its own."""
        return self._claimed == self._identity.public_key()

    def release(self) -> None:
        """This node is gone: what it holds is nobody's. Raises EtcdError."""
        self.claims.give_everything_back(self._view)
        self.claims.hold_keys(self._held_keys(), set(), ())
        self.claims.drop_key(self._identity.public_key())

    def is_complete(self) -> bool:
        """Whether etcd has all that makes this node a member."""
        member = self.claims.member
        with self._lock:
            return self._view.knows(member.identity, member.node_id, self._claimed, member.slices)

    def note_losses(self) -> None:
        """Subnets of services here that etcd says are another node's: it took them after somebody had said that this
        node was gone for good. Containers that are there stay, others do not reach them; nobody new comes in."""
        own, state = self.claims.member.identity, self._service.state
        with self._lock:
            lost = {
                cidr: (each.name, self._view.name_of(self._view.slots[cidr].owner))
                for each in list(state.services.values())
                for cidr in each.subnets
                if cidr in self._view.slots and self._view.slots[cidr].owner != own
            }
        state.set_lost(lost.keys())
        which = ", ".join(f"{cidr} of service {name} is {who}'s" for cidr, (name, who) in sorted(lost.items()))
        said = f"other nodes do not reach some containers here, make them anew: the subnet {which}"
        self._note("claims-lost", said if which else "")

    def reconcile(self) -> None:
        """Look after our own claims. Raises EtcdError."""
        state = self._service.state
        used = {cidr: each.name for each in list(state.services.values()) for cidr in each.subnets}
        with self._lock:
            view = self._view.with_slots_alone()
            unsigned = set(self._view.unsigned)
        own = [cidr for cidr, slot in view.slots.items() if slot.owner == self.claims.member.identity]
        busy = [cidr for cidr in own if state.addresses.any_in(ipaddress.ip_network(cidr))]
        self.claims.reconcile(view, used, busy, state.cidrs)
        for cidr in unsigned.intersection(own):
            self.claims.sign(cidr, view.slots[cidr])
        dedicated = [each.name for each in list(state.services.values()) if each.mode == "dedicated"]
        wanted = {hexadecimal(self._identity.dedicated(name).public_key) for name in dedicated}
        kept = {hexadecimal(self._identity.public_key()), hexadecimal(self._claimed)}
        self.claims.hold_keys(self._held_keys(), wanted, kept)

    def _held_keys(self) -> list[str]:
        with self._lock:
            own = self.claims.member.identity
            return [name for name, holder in self._view.holders.items() if holder == own]

    def repair(self) -> None:
        """Claims of this node that another machine has overwritten stand again. Raises EtcdError."""
        with self._lock:
            found = self._view.overwritten(self.claims.member.identity)
        for claim, key, use, instead in found:
            if self.claims.repair(claim, key, use, instead):
                log.warning("claimed %s again, which another machine had overwritten", key)
