"""Attach and detach of containers.

An attach decides, saves the intent, applies it to the kernel, commits, and answers. The undo of each step is registered
before the step. Undoing is removing, which is idempotent, so a step that failed half-way is undone like one that
worked.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import msgspec

from cni import attach_rules, naming
from cni.daemon.attachments.ports import Ports
from cni.daemon.attachments.request import AttachRequest, ClientGone
from cni.daemon.attachments.routed import gateway_end, routed_end
from cni.daemon.attachments.segment_release import SegmentRelease
from cni.daemon.attachments.segments import Segments
from cni.daemon.events import AttachmentGone, AttachmentLeaves, AttachmentLive, Events
from cni.daemon.fence.members import FenceMembers
from cni.daemon.model import macs
from cni.daemon.model.records import Attachment, AttachmentKey, Service, StaticRoute
from cni.daemon.node.container_mtu import ContainerMtu
from cni.daemon.state.state import Locks, NeedsSlot, State, boot_clock
from cni.errors import AttachFailed, CleanupFailed, CniError, InvalidNetns, PoolExhausted
from cni.host import links
from cni.host.kernel import Kernel

log = logging.getLogger(__name__)


class Attacher:
    """Attaches and detaches. One lock per attachment serializes an ADD and a DEL of one container."""

    def __init__(
        self,
        *,
        state: State,
        kernel: Kernel,
        fence: FenceMembers,
        segments: Segments,
        release: SegmentRelease,
        ports: Ports,
        container_mtu: ContainerMtu,
        events: Events,
    ) -> None:
        self._state, self._kernel, self._fence = state, kernel, fence
        self._segments, self._release, self._ports = segments, release, ports
        self._container_mtu, self._events = container_mtu, events
        self._locks = Locks()

    # --- attach ----------------------------------------------------------------------------------------------------

    def attach(self, request: AttachRequest) -> Attachment:
        """Make the attachment and return it, live. Repeating an attempt gives the same answer; `ephemeral` of the most
        recent request counts.

        Raises InvalidNetns, InterfaceExists, AddressUnavailable, PoolExhausted, TryAgainLater, FenceFailed,
        AttachFailed; each of them leaves nothing of this attempt behind.
        """
        if request.netns in request.forbidden:
            raise InvalidNetns(
                f"CNI_NETNS: {request.sandbox} is the host's own network namespace", "a container needs one of its own"
            )
        with self._locks.holding(request.key):
            self._state.refuse_port(request.host_veth, request.key)
            if not request.caller_waits():
                raise ClientGone("the runtime gave up before the attach began")
            before = self._state.attachment(request.key)
            try:
                if before is not None and self._is_whole(before, request):
                    if before.attempt and before.attempt == request.attempt:
                        return self._with_ephemeral(before, request.ephemeral)
                    raise attach_rules.already_attached(request.key)
                return self._make(request, before)
            except OSError as error:
                raise attach_rules.attach_failed(request.ifname, request.service, error) from error

    def _is_whole(self, before: Attachment, request: AttachRequest) -> bool:
        """Whether the recorded attachment is complete and in the requested namespace: only then is a second ADD an
        error."""
        return attach_rules.stands(
            before.state,
            before.netns == request.netns,
            lambda: self._ports.exists(before),
            lambda: self._kernel.has_interface(request.netns_fd, request.ifname),
        )

    def _with_ephemeral(self, attachment: Attachment, ephemeral: bool) -> Attachment:
        """The attachment with that `ephemeral`, recorded if it differs. The caller holds the attachment's lock."""
        if attachment.ephemeral == ephemeral:
            return attachment
        changed = msgspec.structs.replace(attachment, ephemeral=ephemeral)
        self._state.save(changed)
        return changed

    def _make(self, request: AttachRequest, before: Attachment | None) -> Attachment:
        if before is not None:
            self._ports.remove(before)
            self._events.publish(AttachmentLeaves(before))
        announced = False
        try:
            intent = self._reserve(request)
            self._fence.add_port(intent)
            done, ends = self._plug(request, intent)
            announced = True
            if not request.caller_waits():
                raise ClientGone("the runtime gave up before the attach was done")
            live = msgspec.structs.replace(done, state="live", created=time.time())
            self._state.save(live)
            self._events.publish(AttachmentLive(live, (ends.netns_id, ends.inside) if ends.netns_id >= 0 else None))
            if before is not None and before.service != live.service:
                self._release.release_unused(before.service, before.mode, before.ephemeral)
        except BaseException:
            self._roll_back(request.key, used=before is not None or announced)
            self._release.release_unused(request.service, request.mode, request.ephemeral)
            raise
        return live

    def _roll_back(self, key: AttachmentKey, used: bool) -> None:
        """Undo the steps of an attach that failed. An attachment that cannot be undone keeps its record, and with it
        its address, for garbage collection to try again."""
        intent = self._state.attachment(key)
        if intent is None:
            return
        try:
            self._ports.remove(intent)
            self._events.publish(AttachmentLeaves(intent))
            self._state.drop(key, used)
            self._events.publish(AttachmentGone(intent))
        except (OSError, CniError):
            log.exception("could not undo the attach of %s; kept for garbage collection", "/".join(key))

    def _reserve(self, request: AttachRequest) -> Attachment:
        """Ensure the service's bridge, and save the intent with its addresses. Twenty attaches to one service wait for
        one another here, so nothing in between may wait for the kernel's lock of links."""
        mtu = request.mtu or self._container_mtu.current()
        with self._segments.holding(request.service, request.mode) as segment:
            service = self._segments.ensure(request.service, request.mode, attach=request.attach)
            return self._with_addresses(self._draft(request, service, mtu), segment, request)

    def _draft(self, request: AttachRequest, service: Service, mtu: int) -> Attachment:
        return Attachment(
            network=request.network,
            container=request.container,
            ifname=request.ifname,
            state="intent",
            service=request.service,
            mode=request.mode,
            isolation=request.isolation,
            bridge=service.bridge,
            attach=service.attach,
            host_veth=request.host_veth,
            host_mac=macs.of_host_end(request.host_veth),
            mac=request.mac,
            addresses=(),
            routes=tuple(request.routes),
            mtu=mtu,
            mtu_chosen=bool(request.mtu),
            netns=(request.netns.dev, request.netns.ino),
            sandbox=request.sandbox,
            made_at=boot_clock(),
            attempt=request.attempt,
            ephemeral=request.ephemeral,
            pid=request.pid,
            start_time=request.start_time,
            pod=request.pod,
            pod_uid=request.pod_uid,
            aliases=request.aliases,
            labels=request.labels,
            asked=bool(request.addresses),
            opens=request.opens,
        )

    def _with_addresses(self, draft: Attachment, segment: str, request: AttachRequest) -> Attachment:
        """Reserve addresses for the intent. If the service's subnets are full, the service gets one more slot."""
        while True:
            try:
                return self._state.reserve(draft, segment, request.addresses)
            except NeedsSlot as full:
                try:
                    self._segments.grow(segment, full.version)
                except PoolExhausted as exhausted:
                    raise self._state.full(segment, full.version) from exhausted

    def _plug(self, request: AttachRequest, intent: Attachment) -> tuple[Attachment, links.PortEnds]:
        """Create the veth, configure the container's end, and set the host end up last."""
        routes = planned_routes(intent)
        bridge = self._bridge_of(intent)
        if not bridge:
            attach_rules.refuse_other_gateways(_assigned(intent), [(route.dst, route.via) for route in routes])
        self._forget_last_owner(intent.ips, bridge)
        port = links.Port(intent.host_veth, intent.host_mac, bridge, intent.mtu, intent.ifname, intent.mac)
        ends = self._ports.create(port, request)
        host, inside = ends.host, ends.inside
        kernel_routes = [
            links.Route(ipaddress.ip_network(route.dst), ipaddress.ip_address(route.via), inside) for route in routes
        ]
        addresses = [ipaddress.ip_interface(assigned.address) for assigned in intent.addresses]
        gateway = None if bridge else gateway_end(intent)
        skipped = self._kernel.configure_inside(
            request.netns_fd, inside, intent.ifname, addresses, kernel_routes, gateway=gateway
        )
        sourced = tuple(route.dst.version for route in skipped if not route.dst.prefixlen)
        if sourced:
            intent = msgspec.structs.replace(intent, sourced=sourced)
            self._state.save(intent)  # the undo removes the rules
            own = [address for address in addresses if address.version in sourced]
            near = gateway.routes(inside) if gateway is not None else []
            self._kernel.route_by_source(request.netns_fd, inside, own, [*near, *kernel_routes])
        kept = tuple(r for r, k in zip(routes, kernel_routes, strict=True) if k not in skipped)
        mark = naming.owner_mark(*intent.key)
        if not bridge:
            self._kernel.raise_routed(routed_end(intent, host), mark)
            return msgspec.structs.replace(intent, routes=kept), ends
        self._kernel.raise_port(host, mark)
        if self._state.had_other_mac(intent.ips, intent.mac):  # a bridge floods an announcement to all of its ports
            ips = [address.ip for address in addresses]
            self._kernel.announce(host, request.netns_fd, intent.ifname, intent.mac, ips)
        return msgspec.structs.replace(intent, routes=kept, bridge_mac=self._kernel.mac_of(intent.bridge)), ends

    def _bridge_of(self, intent: Attachment) -> int:
        """The index of the bridge that the port is put on; 0 for a routed one. Raises AttachFailed."""
        if intent.is_routed:
            return 0
        bridge = self._kernel.index_of(intent.bridge)
        if not bridge:
            raise AttachFailed(f"the bridge {intent.bridge} of service {intent.service} vanished")
        return bridge

    def _forget_last_owner(self, addresses: Sequence[str], bridge: int) -> None:
        """Delete the flows and neighbour entries that the last owners of these addresses left, before the addresses are
        in use again. Those of an address in cooldown are deleted again: packets of other containers may have made more
        of them since."""
        cooling = self._state.in_cooldown(addresses)
        if bridge:
            for address in cooling:
                self._kernel.forget_neighbour(bridge, address)
        self._kernel.forget_flows(cooling)
        self._kernel.finish_flows(addresses)

    # --- detach ----------------------------------------------------------------------------------------------------

    def detach(self, key: AttachmentKey, fallback_veth: str = "") -> Attachment | None:
        """Remove the attachment completely; returns its record, None if there was none.

        Removing the host end removes the container's end as well, wherever that is now. A namespace that is gone, or
        that another container has now, is neither needed nor touched; it is entered only to remove the rules of a
        second interface. `fallback_veth`: the name of the host end if the attachment has no record. Raises
        CleanupFailed; the record is then kept for a retry.
        """
        with self._locks.holding(key):
            attachment = self._state.attachment(key)
            try:
                if attachment is None:
                    if fallback_veth:
                        self._ports.remove_unrecorded(key, fallback_veth)
                    return None
                self._ports.remove(attachment)
                self._events.publish(AttachmentLeaves(attachment))
                self._state.drop(key)
                self._events.publish(AttachmentGone(attachment))
            except OSError as error:
                raise CleanupFailed(f"cannot detach {key[2]} of {key[1]} from {key[0]}: {error}") from error
        self._release.release_unused(attachment.service, attachment.mode, attachment.ephemeral)
        return attachment

    def locked(self, key: AttachmentKey) -> AbstractContextManager[object]:
        """A context that holds the attachment's lock: no other thread attaches, detaches or changes it."""
        return self._locks.holding(key)

    def revise(self, attachment: Attachment, work: Callable[[], Attachment]) -> None:
        """Change a live attachment and its record under its lock, unless the record changed meanwhile."""
        with self._locks.holding(attachment.key):
            if attachment.state == "live" and self._state.attachment(attachment.key) == attachment:
                self._state.save(work())

    def release(self, attachment: Attachment) -> bool:
        """Detach `attachment` unless its record changed meanwhile; False if it was left unchanged."""
        with self._locks.holding(attachment.key):
            unchanged = self._state.attachment(attachment.key) == attachment
            return unchanged and self.detach(attachment.key) is not None

    def release_dead(self, attachment: Attachment) -> bool:
        """Detach `attachment` unless its record changed meanwhile, or it is live and has its link; False if it was left
        unchanged.

        Record and link are read again under the lock: an attachment that another caller has just made under the same
        key is not touched.
        """
        with self._locks.holding(attachment.key):
            current = self._state.attachment(attachment.key)
            alive = current is not None and current.state == "live" and self._ports.exists(current)
            if current != attachment or alive:
                return False
            return self.detach(attachment.key) is not None


def planned_routes(attachment: Attachment) -> list[StaticRoute]:
    """A default route through each family's gateway, then the configured routes; every route has `via`, one route per
    destination."""
    asked = ((route.dst, route.via) for route in attachment.routes)
    return [StaticRoute(dst, via) for dst, via in attach_rules.planned_routes(_assigned(attachment), asked)]


def _assigned(attachment: Attachment) -> list[tuple[str, str]]:
    return [(assigned.address, assigned.gateway) for assigned in attachment.addresses]
