"""Adopts a MAC that a later plugin of the CNI chain sets on a container's interface as the MAC of its port.

The fence admits one source MAC for each port (docs/isolation.md). The plugin `tuning` with a `mac`, chained after
zlayer-cni, sets another MAC inside the container, and the container would be cut off. So the watcher compares the MAC
of a new attachment's container end with the port's whenever the kernel announces a change of it, while the chain may
still be running. A MAC that another attachment has, or may get, is not adopted: the port stays closed. A MAC is not
adopted either while a process in the container's namespace may administer the namespace: the container may have set the
MAC itself.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import select
import socket
import threading
import time

import msgspec

from cni.daemon.attachments.attach import Attacher
from cni.daemon.attachments.routed import gateway_end
from cni.daemon.events import AttachmentGone, AttachmentLive
from cni.daemon.fence.members import FenceMembers
from cni.daemon.model.records import Attachment
from cni.daemon.reconcile.mac_watches import MacWatches, Watched
from cni.daemon.state.state import State, boot_clock
from cni.errors import CniError
from cni.host import process
from cni.host.kernel import Kernel
from cni.host.links import Link
from cni.host.mtu import ContainerNetns
from cni.host.netns import NetnsId
from cni.host.port_news import PortNews
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

FIRST = 0.05  # seconds from the attach to the first check without notifications; each interval is twice the one before
PATIENCE = 5.0  # seconds that a running check may take when the daemon ends
LAST = 6.0  # seconds after the attach: the chain has ended by then, and a later MAC change is the container's own
GATHER, FLOODED = 0.005, 0.05  # seconds to the next look at the notifications, also if some were lost


class MacWatcher:
    """Compares the MACs of new attachments, in a thread of its own, for `LAST` seconds after the attach: whenever the
    kernel announces a change of the container's end, and all of them if announcements were lost. Where the kernel does
    not announce changes in other namespaces, the comparisons are made at doubling intervals."""

    def __init__(self, state: State, kernel: Kernel, fence: FenceMembers, attacher: Attacher, crew: Crew) -> None:
        self._state, self._kernel, self._fence, self._attacher = state, kernel, fence, attacher
        self._guard = threading.Lock()
        self._watches = MacWatches()  # with the interval 0: to be registered; LAST: the end of the watch
        self._news: PortNews | None = None  # open while an attachment is watched
        self._refused = self._ended = False
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._worker = crew.worker("tuned", self._run)

    def start(self) -> None:
        """Start the thread; attachments that an earlier daemon made less than `LAST` seconds ago are watched too."""
        for attachment in self._state.snapshot():
            if boot_clock() - attachment.made_at < LAST:
                self._push(FIRST, (attachment.key, attachment.made_at))
        self._worker.start()

    def stop(self) -> None:
        """Stop the thread: no check begins after this; a running one is waited for up to `PATIENCE` seconds."""
        self._worker.retire()
        self._ended = True
        self._notify()
        self._worker.join(PATIENCE)

    def on_attached(self, event: AttachmentLive) -> None:
        """Watch the attachment's MAC from now on, for about `LAST` seconds. Notifications are received from here on:
        the next plugin of the chain starts after the caller has answered."""
        with self._guard:
            opened = self._open()
            watched = event.attachment.key, event.attachment.made_at
            if self._news is None or event.end is None:
                self._watches.push(time.monotonic(), 0.0, watched)
            else:
                self._watches.push(time.monotonic() + LAST, LAST, watched)
                self._watches.listen(event.end, watched)
        if opened or event.end is None:
            self._notify()

    def on_detached(self, event: AttachmentGone) -> None:
        """Drop the checks of the attachment."""
        self._forget((event.attachment.key, event.attachment.made_at))

    def _open(self) -> bool:
        """Whether the thread must be woken for the socket: it is new, or there can be none."""
        if self._news is None and not self._refused:
            try:
                self._news = PortNews()
            except OSError as error:
                self._refused = True
                log.info("the kernel announces no changes in containers, so their MACs are read: %s", error)
            return True
        return self._refused

    def _push(self, seconds: float, watched: Watched) -> None:
        with self._guard:
            self._watches.push(time.monotonic() + seconds, seconds, watched)

    def _notify(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.send(b"x", socket.MSG_DONTWAIT)

    def _forget(self, watched: Watched) -> None:
        with self._guard:
            self._watches.forget(watched)

    def _run(self) -> None:
        while not self._ended:
            self._wait()
            beat()
            changed = self._news.heard() if self._news is not None else {}
            # Registered before the lookup: an attachment is pushed before its end can change.
            while (due := self._next()) is not None:
                beat()
                self._look(*due)
            with self._guard:
                watched = self._watches.heard(changed)
            for each, mac in watched:
                beat()
                if not self._has(each, mac) and not self._checked(each, confirmed=False):
                    self._forget(each)
            self._close_if_idle()
            if changed is None or changed:
                time.sleep(FLOODED if changed is None else GATHER)

    def _wait(self) -> None:
        """Wait for a notification, a new attachment, or the next check that is due."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        with self._guard:
            if self._news is not None:
                poll.register(self._news, select.POLLIN)
            due = self._watches.next_at()
        left = IDLE if due is None else due - time.monotonic()
        beat(IDLE)
        poll.poll(max(0.0, min(left, IDLE)) * 1000)
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def _next(self) -> tuple[float, Watched] | None:
        """The next check that is due: interval and attachment; None if none is."""
        with self._guard:
            return None if self._ended else self._watches.take(time.monotonic())

    def _look(self, seconds: float, watched: Watched) -> None:
        if not seconds:
            self._register(watched)
        elif seconds == LAST or not self._checked(watched, confirmed=True) or seconds * 2 >= LAST:
            self._forget(watched)
        else:
            self._push(seconds * 2, watched)

    def _register(self, watched: Watched) -> None:
        """Have notifications about the container's end lead to checks, else check at intervals."""
        attachment = self._state.attachment(watched[0])
        host = self._kernel.find(attachment.host_veth) if attachment is not None else None
        if self._news is None or host is None or host.peer_netns < 0:
            self._push(FIRST, watched)
            return
        with self._guard:
            self._watches.listen((host.peer_netns, host.peer), watched)
        self._push(LAST, watched)

    def _close_if_idle(self) -> None:
        """Close the socket while no attachment is watched: containers cannot keep the thread busy then."""
        with self._guard:
            if self._watches.empty() and self._news is not None:
                self._news.close()
                self._news = None
                self._watches.clear()

    def _has(self, watched: Watched, mac: str) -> bool:
        """Whether the port admits that MAC already: most announcements are of other changes of a link."""
        attachment = self._state.attachment(watched[0])
        return attachment is not None and attachment.mac == mac

    def _checked(self, watched: Watched, confirmed: bool) -> bool:
        """`_check`, which may fail; False then."""
        try:
            return self._check(watched, confirmed)
        except Exception:
            log.exception("the check of the MAC of %s failed", "/".join(watched[0]))
            return False

    def _check(self, watched: Watched, confirmed: bool) -> bool:
        """Make the port's MAC that of the container's end. Returns whether another check is useful. `confirmed`: see
        `_adopt`."""
        key, made_at = watched
        attachment = self._state.attachment(key)
        if attachment is None or attachment.state != "live" or attachment.made_at != made_at:
            return False
        host = self._kernel.find(attachment.host_veth)
        if host is None:
            return False
        try:
            with ContainerNetns(attachment.sandbox, NetnsId(*attachment.netns)) as inside:
                end = inside.end_of(host)
                if end is None or end.mac == attachment.mac:
                    return end is not None
                return self._adopt(attachment, host, end, inside.fd, confirmed)
        except OSError:
            return False  # the namespace is gone, or cannot be entered

    def _adopt(self, attachment: Attachment, host: Link, end: Link, netns_fd: int, confirmed: bool) -> bool:
        """Take over the MAC of the container's end, unless the container may have set it. Returns whether another check
        is useful.

        `confirmed`: a process that may administer the namespace is the container's. Right after a change the process
        may be that of a plugin, which set the MAC and is about to end: it is looked for again a moment later.
        """
        if process.has_administrator(NetnsId(*attachment.netns)):
            if not confirmed:
                self._push(FIRST, (attachment.key, attachment.made_at))
                return True
            name = "/".join(attachment.key)
            log.warning("%s has given itself the MAC %s: its port stays closed for it", name, end.mac)
            return False
        if attachment.is_routed:  # the kernel forgot the neighbours of an interface whose MAC changed
            self._kernel.set_gateway(netns_fd, end.index, gateway_end(attachment))
            self._take_over(attachment, end.mac)
            return True
        self._take_over(attachment, end.mac)
        addresses = [ipaddress.ip_address(ip) for ip in attachment.ips]
        self._kernel.announce(host.index, netns_fd, end.name, end.mac, addresses)
        return True

    def _take_over(self, attachment: Attachment, mac: str) -> None:
        name = f"{attachment.ifname} of {attachment.container}"
        try:
            self._attacher.revise(attachment, lambda: self._with_mac(attachment, mac))
        except (CniError, OSError) as error:
            log.warning("%s has the MAC %s now, and its port stays closed for it: %s", name, mac, error)
        else:
            log.info("%s has the MAC %s now, and so has its port", name, mac)

    def _with_mac(self, attachment: Attachment, mac: str) -> Attachment:
        """The attachment with the new MAC, admitted by the fence. Raises CniError; the port is then as before, or
        closed."""
        self._state.check_mac(mac, attachment)
        self._fence.remove_port(attachment)
        changed = msgspec.structs.replace(attachment, mac=mac)
        try:
            self._fence.add_port(changed)
        except CniError:
            self._fence.add_port(attachment)
            raise
        if attachment.is_routed:
            host = self._kernel.find(attachment.host_veth)
            if host is not None:
                self._kernel.set_neighbours(host.index, [ipaddress.ip_address(ip) for ip in attachment.ips], mac)
            return changed
        bridge = self._kernel.find(attachment.bridge)
        if bridge is not None:
            for assigned in attachment.addresses:
                self._kernel.forget_neighbour(bridge.index, assigned.ip)
        return changed
