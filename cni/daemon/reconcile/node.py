"""Keeps records and kernel in agreement: once at start, then again and again.

A new daemon adopts what the last one left: records without a link, links without a record, bridges, gateways, fence,
settings are compared and mended both ways, without touching what is right. The same walk, repeated, is the drift check
and the garbage collection of our own, for runtimes that forget a container (conformance G9).
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from cni import naming
from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.attachments.ownership import is_port_of, is_unmarked
from cni.daemon.fence.controller import bridges
from cni.daemon.model import macs
from cni.daemon.model.records import Attachment, AttachmentKey
from cni.errors import CniError
from cni.host.links import Link
from cni.host.monitor import Monitor, is_loss
from cni.host.worker import beat

log = logging.getLogger(__name__)

INTERVAL = 10.0  # seconds between two looks; what looks dead is released at the second look in a row
SETTLE = 0.5  # seconds between hearing of a loss and looking
OUR_PORT = re.compile(r"zl-[0-9a-f]{10}-v|veth-[0-9]{1,10}-[sg]")
OUR_BRIDGE = re.compile(r"zl-.+-(b|sh)")


class Reconciler:
    """Looks after one service, in a thread of its own."""

    def __init__(
        self, service: OverlayService, alone: Callable[[], bool], also: Callable[[], None] = lambda: None
    ) -> None:
        """`alone` tells whether no other daemon of ours works in this namespace; `also` is done at every look."""
        self._service = service
        self._alone = alone
        self._also = also
        self._dead: set[AttachmentKey] = set()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._monitor: Monitor | None = None
        self._worker = service.crew.worker("keeper", self._run)

    def start(self) -> None:
        """Begin to look: after every interval, and soon after something of ours was taken away."""
        self._monitor = Monitor(self._heard, crew=self._service.crew)
        self._worker.start()

    def stop(self) -> None:
        """No look begins after this; one that is going on is waited for."""
        self._worker.retire()
        self._stop.set()
        self._wake.set()
        if self._monitor is not None:
            self._monitor.close()
        self._worker.join(INTERVAL)

    def _run(self) -> None:
        while not self._stop.is_set():
            beat(INTERVAL)
            if self._wake.wait(INTERVAL):
                self._stop.wait(SETTLE)  # what was taken away is seldom one thing alone
            self._wake.clear()
            if self._stop.is_set():
                return
            self.look()
            with self._step("queue", "what plugins left behind could not be carried out"):
                self._also()

    def _step(self, subject: str, what: str) -> AbstractContextManager[None]:
        """One step of a look: what it raises is a problem, and the steps after it are done all the same."""
        beat()
        return self._service.board.step("look-incomplete", subject, what)

    def _heard(self, kind: int, name: str) -> None:
        """Wake up if a bridge of ours, or an address, has gone. Ports go all the time, and we are told by DEL."""
        if is_loss(kind) and (not name or name in bridges(list(self._service.state.services.values()))):
            self._wake.set()

    # --- at start ----------------------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take over what an earlier daemon left: unfinished work is undone, strays go, the rest stays untouched."""
        for attachment in self._service.state.snapshot():
            if attachment.state != "live":
                self._release(attachment, "was never finished")
        self._mark_ports()
        self._sweep_strays()

    def _mark_ports(self) -> None:
        """A port that an older version made says from now on itself whose it is."""
        kernel = self._service.kernel
        there = {link.name: link for link in kernel.all_links()}
        for attachment in self._service.state.snapshot():
            link = there.get(attachment.host_veth)
            if link is not None and is_unmarked(link, attachment):
                try:
                    kernel.mark(link.index, naming.owner_mark(*attachment.key))
                except OSError as error:
                    log.warning("%s could not be marked as %s's: %s", link.name, "/".join(attachment.key), error)

    def _sweep_strays(self) -> None:
        """Remove links that we signed (name and MAC are of our making) and nobody recorded."""
        state, kernel = self._service.state, self._service.kernel
        ports = {each.host_veth for each in state.snapshot()}
        kept = set(bridges(state.services.values()))
        strays = [
            link
            for link in kernel.all_links()
            if (is_our_port(link) and link.name not in ports) or (is_our_bridge(link) and link.name not in kept)
        ]
        if not self._alone():
            return
        for link in strays:
            log.warning("removing %s: a %s that no record knows", link.name, link.kind)
            kernel.remove_link(link.name)

    # --- again and again -------------------------------------------------------------------------------------------

    def look(self) -> None:
        """One comparison of everything, and what mends it."""
        service = self._service
        names: dict[str, Link] | None = None
        with self._step("links", "the links could not be read"):
            names = {link.name: link for link in service.kernel.all_links()}
        if names is not None:
            with self._step("names", "renamed ports could not be looked for"):
                self._mend_names(names)
            with self._step("bridges", "the bridges could not be compared"):
                self._mend_bridges(names)
        with self._step("fence", "the fence could not be compared"):
            if service.barrier.load():
                log.warning("the fence was not as it should be, and was mended")
        service.mend_node()
        with self._step("services", "services could not give back what they need no more"):
            service.services.shrink_all()
            service.services.give_back_empty(time.monotonic())
        if names is not None:
            with self._step("collection", "dead attachments could not be collected"):
                self._collect(names)

    def _mend_names(self, names: dict[str, Link]) -> None:
        """A port that somebody renamed gets its name back: the fence admits it under no other."""
        state, kernel = self._service.state, self._service.kernel
        strangers = {link.mac: link for link in names.values() if link.kind == "veth" and not is_our_port(link)}
        for attachment in state.snapshot():
            link = strangers.get(attachment.host_mac)
            if link is None or attachment.state != "live" or attachment.host_veth in names:
                continue
            if not is_port_of(link, attachment.key, attachment.host_mac):
                continue
            log.warning("%s was renamed to %s: taking that back", attachment.host_veth, link.name)
            try:
                with self._service.attacher.locked(attachment.key):
                    if state.attachments.get(attachment.key) == attachment:
                        kernel.rename_link(link.index, attachment.host_veth)
                        names[attachment.host_veth] = kernel.find(attachment.host_veth) or link
            except OSError as error:
                log.warning("%s could not be renamed: %s", link.name, error)

    def _mend_bridges(self, names: dict[str, Link]) -> None:
        """A bridge that someone deleted comes back, and ports that fell off it are put on again."""
        service = self._service
        for name in service.services.broken(names):
            log.warning("bridge %s is gone, down, or lacks its gateway: setting it up again", name)
            service.services.rebuild(name)
        for attachment in service.state.snapshot():
            port, bridge = names.get(attachment.host_veth), service.kernel.find(attachment.bridge)
            if attachment.state == "live" and port is not None and bridge is not None and _is_its(port, attachment):
                self._mend_port(port, bridge)

    def _mend_port(self, port: Link, bridge: Link) -> None:
        """Put a port back on its bridge, and up. One that went meanwhile is the next look's business."""
        kernel = self._service.kernel
        try:
            if port.master != bridge.index:
                log.warning("%s is not on its bridge %s: putting it back", port.name, bridge.name)
                kernel.enslave(port.index, bridge.index)
            if not port.up:
                log.warning("%s is down: bringing it up", port.name)
                kernel.raise_port(port.index)
        except OSError as error:
            log.warning("%s could not be mended: %s", port.name, error)

    def _collect(self, names: dict[str, Link]) -> None:
        """Release what was dead at two looks in a row: its link was missing, or it was never finished."""
        records = self._service.state.snapshot()
        gone = {a.key: a for a in records if a.state != "live" or not _is_its(names.get(a.host_veth), a)}
        for key, attachment in gone.items():
            if key in self._dead:
                self._release(attachment, "has no interface any more")
        self._dead = set(gone) - {key for key in gone if key not in self._service.state.attachments}

    def _release(self, attachment: Attachment, why: str) -> None:
        who = f"{attachment.ifname} of {attachment.container} on {attachment.network}"
        try:
            if self._service.attacher.release_dead(attachment):
                log.info("%s %s: released %s", who, why, ", ".join(held.ip for held in attachment.addresses))
        except (CniError, OSError) as error:
            log.warning("%s %s, and could not be released: %s", who, why, error)


def _is_its(link: Link | None, attachment: Attachment) -> bool:
    return link is not None and is_port_of(link, attachment.key, attachment.host_mac)


def is_our_port(link: Link) -> bool:
    """Whether a link is the host's end of a port that we made: the name by our rule, the MAC following from it."""
    return link.kind == "veth" and bool(OUR_PORT.fullmatch(link.name)) and link.mac == macs.of_host_end(link.name)


def is_our_bridge(link: Link) -> bool:
    """Whether a link is a bridge that we made (ZLayer's own has the same name, and a MAC of the kernel's choice)."""
    return link.kind == "bridge" and bool(OUR_BRIDGE.fullmatch(link.name)) and link.mac == macs.of_bridge(link.name)
