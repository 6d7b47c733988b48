"""A MAC that a later plugin of the chain gives to a container's interface becomes its port's.

The fence lets a port speak under one MAC (docs/isolation.md). `tuning` with a `mac`, chained after us, sets another
inside the container, where nobody tells the host, and the container would be cut off. So a new attachment's end is
looked at a few times, ever more seldom, while its chain may still be running. What is another's, or may become
another's, is not taken over: then the port stays closed. Nor is it while a process of a container is there that may
administer the namespace: it may have given itself the MAC.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time

import msgspec

from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.model.records import Attachment, AttachmentKey
from cni.daemon.state.state import boot_clock
from cni.errors import CniError
from cni.host import process
from cni.host.mtu import ContainerNetns
from cni.host.netns import NetnsId
from cni.host.worker import IDLE, beat

log = logging.getLogger(__name__)

FIRST = 0.05  # seconds after the attach; each later look comes after twice the time, so that none is late by more
PATIENCE = 5.0  # seconds that a look may take at the daemon's end
LAST = 6.0  # seconds: a chain is through by then, and from then on who changes a MAC is the container


class MacWatcher:
    """Looks at new attachments, in a thread of its own."""

    def __init__(self, service: OverlayService) -> None:
        self._service = service
        self._due: list[tuple[float, float, AttachmentKey, float]] = []  # when, after how long, who, made when
        self._change = threading.Condition()
        self._ended = False
        self._worker = service.crew.worker("tuned", self._run)

    def start(self) -> None:
        """Begin, with the attachments that an earlier daemon made a moment ago."""
        for attachment in self._service.state.snapshot():
            if boot_clock() - attachment.made_at < LAST:
                self.watch(attachment)
        self._worker.start()

    def stop(self) -> None:
        """No look begins after this; one that is going on is waited for."""
        self._worker.retire()
        with self._change:
            self._ended = True
            self._change.notify()
        self._worker.join(PATIENCE)

    def watch(self, attachment: Attachment) -> None:
        """Look at it from now on, for a while."""
        self._push(FIRST, attachment.key, attachment.made_at)

    def _push(self, seconds: float, key: AttachmentKey, made_at: float) -> None:
        with self._change:
            heapq.heappush(self._due, (time.monotonic() + seconds, seconds, key, made_at))
            self._change.notify()

    def _run(self) -> None:
        while (found := self._next()) is not None:
            beat()
            seconds, key, made_at = found
            try:
                again = self._look(key, made_at)
            except Exception:
                log.exception("a look at the MAC of %s failed", "/".join(key))
                again = False
            if again and seconds * 2 < LAST:
                self._push(seconds * 2, key, made_at)

    def _next(self) -> tuple[float, AttachmentKey, float] | None:
        """Whose turn it is, when it is; None at the end."""
        with self._change:
            while not self._ended:
                beat(IDLE)
                now = time.monotonic()
                if self._due and self._due[0][0] <= now:
                    return heapq.heappop(self._due)[1:]
                self._change.wait(min(self._due[0][0] - now, IDLE) if self._due else IDLE)
        return None

    def _look(self, key: AttachmentKey, made_at: float) -> bool:
        """Make the port's MAC what the container's end has; whether another look is worth while."""
        attachment = self._service.state.attachments.get(key)
        if attachment is None or attachment.state != "live" or attachment.made_at != made_at:
            return False
        host = self._service.kernel.find(attachment.host_veth)
        if host is None:
            return False
        try:
            with ContainerNetns(attachment.sandbox, NetnsId(*attachment.netns)) as inside:
                end = inside.end_of(host)
        except OSError:
            return False  # It is gone, or where we cannot look.
        if end is not None and end.mac != attachment.mac:
            if process.has_administrator(NetnsId(*attachment.netns)):
                log.warning("%s has given itself the MAC %s: its port stays closed for it", "/".join(key), end.mac)
                return False
            self._take_over(attachment, end.mac)
        return end is not None

    def _take_over(self, attachment: Attachment, mac: str) -> None:
        who = f"{attachment.ifname} of {attachment.container}"
        try:
            self._service.attacher.revise(attachment, lambda: self._with_mac(attachment, mac))
        except (CniError, OSError) as error:
            log.warning("%s has the MAC %s now, and its port stays closed for it: %s", who, mac, error)
        else:
            log.info("%s has the MAC %s now, and so has its port", who, mac)

    def _with_mac(self, attachment: Attachment, mac: str) -> Attachment:
        """The fence changed over. Raises CniError, with the port as it was or closed."""
        service = self._service
        service.state.check_mac(mac, attachment)
        service.barrier.remove_port(attachment)
        changed = msgspec.structs.replace(attachment, mac=mac)
        try:
            service.barrier.add_port(changed)
        except CniError:
            service.barrier.add_port(attachment)
            raise
        bridge = service.kernel.find(attachment.bridge)
        if bridge is not None:
            for held in attachment.addresses:
                service.kernel.forget_neighbour(bridge.index, held.ip)
        return changed
