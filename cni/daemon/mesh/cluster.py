"""This node's part in the cluster: it claims what it needs, says what it is, and follows what the others say.

Three threads: one watches etcd, one keeps the lease and publishes, one carries what was heard to the mesh. None of
them is in anybody's way: while etcd is down the node goes on with what it holds, and only a service that needs a new
subnet must take one of those held in advance. Nobody is taken off a device because etcd was silent: only who is missing
when everything has been read, and stays away for the grace period.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from cni import __version__
from cni.daemon import settings as settings_module
from cni.daemon.books.identity import Identity, Member
from cni.daemon.books.registry import Registry
from cni.daemon.mesh import fleet_view
from cni.daemon.mesh.claims import Claims
from cni.daemon.mesh.departed import Departed, departed, find
from cni.daemon.mesh.endpoints import split_endpoint
from cni.daemon.mesh.etcd import Etcd
from cni.daemon.mesh.etcd_wire import NOT_FOUND, Compacted, Delete, EtcdError, Event, Get, Is, Put, Unreachable
from cni.daemon.mesh.fleet_view import Dedicated, NodeDoc, View
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.service import OverlayService
from cni.errors import CniError, InvalidConfig, TryAgainLater
from cni.host import netns, underlay

log = logging.getLogger(__name__)

GATHER = 0.03  # seconds in which changes are put together before they are published, or carried on
BACKOFF = (0.5, 5.0)  # seconds between two tries to reach etcd, growing
FIRST = 10.0  # seconds that the start waits for etcd, where the node has no id yet
AT_ONCE = 50  # claims in one transaction: etcd takes 128 operations
HOUSEKEEPING = 10.0  # seconds between two looks at our own claims


class Cluster:
    """The node in its cluster. Made only where the YAML has one."""

    def __init__(
        self,
        service: OverlayService,
        identity: Identity,
        registry: Registry,
        mesh: Mesh,
        where: settings_module.Etcd,
    ) -> None:
        self._service, self._identity, self._registry, self._mesh = service, identity, registry, mesh
        self._where = where
        base = f"{where.prefix.rstrip('/')}/{service.settings.deployment}/"
        self._view = View(base)
        self._etcd = Etcd(where)
        self.claims = Claims(self._etcd, self._view.keys, registry, identity.member())
        self._lock = threading.RLock()  # of the view
        self._problems: dict[str, str] = {}
        self._faults: list[str] = []
        self._synced = False
        # Two machines with one key would draw each other's traffic to themselves with every word they say, so this one
        # is silent until its claim and its word stand in etcd.
        self._admitted = False
        self._joined = threading.Event()
        self._stop = threading.Event()
        self._dirty = threading.Event()  # there may be something to publish
        self._news = threading.Event()  # there may be something to carry on
        self._lease = 0
        self._said = b""
        self._key = ""
        self._threads: list[threading.Thread] = []
        self._underlay_seen: list[str] = []
        self._seen_at = -HOUSEKEEPING
        mesh.cluster = self

    # --- from outside ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Before the node is made: know its id and slices, from the last time or from etcd, if that answers."""
        self._restore()
        if self.claims.member.node_id:
            self._become(self.claims.member)
            self._joined.set()
        end = time.monotonic() + FIRST
        while not self._joined.is_set() and time.monotonic() < end:
            try:
                self._join()
            except (EtcdError, CniError) as error:
                self._note("join", f"this node has no part in the cluster yet: {error}")
                time.sleep(BACKOFF[0])

    def start(self) -> None:
        """Follow the cluster from now on."""
        self._service.state.changed = self._dirty.set
        for name, work in (("watch", self._watching), ("lease", self._leasing), ("carry", self._carrying)):
            thread = threading.Thread(target=self._forever, args=(work,), name=f"cluster-{name}", daemon=True)
            self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Follow it no more. The lease is left to the next daemon: this node is not gone."""
        self._stop.set()
        self._dirty.set()
        self._news.set()

    def leave(self) -> None:
        """This node is gone: its word and its claims are taken back, for `uninstall`."""
        self.stop()
        try:
            if self._lease:
                self._etcd.revoke(self._lease)
            self.claims.give_everything_back(self._view)
            self.claims.drop_key(self._identity.public_key())
        except EtcdError as error:
            log.warning("etcd could not be told that this node leaves: %s", error)

    def problems(self) -> list[str]:
        """What is wrong, in words."""
        with self._lock:
            return [*self._problems.values(), *self._faults]

    def nodes(self) -> list[tuple[NodeDoc, float | None]]:
        """The other nodes, with the seconds for which one was not heard of."""
        with self._lock:
            now = time.monotonic()
            return [
                (doc, now - self._view.lost[identity] if identity in self._view.lost else None)
                for identity, doc in self._view.nodes.items()
                if identity != self.claims.member.identity
            ]

    def departed(self) -> list[Departed]:
        """The nodes that hold something in etcd and are not heard of. Raises TryAgainLater."""
        return self._departed()[0]

    def forget(self, word: str) -> Departed:
        """What a departed node holds is nobody's any more. Raises InvalidConfig if it is not one, or has just come
        back; TryAgainLater."""
        gone, items = self._departed()
        who = find(gone, word)
        away = Is(self._view.keys.node(who.identity), "CREATE", 0)
        try:
            for start in range(0, len(who.keys), AT_ONCE):
                keys = who.keys[start : start + AT_ONCE]
                same = [Is(key, "VALUE", items[key]) for key in keys]
                if not self._etcd.transact([away, *same], [Delete(key) for key in keys])[0]:
                    raise InvalidConfig(f"{who.name or who.identity} has just come back, or was forgotten by another")
        except EtcdError as error:
            raise TryAgainLater("etcd cannot be asked", str(error)) from error
        log.warning("forgot node %d (%s), which is gone for good: %d claims", who.node_id, who.identity, len(who.keys))
        return who

    def _departed(self) -> tuple[list[Departed], dict[str, bytes]]:
        base = self._view.keys.base
        try:
            items = {item.key: item.value for item in self._etcd.read(base)[0]}
        except EtcdError as error:
            raise TryAgainLater("etcd cannot be asked", str(error)) from error
        with self._lock:
            names = {identity: doc.name for identity, doc in self._view.nodes.items()}
        return departed(items, self.claims.member.identity, names, base), items

    def _note(self, what: str, words: str) -> None:
        with self._lock:
            if words and self._problems.get(what) != words:
                log.warning("%s", words)
            elif not words and what in self._problems:
                log.info("no longer: %s", self._problems[what])
            if words:
                self._problems[what] = words
            else:
                self._problems.pop(what, None)

    # --- joining -----------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Whom the last daemon knew, so that nobody is forgotten because etcd is down just now."""
        known = self._registry.fleet.all()
        if known:
            with self._lock:
                self._view.nodes.update(known)
            self._admitted = True
            self._carry()

    def _join(self) -> None:
        """Claim id, slices and key. Idempotent. Raises EtcdError, CniError."""
        items, _ = self._etcd.read(self._view.keys.base)
        with self._lock:
            self._view.load(((item.key, item.value) for item in items), time.monotonic())
            view, member = self._view, self.claims.member
        self._claim_key()  # first: whoever has another's key stays out, and must hold nothing
        node_id = self.claims.take_id(self._service.settings.node_id, dict(view.ids))
        slices = []
        for cluster in self._service.state.cidrs:
            range_ = ipaddress.ip_network(cluster)
            before = next((s for s in member.slices if ipaddress.ip_network(s).version == range_.version), None)
            slices.append(self.claims.take_slice(cluster, node_id, view, before))
        fresh = Member(member.identity, node_id, tuple(slices))
        self._identity.keep_member(fresh)
        self.claims.member = fresh
        self._become(fresh)
        self._note("join", "")
        self._joined.set()

    def _become(self, member: Member) -> None:
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
            (self._service.change_node if self._threads else self._service.state.update_node)(**wanted)

    def _claim_key(self) -> None:
        """The node's key is this node's alone; an earlier one is given back. Raises EtcdError."""
        key = self._identity.public_key()
        holder = self.claims.take_key(key)
        if holder != self.claims.member.identity:
            with self._lock:
                who = fleet_view.view_name(self._view, holder)
            self._note(
                "key",
                f"{who} has this node's WireGuard key: one data directory is a copy of the other's; "
                "make a new key on this node (zlayer-cni peer rotate)",
            )
            raise Unreachable("the node's key is another's")
        self._note("key", "")
        if self._key and self._key != key:
            self.claims.drop_key(self._key)
        self._key = key

    # --- the threads -------------------------------------------------------------------------------------------------

    def _forever(self, work: Callable[[], None]) -> None:
        pause = BACKOFF[0]
        while not self._stop.is_set():
            try:
                work()
                pause = BACKOFF[0]
            except EtcdError as error:
                self._note("etcd", f"etcd cannot be asked, and the node goes on with what it holds: {error}")
                self._stop.wait(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, BACKOFF[1])
            except Exception:
                log.exception("the cluster's thread stumbled")
                self._stop.wait(BACKOFF[1])

    def _watching(self) -> None:
        """Read everything, then follow. Comes back only to read everything again."""
        if not self._joined.is_set():
            self._join()
        items, revision = self._etcd.read(self._view.keys.base)
        with self._lock:
            self._view.load(((item.key, item.value) for item in items), time.monotonic())
        self._synced = True
        self._note("etcd", "")
        self._news.set()
        self._dirty.set()
        while not self._stop.is_set():
            try:
                for now, events in self._etcd.watch(self._view.keys.base, revision + 1):
                    self._heard(events)
                    revision = max(revision, now) if events else revision
                    self._note("etcd", "")
                    if self._stop.is_set():
                        return
            except Compacted as error:
                log.info("reading the cluster anew: %s", error)
                return
            except EtcdError:
                self._synced = False
                raise

    def _heard(self, events: list[Event]) -> None:
        own = self._view.keys.node(self.claims.member.identity)
        with self._lock:
            for event in events:
                item = event.item
                if event.gone:
                    self._view.gone(item.key, time.monotonic())
                else:
                    self._view.put(item.key, item.value)
                if item.key == own:
                    self._dirty.set()
        if events:
            self._news.set()

    def _carrying(self) -> None:
        """Bring what was heard to the mesh, much of it at once."""
        self._news.wait(1.0)
        if self._news.is_set():
            self._stop.wait(GATHER)
            self._news.clear()
        elif not self._view.lost:
            return
        if not self._stop.is_set():
            self._carry()

    def _carry(self) -> None:
        if not self._admitted:
            return
        with self._lock:
            if self._synced:
                for doc in self._view.expire(time.monotonic(), self._where.grace):
                    log.warning("node %s (%d) is gone: its tunnels are taken down", doc.name, doc.node_id)
            own = self.claims.member.identity
            fleet, self._faults = fleet_view.fleet(self._view, own, self._identity.public_key(), self._dedicated())
            foreign = self._view.foreign(own)
            docs = {identity: doc for identity, doc in self._view.nodes.items() if identity != own}
        self._service.state.set_foreign(foreign)
        self._mesh.set_fleet(fleet)
        if self._synced:
            before = self._registry.fleet.all()
            changes = {i: d for i, d in docs.items() if before.get(i) != d} | dict.fromkeys(before.keys() - docs.keys())
            if changes:
                self._registry.fleet.apply(changes)

    def _dedicated(self) -> list[str]:
        return [s.name for s in list(self._service.state.services.values()) if s.mode == "dedicated"]

    # --- publishing --------------------------------------------------------------------------------------------------

    def _leasing(self) -> None:
        """Keep the lease, say what this node is, look after its claims."""
        self._joined.wait(1.0)
        if not self._joined.is_set():
            return
        last, alive = 0.0, time.monotonic()
        while not self._stop.is_set():
            if self._key != self._identity.public_key():
                self._claim_key()
            elif self._synced and not self._is_member():
                log.warning("etcd does not know this node's claims: making them again")
                self._join()
                last = 0.0
            self._publish()
            if self._synced and time.monotonic() - last > HOUSEKEEPING:
                self._reconcile()
                last = time.monotonic()
            if self._dirty.wait(max(0.0, min(alive + self._where.lease / 3 - time.monotonic(), HOUSEKEEPING))):
                self._stop.wait(GATHER)
                self._dirty.clear()
            if self._lease and time.monotonic() - alive >= self._where.lease / 3:
                if not self._etcd.keep_alive(self._lease):
                    log.warning("this node's lease has ended: it was not heard of for %d s", self._where.lease)
                    self._lease, self._said = 0, b""
                alive = time.monotonic()

    def _is_member(self) -> bool:
        """Whether etcd has all that makes this node a member."""
        member = self.claims.member
        with self._lock:
            return self._view.knows(member.identity, member.node_id, self._key, member.slices)

    def _publish(self) -> None:
        """What this node is stands in etcd, under its lease. Raises EtcdError."""
        body = msgspec.json.encode(self._document())
        own = self._view.keys.node(self.claims.member.identity)
        if self._lease and body == self._said and self._stands(body):
            return
        if not self._lease:
            self._lease = self._resume(own) or self._etcd.grant(self._where.lease)
        say = [Put(own, body, self._lease)]
        try:
            done, found = self._etcd.transact([Is(own, "LEASE", self._lease)], say, [Get(own)])
            if not done:
                done, found = self._etcd.transact([Is(own, "CREATE", 0)], say, [Get(own)])
        except EtcdError as error:
            if error.code == NOT_FOUND:  # the lease has ended
                self._lease, self._said = 0, b""
            raise
        if not done and found:
            self._lease_is_anothers(found[0].value)
            return
        self._said = body
        self._admitted = True
        self._note("identity", "")
        self._news.set()  # our dedicated devices decide which peers we have

    def _stands(self, body: bytes) -> bool:
        """Whether our word is what the watch has last shown."""
        with self._lock:
            there = self._view.nodes.get(self.claims.member.identity)
            lost = self.claims.member.identity in self._view.lost
            return there is not None and not lost and msgspec.json.encode(there) == body

    def _resume(self, own: str) -> int:
        """The lease under which this very daemon's predecessor spoke, if it lives."""
        _, found = self._etcd.transact([], [Get(own)])
        if found and found[0].lease and self._place_of(found[0].value) == self._place():
            return found[0].lease if self._etcd.keep_alive(found[0].lease) else 0
        return 0

    def _place_of(self, value: bytes) -> str:
        try:
            return msgspec.json.decode(value, type=NodeDoc).place
        except msgspec.DecodeError:
            return ""

    def _lease_is_anothers(self, value: bytes) -> None:
        """Somebody else speaks as this node: its own past, which will be over with its lease, or a copy of it."""
        try:
            other = msgspec.json.decode(value, type=NodeDoc)
            who = f"{other.name} ({', '.join(other.hosts)})"
        except msgspec.DecodeError:
            who = "somebody"
        self._note(
            "identity",
            f"{who} speaks as this node: its lease is not over yet, or one data directory is a copy of the other's; "
            "if it stays so, remove identity.json on one of them",
        )
        self._stop.wait(1.0)
        self._dirty.set()

    def _document(self) -> NodeDoc:
        state = self._service.state
        subnets: list[str] = []
        dedicated = {}
        for each in list(state.services.values()):
            if each.mode == "dedicated":
                own = self._identity.dedicated(each.name)
                dedicated[each.name] = Dedicated(own.public_key, own.port, each.subnets)
            else:
                subnets += each.subnets  # a shared service has none: the shared bridge has
        members: dict[str, set[str]] = {}
        for attachment in state.snapshot():
            if attachment.isolation is not None:
                members.setdefault(attachment.isolation, set()).update(attachment.ips)
        for guest in self._registry.guests.all().values():
            if guest.isolation is not None:
                members.setdefault(guest.isolation, set()).add(guest.held.ip)
        port, hosts = self._reached_at()
        member = self.claims.member
        return NodeDoc(
            identity=member.identity,
            name=socket.gethostname(),
            place=self._place(),
            node_id=member.node_id,
            public_key=self._identity.public_key(),
            port=port,
            hosts=hosts,
            slices=member.slices,
            subnets=tuple(sorted(subnets)),
            dedicated=dedicated,
            members={network: tuple(sorted(found)) for network, found in sorted(members.items())},
            version=__version__,
        )

    def _reached_at(self) -> tuple[int, tuple[str, ...]]:
        """The port and the hosts at which others can call this node."""
        advertised = [split_endpoint(each) for each in self._service.settings.advertise]
        if advertised:
            return advertised[0][1], tuple(host for host, _ in advertised)
        towards_etcd = self._etcd.local_address
        found = [] if not towards_etcd or ipaddress.ip_address(towards_etcd).is_loopback else [towards_etcd]
        found += self._underlay()
        return self._service.state.node.wg_port, tuple(dict.fromkeys(found))

    def _underlay(self) -> list[str]:
        """The underlay's addresses, looked for no more often than our claims: it means to read all routes."""
        if time.monotonic() - self._seen_at >= HOUSEKEEPING:
            self._underlay_seen = [str(address) for address in underlay.addresses()]
            self._seen_at = time.monotonic()
        return self._underlay_seen

    def _place(self) -> str:
        """This machine since its last start, and this daemon's place on it."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        here = f"{boot} {netns.own()} {Path(self._service.settings.run_dir).resolve()}"
        return hashlib.sha256(here.encode()).hexdigest()[:16]

    def _reconcile(self) -> None:
        """Look after our own claims. Raises EtcdError."""
        state = self._service.state
        used = {cidr: each.name for each in list(state.services.values()) for cidr in each.subnets}
        with self._lock:
            view = View(self._view.keys.base)
            view.slots = dict(self._view.slots)
        own = [cidr for cidr, slot in view.slots.items() if slot.owner == self.claims.member.identity]
        busy = [cidr for cidr in own if state.addresses.any_in(ipaddress.ip_network(cidr))]
        self.claims.reconcile(view, used, busy, state.cidrs)
