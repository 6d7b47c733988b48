"""Repairs at once what other programs change of the tables and settings that isolation and forwarding depend on.

nftables and the kernel's settings announce changes by netlink. A change to our tables, to iptables' FORWARD or a chain
that FORWARD leads to, or to forwarding is acted on within milliseconds. iptables-legacy announces nothing and is polled
every second. The reconciler, every ten seconds, compares everything all the same.

The daemon's own transactions need no check: they are recognized by their netlink port and their generations. A program
that changes the tables again and again costs the daemon at most `SHARE` of a CPU; the log names that program.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Collection

from cni.daemon.fence.enforcement import FenceEnforcement
from cni.daemon.fence.members import FenceMembers
from cni.daemon.fence.model import TABLE
from cni.daemon.fence.other_firewalls import OtherFirewalls
from cni.daemon.fence.repairs import Pace
from cni.errors import CniError
from cni.host import xtables
from cni.host.netconf import SettingsEar
from cni.host.nft_news import Ear, Interest, News
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

LEGACY = 1.0  # seconds between two polls of iptables-legacy
SHARE, CREDIT = 0.1, 1.0  # the limit of one thread: share of one CPU, and seconds of work that never wait
PATIENCE = 5.0  # seconds that a repair may take at the daemon's shutdown
VERSIONS = (4, 6)


class Watch:
    """Watches over one node's fence, in two threads: one reads the events and repairs the tables, the other runs
    iptables.

    `forward`: checks what blocks forwarding, and removes what may be removed. `settings`: restores the node's
    forwarding. `told`: called after a repair. `versions`: the overlay's IP versions now.
    """

    def __init__(
        self,
        fence: FenceEnforcement,
        members: FenceMembers,
        others: OtherFirewalls,
        *,
        forward: Callable[[], None],
        settings: Callable[[], None],
        told: Callable[[], None],
        versions: Callable[[], Collection[int]],
        crew: Crew,
    ) -> None:
        self._fence, self._members, self._others = fence, members, others
        self._forward, self._settings, self._told = forward, settings, told
        self._versions = versions
        self._end, self._stop = socket.socketpair()
        self._ended = False
        self._sockets: list[tuple[Ear | SettingsEar, Callable[[], None]]] = []
        self._forwarding_changed = threading.Event()  # a rule or chain that permits or denies forwarding was changed
        self._workers = [
            crew.worker("fence-watch", self._run_events),
            crew.worker("forward-watch", self._run_forwarding),
        ]

    def start(self) -> None:
        """Starts both threads. Changes that the kernel does not announce are left to the reconciler, and that is
        logged.
        """
        try:
            ear = Ear(Interest(TABLE, self._others.forward_chains), self._fence.portid)
            self._sockets.append((ear, lambda: self._on_nft_events(ear.read())))
            settings_ear = SettingsEar(self._versions)
            self._sockets.append((settings_ear, lambda: self._on_forwarding_disabled(settings_ear.read())))
        except OSError as error:
            log.warning("the kernel announces no changes: the daemon checks every ten seconds instead: %s", error)
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        """Stops both threads; waits for a repair in progress."""
        for worker in self._workers:
            worker.retire()
        self._ended = True
        self._stop.close()
        self._forwarding_changed.set()
        for worker in self._workers:
            worker.join(PATIENCE)

    # --- what is announced -------------------------------------------------------------------------------------------

    def _run_events(self) -> None:
        pace, poll = Pace(SHARE, CREDIT), select.poll()
        for sock in (self._end, *(ear for ear, _ in self._sockets)):
            poll.register(sock, select.POLLIN)
        while True:
            beat(IDLE)
            ready = {fd for fd, _ in poll.poll(IDLE * 1000)}
            beat()
            if self._end.fileno() in ready:
                return
            began = time.thread_time()
            for ear, work in self._sockets:
                if ear.fileno() in ready:
                    _attempt(work)
            pause = pace.worked(time.thread_time() - began)
            beat(pause)
            if pause and select.select([self._end], [], [], pause)[0]:
                return

    def _on_nft_events(self, news: News) -> None:
        if news.lost and self._fence.is_settled():
            return  # the lost events were about the daemon's own changes
        changed = news.ours() and self._fence.restore(frozenset(news.sets), news.generations, news.by)
        if news.lost and not self._fence.is_settled():
            changed = self._fence.load() or changed
        if changed:
            self._told()
        if news.forward or news.hooks or news.lost:
            self._forwarding_changed.set()

    def _on_forwarding_disabled(self, links: set[int]) -> None:
        """Forwarding was switched off on these links. Links where it is on are left alone, so the repair causes no new
        event.
        """
        if links:
            self._settings()

    # --- what blocks forwarding --------------------------------------------------------------------------------------

    def _run_forwarding(self) -> None:
        pace, legacy = Pace(SHARE, CREDIT), _legacy()
        while not self._ended:
            beat(LEGACY)
            announced = self._forwarding_changed.wait(LEGACY)
            self._forwarding_changed.clear()
            _attempt(self._fence.prime)
            _attempt(self._members.follow)
            if self._ended or (not announced and _legacy() == legacy):
                continue
            began = time.monotonic()
            _attempt(self._forward)
            legacy = _legacy()
            pause = pace.worked(time.monotonic() - began)
            beat(pause)
            if pause:
                select.select([self._end], [], [], pause)


def _legacy() -> tuple[bytes, ...]:
    return tuple(map(xtables.forward, VERSIONS))


def _attempt(work: Callable[[], None]) -> None:
    """What fails now is left to the reconciler."""
    try:
        work()
    except (CniError, OSError) as error:
        log.warning("an announced change could not be repaired at once: %s", error)
    except Exception:
        log.exception("an announced change could not be repaired at once")
