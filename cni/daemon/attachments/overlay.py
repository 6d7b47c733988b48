"""The daemon's service: the operations that both sockets request, composed of the deciders and the kernel.

It is the `Overlay` of `cni/verbs.py` for zlayer-cni's own daemon; the overlay socket calls the same methods.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from cni import naming
from cni.answers import WireGuard
from cni.daemon.attachments import check as checking
from cni.daemon.attachments.attach import Attacher, AttachRequest
from cni.daemon.attachments.segments import Segments
from cni.daemon.attachments.service_limits import Rate
from cni.daemon.fence.controller import FenceController
from cni.daemon.fence.from_records import on_the_hosts_networks
from cni.daemon.model import sizes
from cni.daemon.model.records import Attachment, AttachmentKey, StaticRoute
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.reconcile.node_addresses import OwnAddresses
from cni.daemon.reconcile.node_settings import NodeSettings
from cni.daemon.reconcile.ranges import Ranges
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.errors import (
    CheckFailed,
    CleanupFailed,
    CniError,
    InvalidConfig,
    NotAvailable,
    NotAvailableLimited,
    PoolExhausted,
    TryAgainLater,
)
from cni.host import netns
from cni.host.kernel import Kernel
from cni.host.ports import ContainerView, Sought
from cni.host.worker import Crew
from cni.netconf.environment import Call
from cni.netconf.intent import Intent
from cni.netconf.types import DNS, Result
from cni.problems import Problem
from cni.verbs import AttachCall, Attached, Target

log = logging.getLogger(__name__)

ROOM = 32 << 10  # bytes that the records of one more attachment may take
DYING = 0.5  # seconds: the kernel removes the links of a network namespace some 40 ms after it was destroyed


class Mesh(Protocol):
    """The part of the node's mesh that the service uses (mesh.py)."""

    def describe(self) -> WireGuard: ...


class OverlayService:
    """One node's overlay. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        state: State,
        kernel: Kernel,
        barrier: FenceController,
        *,
        alone: Callable[[], bool] = lambda: True,
        board: ProblemBoard | None = None,
        own: OwnAddresses | None = None,
        ranges: Ranges | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.started = time.monotonic()
        self.board = board or ProblemBoard()
        self.crew = crew or Crew()
        self._alone = alone
        self.own = own or OwnAddresses(state, kernel, alone)
        self.ranges = ranges or Ranges(state, kernel, self.own, self.board)
        self.node = NodeSettings(settings, state, kernel, self.own, self.board)
        self.teardown_hooks: list[Callable[[], None]] = []
        self.followers: list[Callable[[Attachment], None]] = []
        """Called with every attachment that CNI made."""
        self.settings = settings
        self.state = state
        self.kernel = kernel
        self.barrier = barrier
        self.services = Segments(state, kernel, barrier, settings.mtu, self.board, may_begin=self.ranges.refuse)
        self.attacher = Attacher(state, kernel, self.services, barrier)
        self.mesh: Mesh | None = None
        self._rate, self._rate_guard = Rate(settings.new_services_per_minute), threading.Lock()

    # --- the CNI verbs (the Overlay of cni/verbs.py) ----------------------------------------------------------------

    def attach(self, asked: AttachCall, wish: Intent, target: Target) -> Attached:
        """ADD: make the attachment. Raises what `Attacher.attach` raises, and InvalidConfig while the node is not in
        service."""
        self.ranges.refuse()
        self._refuse_mtu(wish.mtu)
        call, network = asked.call, asked.conf.name
        request = AttachRequest(
            network=network,
            container=call.container_id,
            ifname=call.ifname,
            netns_fd=target.fd,
            netns=netns.identify_sandbox(target.fd, target.path),
            sandbox=target.path,
            service=wish.service,
            mode=wish.mode,
            host_veth=naming.attachment_veth(network, call.container_id, call.ifname),
            isolation=wish.isolation_network,
            ephemeral=wish.ephemeral,
            mtu=wish.mtu,
            mac=wish.mac,
            addresses=[ipaddress.ip_address(each.address) for each in wish.addresses],
            routes=[StaticRoute(route.dst, route.gw) for route in wish.routes],
            attempt=asked.attempt,
            pod=pod_of(call),
            forbidden=self._forbidden(target, call),
            wanted=asked.wanted,
        )
        attachment = self._attach_within_bounds(request, call.args.get("K8S_POD_NAMESPACE", ""))
        for follower in self.followers:
            follower(attachment)
        return self._attached(attachment)

    def _refuse_mtu(self, mtu: int) -> None:
        """Raises InvalidConfig for an MTU of the network list that is too small for an IP version of the overlay."""
        least = sizes.least(6 in self.state.versions())
        if mtu and mtu < least:
            raise InvalidConfig(f"mtu: {mtu} is below {least}", "each container has an IPv6 address, which needs that")

    def _attach_within_bounds(self, request: AttachRequest, asker: str) -> Attachment:
        """Attach. A new service counts against `asker`'s rate limit, and empty services give their subnets back for it.

        Raises TryAgainLater if `asker` made too many new services in this minute, and what `Attacher.attach` raises.
        """
        new = request.mode != "shared" and request.service not in self.state.services
        if new:
            self._count_new_service(request.service, asker)
            self.services.release_idle(self.settings.idle_services)
        while True:
            try:
                return self.attacher.attach(request)
            except PoolExhausted:
                left = len(self.state.idle_services())
                if not left or not self.services.release_idle(left - 1):
                    raise

    def _count_new_service(self, service: str, asker: str) -> None:
        with self._rate_guard:
            seconds = self._rate.take(asker, time.monotonic())
        if seconds:
            askers = f"the pods of namespace {asker}" if asker else "containers"
            raise TryAgainLater(
                f"service {service} is new, and {askers} brought about {self.settings.new_services_per_minute} within a"
                " minute, which is the most (new_services_per_minute)",
                f"the next one is possible in {seconds:.1f} s",
            )

    def _forbidden(self, target: Target, call: Call) -> frozenset[netns.NetnsId]:
        own = set() if call.override else {self.kernel.own}
        return frozenset(own | {netns.NetnsId(*each) for each in target.forbidden})

    def _attached(self, attachment: Attachment) -> Attached:
        dns = self.settings.dns
        return Attached(
            bridge=attachment.bridge,
            bridge_mac=attachment.bridge_mac,
            host_veth=attachment.host_veth,
            host_mac=attachment.host_mac,
            mac=attachment.mac,
            mtu=attachment.mtu,
            addresses=tuple((held.address, held.gateway) for held in attachment.addresses),
            routes=tuple((route.dst, route.via) for route in attachment.routes),
            dns=DNS(dns.nameservers, dns.domain, dns.search, dns.options),
        )

    def detach(self, network: str, container: str, ifname: str) -> None:
        """DEL: remove the attachment; an unknown one is no error. Raises CleanupFailed."""
        veth = naming.attachment_veth(network, container, ifname)
        self.attacher.detach((network, container, ifname), veth)

    def undo_attempt(self, attempt: str) -> None:
        """Undo the attach of that attempt: its plugin was killed before the runtime had the result. Never raises."""
        for attachment in self.state.snapshot():
            if attempt and attachment.attempt == attempt:
                name = f"{attachment.ifname} of {attachment.container} on {attachment.network}"
                try:
                    if self.attacher.release(attachment):
                        log.info("%s: its plugin was killed, so the attach is undone", name)
                except (CniError, OSError) as error:
                    log.warning("%s: its plugin was killed, and the attach could not be undone: %s", name, error)

    def check(self, call: Call, network: str, previous: Result, target: Target) -> None:
        """CHECK: compare the attachment; reads only. Raises CheckFailed with every difference."""
        key = (network, call.container_id, call.ifname)
        differences = self._differences(key, previous, target)
        if differences:
            # Another call may have been changing the attachment: read it again under its lock (conformance C7).
            with self.attacher.locked(key):
                differences = self._differences(key, previous, target)
        if differences:
            raise CheckFailed(f"{call.ifname} of {call.container_id}: {differences[0]}", "; ".join(differences[1:]))

    def _differences(self, key: AttachmentKey, previous: Result, target: Target) -> list[str]:
        attachment = self.state.attachments.get(key)
        if attachment is None:
            return [f"there is no such attachment on network {key[0]}"]
        sought = checking.sought(attachment, previous, target.path)
        return checking.differences(attachment, previous, target.path, self._observe(attachment, target, sought))

    def _observe(self, attachment: Attachment, target: Target, sought: Sought) -> checking.Observed:
        identity_now = netns.identify_sandbox(target.fd, target.path)
        bridge = self.kernel.find(attachment.bridge)
        addresses = self.kernel.addresses(bridge.index) if bridge is not None else []
        same = identity_now == attachment.netns
        return checking.Observed(
            host=self.kernel.find(attachment.host_veth),
            bridge=bridge,
            gateways=frozenset(str(address.ip) for address in addresses),
            inside=self.kernel.inspect(target.fd, attachment.ifname, sought) if same else ContainerView(None),
            netns=identity_now,
            stopped=tuple(self.node.stopped(attachment.bridge).values()),
            unfenced=(*self.barrier.faults(), *self.barrier.missing(attachment)),
        )

    def collect(self, network: str, valid: set[tuple[str, str]] | None) -> list[str]:
        """GC (conformance G1 to G8): release the attachments of `network` that `valid` does not list and whose
        interface is gone. Returns a note for each unlisted attachment, released or kept.

        `valid`: (container, ifname) pairs; None releases nothing. An unlisted attachment whose interface exists is
        kept: another runtime may have it, and an address in use must not be given out again. Raises CleanupFailed.
        """
        if valid is None:
            return []
        unlisted = [a for a in self.state.snapshot() if a.network == network and (a.container, a.ifname) not in valid]
        notes: list[str] = []
        failures: list[str] = []
        end = time.monotonic() + DYING
        for attachment in unlisted:
            name = f"{attachment.ifname} of {attachment.container}"
            try:
                while not self.attacher.release_dead(attachment):
                    if time.monotonic() > end:
                        notes.append(f"GC: {name} is not listed but alive, kept")
                        break
                    time.sleep(0.02)
                else:
                    notes.append(f"GC: {name} released {', '.join(attachment.ips)}")
            except (CniError, OSError) as error:
                log.error("GC of %s: %s", name, error)
                failures.append(f"{name}: {error}")
        if failures:
            raise CleanupFailed(f"GC could not release {len(failures)} attachments of {network}", "; ".join(failures))
        return notes

    def ready(self, service: str, mode: str) -> list[str]:
        """STATUS: the problems of mesh and cluster, which do not affect containers on this node. Raises NotAvailable
        (50) or NotAvailableLimited (51) if an ADD would fail now."""
        if self.ranges.refusal:
            raise NotAvailable("the node is not in service", self.ranges.refusal)
        faults = self.barrier.faults()
        if faults:
            raise NotAvailableLimited(f"the isolation fence is not in force: {faults[0]}", "; ".join(faults[1:]))
        stopped = list(self.node.stopped().values())
        if stopped:
            raise NotAvailableLimited(stopped[0], "; ".join(stopped[1:]))
        if no_room(self.settings.run_dir):
            raise NotAvailable(f"the disk with {self.settings.run_dir} is full", "no record can be written there")
        try:
            self.state.check_slots()
        except InvalidConfig as error:
            raise NotAvailable(f"service {service} can have no subnet", error.details or error.msg) from error
        segment = naming.SHARED_BRIDGE_KEY if mode == "shared" else service
        if not self.state.has_room(segment) and not self.state.idle_services():
            raise NotAvailable(f"service {service} has no free IP address", "the cluster's subnets are all taken")
        return [problem.text for problem in self.board.problems() if problem.kind().area in ("mesh", "cluster")]

    def change_node(self, **changes: object) -> None:
        """Apply an agent's changes to this node's record, addresses and tables. Raises InvalidConfig."""
        before, addresses = self.state.node, self.state.node_addresses()
        after = self.state.update_node(**changes)
        if self.ranges.refusal:
            self.ranges.reconsider()
        elif (before.cidrs, addresses) != (after.cidrs, self.state.node_addresses()):
            self._apply_node()

    def problems(self) -> list[Problem]:
        """The problems of the node now."""
        self._note_conditions()
        return self.board.problems()

    def _note_conditions(self) -> None:
        """Update the problems whose conditions are only read on request."""
        note = self.board.set
        shared = "another zlayer-cni daemon works in this network namespace: they share tables and bridges"
        note("second-daemon", "", "" if self._alone() else shared)
        trouble = "" if self.ranges.refusal else self.barrier.trouble()
        note("fence-not-in-force", "", trouble and f"the isolation fence is not in force: {trouble}")
        self.node.note(serving=not self.ranges.refusal)
        self.note_repairs()

    def tear_down(self) -> None:
        """Remove the whole data path: attachments, bridges, tables. Only `uninstall` calls it."""
        for hook in self.teardown_hooks:
            hook()
        for attachment in self.state.snapshot():
            try:
                self.attacher.detach(attachment.key)
            except CniError as error:
                log.error("%s of %s: %s", attachment.ifname, attachment.container, error)
        for name in [name for name in self.state.services if name != naming.SHARED_BRIDGE_KEY]:
            self.services.teardown(name)
        self.services.teardown_shared()
        self.own.remove_all()
        self.barrier.unload()

    def remove_data_path(self) -> None:
        """Remove an earlier daemon's bridges, addresses and tables, which would disturb the host: no container is
        attached. The records stay. Raises OSError, CniError."""
        for service in list(self.state.services.values()):
            link = self.kernel.find(service.bridge) if service.subnets else None
            if link is not None and link.kind == "bridge":
                self.kernel.remove_link(service.bridge)
        self.own.remove_all()
        self.barrier.unload()

    # --- start ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Apply the records to the kernel. Raises CniError, OSError if the node cannot serve."""
        self.barrier.begin()
        self._apply_node()
        self.services.restore()

    def note_repairs(self) -> None:
        """Update the problems about repairs of the fence's tables."""
        self.board.set("fence-repaired", "", self.barrier.repaired())
        self.board.set_all("member-refused", self.barrier.refused())

    def repair_node(self) -> None:
        """Restore the node's settings and addresses; a failure becomes a problem. Update the problems about the fence
        and about other firewalls. Never raises."""
        self.node.repair()
        self.note_repairs()
        self.look_for_obstacles()

    def apply_ranges(self) -> bool:
        """Apply the host's current networks: the fence excepts those in the overlay's ranges, and subnets in them are
        released with their last container. Returns whether the networks changed. Raises OSError, CniError."""
        self.node.keep_advertisements()
        before = self.state.connected, self.ranges.inside()
        if on_the_hosts_networks(self.ranges.networks(), self.state.cidrs) != self.state.connected:
            self.barrier.load()
        self.services.vacate()
        return before != (self.state.connected, self.ranges.inside())

    def look_for_obstacles(self) -> None:
        """Find other firewalls that drop forwarded traffic of containers: open iptables' FORWARD for the overlay, and
        note the nftables chains of other programs as problems. Never raises."""
        with self.board.step("look-incomplete", "firewalls", "the host's firewalls could not be read"):
            self._note_obstacles()

    def _note_obstacles(self) -> None:
        denial = self.barrier.open_forwarding()
        self.board.set("forward-denied-iptables", "", denial and f"iptables' FORWARD: {denial}")
        self.board.set_all(
            "forward-denied-nftables",
            {
                chain: f"the nftables chain {chain} of another program drops by policy; allow the overlay's range there"
                for chain in self.barrier.foreign()
            },
        )

    def _apply_node(self) -> None:
        """Apply forwarding, the node's own addresses and the tables, which services and attachments need."""
        self.node.repair()
        self.barrier.load()
        self.look_for_obstacles()


def no_room(run_dir: str) -> bool:
    """Whether the disk with `run_dir` has no room for the records of one more attachment: an ADD would fail with an I/O
    error (5)."""
    try:
        disk = os.statvfs(run_dir)
    except OSError:
        return False  # the directory was deleted, and the daemon restores it
    return disk.f_blocks > 0 and disk.f_bfree * disk.f_frsize < ROOM  # a tmpfs without a limit counts no blocks


def pod_of(call: Call) -> str:
    """namespace/name of the pod, for display; empty if the runtime does not pass it."""
    name = call.args.get("K8S_POD_NAME", "")
    return f"{call.args.get('K8S_POD_NAMESPACE', '')}/{name}" if name else ""
