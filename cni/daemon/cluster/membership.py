"""This node's membership in its cluster: an id, a slice of each range, its key, and the subnets of its services. All
are claimed in etcd and reconciled.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Callable

import msgspec

from cni.daemon.cluster.claims import Claims
from cni.daemon.cluster.reading import as_records, everything
from cni.daemon.cluster.store import ClusterStore, Unreachable
from cni.daemon.cluster.view import ClusterView
from cni.daemon.model.cluster_records import hexadecimal
from cni.daemon.model.records import NodeChanges
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import Settings
from cni.daemon.state.identity import Identity, Member
from cni.daemon.state.state import State

log = logging.getLogger(__name__)


class Membership:
    """The membership of one node. Thread-safe."""

    def __init__(
        self,
        *,
        settings: Settings,
        state: State,
        identity: Identity,
        claims: Claims,
        store: ClusterStore,
        view: ClusterView,
        board: ProblemBoard,
        change_node: Callable[[NodeChanges], None],
    ) -> None:
        """`change_node` changes fields of this node's record, and what follows from them."""
        self._settings, self._state, self._identity, self._claims = settings, state, identity, claims
        self._store, self._view, self._board, self._change_node = store, view, board, change_node
        self._claimed = ""  # the public key that etcd has as this node's
        self.joined = threading.Event()

    def restore(self) -> None:
        """Apply the recorded id and slices, whether etcd answers or not."""
        if self._identity.member().node_id:
            self.apply_member(self._identity.member())
            self.joined.set()

    def join(self) -> None:
        """Claim id, slices and key. Idempotent. Raises StoreError, CniError.

        After the first time the watch keeps the view: a further full read could be older than the watch's last event.
        """
        view, member = self._view, self._identity.member()
        if not self.joined.is_set():
            items, _ = everything(self._store, view.keys.base)
            with view.lock:
                view.load(as_records(items), time.monotonic())
        self.claim_key()  # first: a node with another node's key must not join and must hold no claim
        with view.lock:
            ids, slots = dict(view.ids), view.with_slots_alone()
        node_id = self._claims.take_id(self._settings.node_id, ids)
        slices = []
        for cluster in self._state.cidrs:
            range_ = ipaddress.ip_network(cluster)
            before = next((s for s in member.slices if ipaddress.ip_network(s).version == range_.version), None)
            slices.append(self._claims.take_slice(cluster, node_id, slots, before, self._settings.slice_cidr))
        fresh = msgspec.structs.replace(self._identity.member(), node_id=node_id, slices=tuple(slices))
        self._identity.keep_member(fresh)
        self.apply_member(fresh)
        self._board.clear("not-joined")
        self.joined.set()

    def apply_member(self, member: Member) -> None:
        """Set the node's id and slices."""
        by_family: dict[int, str] = {ipaddress.ip_network(cidr).version: cidr for cidr in member.slices}
        first: int = ipaddress.ip_network(self._state.cidrs[0]).version
        facts: NodeChanges = {
            "node_id": member.node_id,
            "slice_cidr": by_family.get(first),
            "slice_cidr6": by_family.get(10 - first),
        }
        node = self._state.node
        if facts != {key: getattr(node, key) for key in facts}:
            with self._view.lock:
                self._state.set_foreign(self._view.foreign(member.identity))
            self._change_node(facts)

    def claim_key(self) -> None:
        """Claim the node's key, and release the key it had before. Raises StoreError, also if another node has it."""
        key = self._identity.public_key()
        holder = self._claims.take_key(key)
        if holder != self._identity.member().identity:
            with self._view.lock:
                holder_name = self._view.name_of(holder)
            self._board.note(
                "key-in-use",
                "",
                f"{holder_name} has this node's WireGuard key: one data directory is a copy of the other's; "
                "make a new key on this node (zlayer-cni peer rotate)",
            )
            raise Unreachable("another node has claimed this node's key")
        self._board.clear("key-in-use")
        earlier = self._identity.member().public_key
        if earlier and earlier != key:
            self._claims.drop_key(earlier)
        self._claimed = key
        if earlier != key:
            self._identity.keep_member(msgspec.structs.replace(self._identity.member(), public_key=key))

    def claim_next_key(self, key: str) -> None:
        """Claim a key that this node is about to use. Raises StoreError, also if another node has it."""
        holder = self._claims.take_key(key)
        if holder != self._identity.member().identity:
            raise Unreachable(f"{holder} has claimed the new key")

    def has_claimed_its_key(self) -> bool:
        """Whether etcd has the node's present key as its own."""
        return self._claimed == self._identity.public_key()

    def release(self) -> None:
        """Release everything that this node holds, for `uninstall`. Raises StoreError."""
        self._claims.release_all(self._view)
        self._claims.hold_keys(self._held_keys(), set(), ())
        self._claims.drop_key(self._identity.public_key())

    def is_complete(self) -> bool:
        """Whether etcd has this node's id, key and slices."""
        member = self._identity.member()
        with self._view.lock:
            return self._view.knows(member.identity, member.node_id, self._claimed, member.slices)

    def note_losses(self) -> None:
        """Note the subnets of this node's services that another node has claimed, after an operator had released this
        node's claims. Their containers stay, but other nodes do not reach them, and no new container gets an address
        there."""
        own, state = self._identity.member().identity, self._state
        with self._view.lock:
            lost = {
                cidr: (service.name, self._view.name_of(self._view.slots[cidr].owner))
                for service in state.services.values()
                for cidr in service.subnets
                if cidr in self._view.slots and self._view.slots[cidr].owner != own
            }
        state.set_lost(lost.keys())
        subnets = ", ".join(f"{cidr} of service {name} is {owner}'s" for cidr, (name, owner) in sorted(lost.items()))
        text = f"other nodes do not reach some containers here, make them anew: the subnet {subnets}"
        self._board.set("claims-lost", "", text if subnets else "")

    def reconcile(self) -> None:
        """Bring this node's claims in etcd up to date. Raises StoreError."""
        state = self._state
        used = {cidr: service.name for service in state.services.values() for cidr in service.subnets}
        with self._view.lock:
            view = self._view.with_slots_alone()
            unsigned = set(self._view.unsigned)
        own = [cidr for cidr, slot in view.slots.items() if slot.owner == self._identity.member().identity]
        busy = [cidr for cidr in own if state.has_held_address(ipaddress.ip_network(cidr))]
        self._claims.reconcile(view, used, busy, state.service_ranges)
        for cidr in unsigned.intersection(own):
            self._claims.sign(cidr, view.slots[cidr])
        dedicated = [service.name for service in state.services.values() if service.mode == "dedicated"]
        needed = {hexadecimal(self._identity.dedicated(name).public_key) for name in dedicated}
        kept = {hexadecimal(self._identity.public_key()), hexadecimal(self._claimed)}
        self._claims.hold_keys(self._held_keys(), needed, kept)

    def _held_keys(self) -> list[str]:
        with self._view.lock:
            own = self._identity.member().identity
            return [name for name, holder in self._view.holders.items() if holder == own]

    def repair(self) -> None:
        """Restore the claims of this node that another machine has overwritten. Raises StoreError."""
        with self._view.lock:
            overwritten = self._view.overwritten(self._identity.member().identity)
        for claim, key, use, instead in overwritten:
            if self._claims.repair(claim, key, use, instead):
                log.warning("restored the claim %s, which another machine had overwritten", key)
