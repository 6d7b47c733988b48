"""Adopts a MAC that a later plugin of the CNI chain sets on a container's interface as the MAC of its port.

The fence admits one source MAC for each port (docs/isolation.md). The plugin `tuning` with a `mac`, chained after
zlayer-cni, sets another MAC inside the container; the host gets no notification, and the container would be cut off.
So the watcher compares the MAC of a new attachment's container end several times, at doubling intervals, while the
chain may still be running. A MAC that another attachment has, or may get, is not adopted: the port stays closed. A MAC
is not adopted either while a process in the container's namespace may administer the namespace: the container may have
set the MAC itself.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time

import msgspec

from cni.daemon.attachments.attach import Attacher
from cni.daemon.events import AttachmentGone, AttachmentLive
from cni.daemon.fence.controller import FenceController
from cni.daemon.model.records import Attachment, AttachmentKey
from cni.daemon.state.state import State, boot_clock
from cni.errors import CniError
from cni.host import process
from cni.host.kernel import Kernel
from cni.host.mtu import ContainerNetns
from cni.host.netns import NetnsId
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

FIRST = 0.05  # seconds from the attach to the first check; each interval is twice the one before
PATIENCE = 5.0  # seconds that a running check may take when the daemon ends
LAST = 6.0  # seconds after the attach: the chain has ended by then, and a later MAC change is the container's own


class MacWatcher:
    """Compares the MACs of new attachments, in a thread of its own."""

    def __init__(self, state: State, kernel: Kernel, fence: FenceController, attacher: Attacher, crew: Crew) -> None:
        self._state, self._kernel, self._fence, self._attacher = state, kernel, fence, attacher
        self._due: list[tuple[float, float, AttachmentKey, float]] = []  # due, interval, key, made_at
        self._change = threading.Condition()
        self._ended = False
        self._worker = crew.worker("tuned", self._run)

    def start(self) -> None:
        """Start the thread; attachments that an earlier daemon made less than `LAST` seconds ago are watched too."""
        for attachment in self._state.snapshot():
            if boot_clock() - attachment.made_at < LAST:
                self._watch(attachment)
        self._worker.start()

    def stop(self) -> None:
        """Stop the thread: no check begins after this; a running one is waited for up to `PATIENCE` seconds."""
        self._worker.retire()
        with self._change:
            self._ended = True
            self._change.notify()
        self._worker.join(PATIENCE)

    def on_attached(self, event: AttachmentLive) -> None:
        """Watch the attachment's MAC from now on, for about `LAST` seconds."""
        self._watch(event.attachment)

    def on_detached(self, event: AttachmentGone) -> None:
        """Drop the checks of the attachment."""
        with self._change:
            self._due = [due for due in self._due if due[2] != event.attachment.key]
            heapq.heapify(self._due)

    def _watch(self, attachment: Attachment) -> None:
        self._push(FIRST, attachment.key, attachment.made_at)

    def _push(self, seconds: float, key: AttachmentKey, made_at: float) -> None:
        with self._change:
            heapq.heappush(self._due, (time.monotonic() + seconds, seconds, key, made_at))
            self._change.notify()

    def _run(self) -> None:
        while (due := self._next()) is not None:
            beat()
            seconds, key, made_at = due
            try:
                check_again = self._check(key, made_at)
            except Exception:
                log.exception("the check of the MAC of %s failed", "/".join(key))
                check_again = False
            if check_again and seconds * 2 < LAST:
                self._push(seconds * 2, key, made_at)

    def _next(self) -> tuple[float, AttachmentKey, float] | None:
        """Wait for the next check that is due: interval, key and made_at. None when the daemon ends."""
        with self._change:
            while not self._ended:
                beat(IDLE)
                now = time.monotonic()
                if self._due and self._due[0][0] <= now:
                    return heapq.heappop(self._due)[1:]
                self._change.wait(min(self._due[0][0] - now, IDLE) if self._due else IDLE)
        return None

    def _check(self, key: AttachmentKey, made_at: float) -> bool:
        """Make the port's MAC that of the container's end. Returns whether another check is useful."""
        attachment = self._state.attachments.get(key)
        if attachment is None or attachment.state != "live" or attachment.made_at != made_at:
            return False
        host = self._kernel.find(attachment.host_veth)
        if host is None:
            return False
        try:
            with ContainerNetns(attachment.sandbox, NetnsId(*attachment.netns)) as inside:
                end = inside.end_of(host)
        except OSError:
            return False  # the namespace is gone, or cannot be entered
        if end is not None and end.mac != attachment.mac:
            if process.has_administrator(NetnsId(*attachment.netns)):
                log.warning("%s has given itself the MAC %s: its port stays closed for it", "/".join(key), end.mac)
                return False
            self._take_over(attachment, end.mac)
        return end is not None

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
        bridge = self._kernel.find(attachment.bridge)
        if bridge is not None:
            for held in attachment.addresses:
                self._kernel.forget_neighbour(bridge.index, held.ip)
        return changed
