"""The `Overlay` of `cni/verbs.py` for zlayer-cni's own daemon: CNI verbs as calls on the deciders and the kernel."""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cni import naming
from cni.daemon.attachments import check as checking
from cni.daemon.attachments.admission import Admission
from cni.daemon.attachments.attach import Attacher
from cni.daemon.attachments.request import AttachRequest
from cni.daemon.attachments.routed import routed_end
from cni.daemon.fence.status import FenceStatus
from cni.daemon.model import sizes
from cni.daemon.model.records import Attachment, AttachmentKey, StaticRoute
from cni.daemon.node.node_settings import NodeSettings
from cni.daemon.node.ranges import Ranges
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.errors import (
    CheckFailed,
    CleanupFailed,
    CniError,
    InvalidConfig,
    NotAvailable,
    NotAvailableLimited,
)
from cni.host import netns, rights
from cni.host.kernel import Kernel
from cni.host.ports import ContainerView, Sought
from cni.netconf.environment import Call
from cni.netconf.intent import Intent
from cni.netconf.policy import ClusterWords
from cni.netconf.types import DNS, Result
from cni.problems import Problem
from cni.verbs import AttachCall, Attached, Recorded, Target, pod_of

if TYPE_CHECKING:
    from cni.daemon.kubernetes.directory import ClusterDirectory  # it imports http.client, for 30 ms

log = logging.getLogger(__name__)

ROOM = 32 << 10  # bytes that the records of one more attachment may take
DYING = 0.5  # seconds: the kernel removes the links of a network namespace some 40 ms after it was destroyed


DnsOffer = tuple[tuple[str, ...], tuple[str, ...]]
"""The addresses of a resolver, and search domains."""


class NodeOverlay:
    """The overlay of one node. Thread-safe."""

    def __init__(
        self,
        *,
        settings: Settings,
        state: State,
        kernel: Kernel,
        fence: FenceStatus,
        ranges: Ranges,
        node_settings: NodeSettings,
        board: ProblemBoard,
        attacher: Attacher,
        admission: Admission,
        resolver: Callable[[], DnsOffer],
        directory: ClusterDirectory | None,
    ) -> None:
        """`resolver`: the addresses at which the node's DNS server answers now, and its search domains. `directory`:
        None outside a cluster of Kubernetes."""
        self._settings, self._state, self._kernel, self._fence = settings, state, kernel, fence
        self._ranges, self._node_settings, self._board = ranges, node_settings, board
        self._attacher, self._admission, self._resolver = attacher, admission, resolver
        self._directory = directory

    def cluster_words(self, call: Call, has_annotations: bool) -> ClusterWords:
        """What the cluster says of the pod of a call. Raises TryAgainLater for a pod that is unknown yet."""
        return ClusterWords() if self._directory is None else self._directory.words(call, has_annotations)

    def attach(self, asked: AttachCall, wish: Intent, target: Target) -> Attached:
        """ADD: make the attachment. Raises what `Admission.attach` raises."""
        self._ranges.refuse()
        self._node_settings.refuse()
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
            addresses=[ipaddress.ip_address(requested.address) for requested in wish.addresses],
            routes=[StaticRoute(route.dst, route.gw) for route in wish.routes],
            attempt=asked.attempt,
            pod=pod_of(call),
            pod_uid=call.args.get("K8S_POD_UID", ""),
            aliases=wish.aliases,
            labels=wish.labels,
            attach=wish.attach,
            opens=wish.opens,
            forbidden=self._forbidden(target, call),
            asker=call.args.get("K8S_POD_NAMESPACE", ""),
            caller_waits=asked.caller_waits,
        )
        by_kubernetes = "K8S_POD_NAMESPACE" in call.args
        return self._attached(self._admission.attach(request), by_kubernetes)

    def _refuse_mtu(self, mtu: int) -> None:
        """Raises InvalidConfig for an MTU of the network list that is too small for an IP version of the overlay."""
        least = sizes.least(6 in self._state.versions())
        if mtu and mtu < least:
            raise InvalidConfig(f"mtu: {mtu} is below {least}", "each container has an IPv6 address, which needs that")

    def _forbidden(self, target: Target, call: Call) -> frozenset[netns.NetnsId]:
        own = set() if call.override else {self._kernel.own}
        return frozenset(own | {netns.NetnsId(*dev_and_ino) for dev_and_ino in target.forbidden})

    def _attached(self, attachment: Attachment, by_kubernetes: bool) -> Attached:
        return Attached(
            bridge="" if attachment.is_routed else attachment.bridge,
            bridge_mac=attachment.bridge_mac,
            host_veth=attachment.host_veth,
            host_mac=attachment.host_mac,
            mac=attachment.mac,
            mtu=attachment.mtu,
            addresses=tuple((assigned.address, assigned.gateway) for assigned in attachment.addresses),
            routes=tuple((route.dst, route.via) for route in attachment.routes),
            dns=self._dns(by_kubernetes),
        )

    def _dns(self, by_kubernetes: bool) -> DNS:
        """The `dns` of a result whose list and runtime give none: the YAML's, and where that names no server the node's
        own, if it serves. A kubelet writes resolv.conf itself."""
        dns = self._settings.dns
        servers, search = ((), ()) if by_kubernetes else self._resolver()
        if dns.nameservers or not servers:
            return DNS(dns.nameservers, dns.domain, dns.search, dns.options)
        return DNS(servers, dns.domain, dns.search or search, dns.options)

    def detach(self, network: str, container: str, ifname: str) -> Recorded | None:
        """DEL: remove the attachment, and return what was recorded of it; an unknown one is no error. Raises
        CleanupFailed."""
        veth = naming.attachment_veth(network, container, ifname)
        return _recorded(self._attacher.detach((network, container, ifname), veth))

    def undo_attempt(self, attempt: str) -> None:
        """Undo the attach of that attempt: its plugin was killed before the runtime had the result. Never raises."""
        for attachment in self._state.snapshot():
            if attempt and attachment.attempt == attempt:
                name = f"{attachment.ifname} of {attachment.container} on {attachment.network}"
                try:
                    if self._attacher.release(attachment):
                        log.info("%s: its plugin was killed, so the attach is undone", name)
                except (CniError, OSError) as error:
                    log.warning("%s: its plugin was killed, and the attach could not be undone: %s", name, error)

    def check(self, call: Call, network: str, previous: Result, target: Target) -> Recorded | None:
        """CHECK: compare the attachment, and return what is recorded of it; reads only. Raises CheckFailed with every
        difference."""
        key = (network, call.container_id, call.ifname)
        differences = self._differences(key, previous, target)
        if differences:
            # Another call may have been changing the attachment: read it again under its lock (conformance C7).
            with self._attacher.locked(key):
                differences = self._differences(key, previous, target)
        if differences:
            raise CheckFailed(f"{call.ifname} of {call.container_id}: {differences[0]}", "; ".join(differences[1:]))
        return _recorded(self._state.attachment(key))

    def _differences(self, key: AttachmentKey, previous: Result, target: Target) -> list[str]:
        attachment = self._state.attachment(key)
        if attachment is None:
            return [f"there is no such attachment on network {key[0]}"]
        sought = checking.sought(attachment, previous, target.path)
        return checking.differences(attachment, previous, target.path, self._observe(attachment, target, sought))

    def _observe(self, attachment: Attachment, target: Target, sought: Sought) -> checking.Observed:
        identity_now = netns.identify_sandbox(target.fd, target.path)
        host = self._kernel.find(attachment.host_veth)
        bridge = None if attachment.is_routed else self._kernel.find(attachment.bridge)
        addresses = self._kernel.addresses(bridge.index) if bridge is not None else []
        ends = [routed_end(attachment, host.index)] if attachment.is_routed and host is not None else []
        same = identity_now == attachment.netns
        return checking.Observed(
            host=host,
            bridge=bridge,
            gateways=frozenset(str(address.ip) for address in addresses),
            lacks=tuple(self._kernel.routed_lacks(ends).get(attachment.host_veth, ())),
            inside=self._kernel.inspect(target.fd, attachment.ifname, sought) if same else ContainerView(None),
            netns=identity_now,
            stopped=tuple(self._node_settings.stopped(_way_in(attachment)).values()),
            unfenced=(*self._fence.faults(), *self._fence.missing(attachment)),
        )

    def collect(self, network: str, valid: set[tuple[str, str]] | None) -> list[str]:
        """GC (conformance G1 to G8): release the attachments of `network` that `valid` does not list and whose
        interface is gone. Returns a note for each unlisted attachment, released or kept.

        `valid`: (container, ifname) pairs; None releases nothing. An unlisted attachment whose interface exists is
        kept: another runtime may have it, and an address in use must not be given out again. Raises CleanupFailed.
        """
        if valid is None:
            return []
        unlisted = [a for a in self._state.snapshot() if a.network == network and (a.container, a.ifname) not in valid]
        notes: list[str] = []
        failures: list[str] = []
        end = time.monotonic() + DYING
        for attachment in unlisted:
            name = f"{attachment.ifname} of {attachment.container}"
            try:
                while not self._attacher.release_dead(attachment):
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
        """STATUS: the problems that make no ADD fail: of mesh and cluster, and of services. Raises NotAvailable
        (50) or NotAvailableLimited (51) if an ADD would fail now."""
        if self._ranges.refusal:
            raise NotAvailable("the node is not in service", self._ranges.refusal)
        if lacking := rights.refusal():
            raise NotAvailable("no container can be attached", lacking)
        unknown = self._directory.refusal() if self._directory is not None else ""
        if unknown:
            raise NotAvailable("Pods cannot be attached yet", unknown)
        faults = self._fence.faults()
        if faults:
            raise NotAvailableLimited(f"the isolation fence is not in force: {faults[0]}", "; ".join(faults[1:]))
        stopped = list(self._node_settings.stopped().values())
        if stopped:
            raise NotAvailableLimited(stopped[0], "; ".join(stopped[1:]))
        if no_room(self._settings.run_dir):
            raise NotAvailable(f"the disk with {self._settings.run_dir} is full", "no record can be written there")
        try:
            self._state.check_slots()
        except InvalidConfig as error:
            raise NotAvailable(f"service {service} can have no subnet", error.details or error.msg) from error
        segment = naming.SHARED_BRIDGE_KEY if mode == "shared" else service
        if not self._state.has_room(segment) and not self._state.idle_services():
            raise NotAvailable(f"service {service} has no free IP address", "the cluster's subnets are all taken")
        return [problem.text for problem in self._board.problems() if _is_for_status(problem)]


def _way_in(attachment: Attachment) -> str:
    """The link by which the container's packets come in: its bridge, or its own port."""
    return attachment.host_veth if attachment.is_routed else attachment.bridge


def _is_for_status(problem: Problem) -> bool:
    return problem.kind().area in ("mesh", "cluster") or problem.code == "service-same-bridge"


def no_room(run_dir: str) -> bool:
    """Whether the disk with `run_dir` has no room for the records of one more attachment: an ADD would fail with an I/O
    error (5)."""
    try:
        disk = os.statvfs(run_dir)
    except OSError:
        return False  # the directory was deleted, and the daemon restores it
    return disk.f_blocks > 0 and disk.f_bfree * disk.f_frsize < ROOM  # a tmpfs without a limit counts no blocks


def _recorded(attachment: Attachment | None) -> Recorded | None:
    if attachment is None:
        return None
    return Recorded(attachment.pod, attachment.service, attachment.isolation or "", attachment.ips)
