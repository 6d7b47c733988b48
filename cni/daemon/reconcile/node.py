"""Reconciles records and kernel: once at start, then periodically.

A new daemon adopts the state of the last one: records without a link, links without a record, bridges, gateways, fence
and settings are compared and repaired in both directions; what is right stays untouched. The periodic comparison
repairs drift, and releases the attachments of containers that a runtime forgot (conformance G9).
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from cni import naming
from cni.daemon.attachments.attach import Attacher
from cni.daemon.attachments.ownership import is_port_of, is_unmarked
from cni.daemon.attachments.routed import routed_end
from cni.daemon.attachments.segment_release import SegmentRelease
from cni.daemon.attachments.segments import Segments
from cni.daemon.events import AttachmentCollected, Events, KernelChanged, Reconciled
from cni.daemon.fence.enforcement import FenceEnforcement
from cni.daemon.fence.from_records import bridges
from cni.daemon.model import macs
from cni.daemon.model.records import Attachment, AttachmentKey
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.reconcile.conditions import NodeConditions
from cni.daemon.state.state import State
from cni.errors import CniError
from cni.host.kernel import Kernel
from cni.host.links import Link
from cni.host.worker import Crew, beat

log = logging.getLogger(__name__)

INTERVAL = 10.0  # seconds between two comparisons; an attachment that is dead at two in a row is released
SETTLE = 0.5  # seconds from the notification of a loss to the comparison
OUR_PORT = re.compile(r"zl-[0-9a-f]{10}-v|veth-[0-9]{1,10}-[sg]")
OUR_BRIDGE = re.compile(r"zl-.+-(b|sh)")


class Reconciler:
    """Reconciles one node, in a thread of its own."""

    def __init__(
        self,
        *,
        state: State,
        kernel: Kernel,
        fence: FenceEnforcement,
        segments: Segments,
        release: SegmentRelease,
        attacher: Attacher,
        conditions: NodeConditions,
        board: ProblemBoard,
        events: Events,
        crew: Crew,
        alone: Callable[[], bool],
        also: Callable[[], None] = lambda: None,
    ) -> None:
        """`alone`: whether no other zlayer-cni daemon works in this network namespace. `also` is called after every
        comparison."""
        self._state, self._kernel, self._fence = state, kernel, fence
        self._segments, self._release_unused, self._attacher = segments, release, attacher
        self._conditions, self._board, self._events, self._crew = conditions, board, events, crew
        self._alone, self._also = alone, also
        self._dead: set[AttachmentKey] = set()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._worker = crew.worker("keeper", self._run)

    def start(self) -> None:
        """Start comparing: every `INTERVAL`, and `SETTLE` seconds after a bridge or an address was removed."""
        self._wake.clear()  # `adopt` has seen what was announced so far
        self._worker.start()

    def stop(self) -> None:
        """Stop: no comparison begins after this; a running one is waited for up to `INTERVAL` seconds."""
        self._worker.retire()
        self._stop.set()
        self._wake.set()
        self._worker.join(INTERVAL)

    def _run(self) -> None:
        while not self._stop.is_set():
            beat(INTERVAL)
            if self._wake.wait(INTERVAL):
                self._stop.wait(SETTLE)  # a removal seldom comes alone
            self._wake.clear()
            if self._stop.is_set():
                return
            self.look()
            with self._step("queue", "queued deletions could not be carried out"):
                self._also()

    def _step(self, subject: str, what: str) -> AbstractContextManager[None]:
        """One step of a comparison: an exception becomes a problem, and the steps after it run."""
        beat()
        return self._board.step("look-incomplete", subject, what)

    def on_kernel_changed(self, change: KernelChanged) -> None:
        """Wake the thread if a bridge of the overlay or an address was removed. Ports are removed all the time, and
        DEL reports those."""
        if change.is_loss and (not change.link or change.link in bridges(self._state.services.values())):
            self._wake.set()

    # --- at start ----------------------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Adopt an earlier daemon's state: undo unfinished attaches, remove links without a record, and leave the rest
        untouched."""
        for attachment in self._state.snapshot():
            if attachment.state != "live":
                self._release(attachment, "was never finished")
        links = self._kernel.all_links()
        self._complete_ports(links)
        self._sweep_strays(links)
        # The earlier daemon may have been killed before it deleted them.
        self._kernel.forget_flows(self._state.left_behind())

    def _complete_ports(self, all_links: list[Link]) -> None:
        """Give ports that an older version made the owner mark and hairpin mode."""
        kernel = self._kernel
        links = {link.name: link for link in all_links}
        for attachment in self._state.snapshot():
            link = links.get(attachment.host_veth)
            if link is None:
                continue
            unmarked = is_unmarked(link, attachment)
            try:
                if unmarked:
                    kernel.mark(link.index, naming.owner_mark(*attachment.key))
                if link.up and link.master and not link.hairpin and (unmarked or _is_its(link, attachment)):
                    kernel.raise_port(link.index)
            except OSError as error:
                log.warning("%s could not be completed as %s's: %s", link.name, "/".join(attachment.key), error)

    def _sweep_strays(self, all_links: list[Link]) -> None:
        """Remove links that this program made (name and MAC follow its rules) and that no record has."""
        state, kernel = self._state, self._kernel
        ports = {attachment.host_veth for attachment in state.snapshot()}
        kept = set(bridges(state.services.values()))
        strays = [
            link
            for link in all_links
            if (is_our_port(link) and link.name not in ports) or (is_our_bridge(link) and link.name not in kept)
        ]
        if not self._alone():
            return
        for link in strays:
            log.warning("removing %s: a %s that no record knows", link.name, link.kind)
            kernel.remove_link(link.name)

    # --- periodically ----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Compare everything once, and repair the differences."""
        names: dict[str, Link] | None = None
        with self._step("links", "the links could not be read"):
            names = {link.name: link for link in self._kernel.all_links()}
        if names is not None:
            with self._step("names", "renamed ports could not be searched for"):
                self._repair_names(names)
            with self._step("bridges", "the bridges could not be compared"):
                self._repair_bridges(names)
            with self._step("routed", "the routed ports could not be compared"):
                self._repair_routed(names)
        with self._step("fence", "the fence could not be compared"):
            if self._fence.load():
                log.warning("the fence differed from the records and was repaired")
        self._conditions.repair()
        with self._step("services", "services could not give back what they need no more"):
            self._release_unused.shrink_all()
            self._release_unused.release_empty(time.monotonic())
        if names is not None:
            with self._step("collection", "dead attachments could not be collected"):
                self._collect(names)
        self._events.publish(Reconciled(complete=not self._board.subjects("look-incomplete")))

    def _repair_names(self, names: dict[str, Link]) -> None:
        """Give renamed ports their name back: the fence admits a port under no other name."""
        state, kernel = self._state, self._kernel
        foreign_veths = {link.mac: link for link in names.values() if link.kind == "veth" and not is_our_port(link)}
        for attachment in state.snapshot():
            link = foreign_veths.get(attachment.host_mac)
            if link is None or attachment.state != "live" or attachment.host_veth in names:
                continue
            if not is_port_of(link, attachment.key, attachment.host_mac):
                continue
            log.warning("%s was renamed to %s: renaming it back", attachment.host_veth, link.name)
            try:
                with self._attacher.locked(attachment.key):
                    if state.attachment(attachment.key) == attachment:
                        kernel.rename_link(link.index, attachment.host_veth)
                        names[attachment.host_veth] = kernel.find(attachment.host_veth) or link
            except OSError as error:
                log.warning("%s could not be renamed: %s", link.name, error)

    def _repair_bridges(self, names: dict[str, Link]) -> None:
        """Rebuild bridges that were deleted or changed, and put their ports on them again."""
        for name in self._segments.broken(names):
            log.warning("bridge %s is gone, down, or lacks its gateway: setting it up again", name)
            self._segments.rebuild(name)
            rebuilt = self._kernel.find(name)
            names |= {name: rebuilt} if rebuilt is not None else {}
        attachments = self._state.snapshot()
        for attachment in attachments:
            if attachment.is_routed:
                continue
            port, bridge = names.get(attachment.host_veth), names.get(attachment.bridge)
            if attachment.state == "live" and port is not None and bridge is not None and _is_its(port, attachment):
                self._repair_port(port, bridge)

    def _repair_routed(self, names: dict[str, Link]) -> None:
        """Give routed ports back what the node lacks for them: an interface that is up and on no bridge, gateways,
        routes, neighbours."""
        kernel = self._kernel
        ends = {
            attachment.host_veth: (port, routed_end(attachment, port.index))
            for attachment in self._state.snapshot()
            if attachment.is_routed and attachment.state == "live"
            if (port := names.get(attachment.host_veth)) is not None and _is_its(port, attachment)
        }
        lacks = kernel.routed_lacks([end for _, end in ends.values()])
        for name, (port, end) in ends.items():
            faults = [*lacks.get(name, ()), *([] if port.up else [f"the host interface {name} is down"])]
            if not faults and not port.master:
                continue
            log.warning("%s: setting it up again", "; ".join(faults) or f"{name} is on a bridge")
            try:
                if port.master:
                    kernel.enslave(port.index, 0)
                kernel.raise_routed(end)
            except OSError as error:
                log.warning("%s could not be repaired: %s", name, error)

    def _repair_port(self, port: Link, bridge: Link) -> None:
        """Put a port back on its bridge, and set it up. A port that was removed meanwhile is left to the next
        comparison."""
        kernel = self._kernel
        try:
            if port.master != bridge.index:
                log.warning("%s is not on its bridge %s: putting it back", port.name, bridge.name)
                kernel.enslave(port.index, bridge.index)
            if not port.up or not port.hairpin:
                log.warning("%s is down, or not in hairpin mode: bringing it up", port.name)
                kernel.raise_port(port.index)
        except OSError as error:
            log.warning("%s could not be repaired: %s", port.name, error)

    def _collect(self, names: dict[str, Link]) -> None:
        """Release attachments that are dead at two comparisons in a row: the link is missing, or the attach never
        finished."""
        records = self._state.snapshot()
        gone = {a.key: a for a in records if a.state != "live" or not _is_its(names.get(a.host_veth), a)}
        for key, attachment in gone.items():
            if key in self._dead:
                self._release(attachment, "has no interface any more")
        self._dead = set(gone) & self._state.attachments.keys()

    def _release(self, attachment: Attachment, why: str) -> None:
        name = f"{attachment.ifname} of {attachment.container} on {attachment.network}"
        try:
            if self._attacher.release_dead(attachment):
                log.info("%s %s: released %s", name, why, ", ".join(assigned.ip for assigned in attachment.addresses))
                self._events.publish(AttachmentCollected(attachment, why))
        except (CniError, OSError) as error:
            log.warning("%s %s, and could not be released: %s", name, why, error)


def _is_its(link: Link | None, attachment: Attachment) -> bool:
    return link is not None and is_port_of(link, attachment.key, attachment.host_mac)


def is_our_port(link: Link) -> bool:
    """Whether a link is the host end of a port of the overlay: the name follows the naming rule, the MAC follows from
    the name."""
    return link.kind == "veth" and bool(OUR_PORT.fullmatch(link.name)) and link.mac == macs.of_host_end(link.name)


def is_our_bridge(link: Link) -> bool:
    """Whether a link is a bridge that this program made. A bridge of ZLayer's daemon has the same name, but a MAC that
    the kernel chose."""
    return link.kind == "bridge" and bool(OUR_BRIDGE.fullmatch(link.name)) and link.mac == macs.of_bridge(link.name)
