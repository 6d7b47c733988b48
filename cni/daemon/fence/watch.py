"""Puts right at once what others change of what isolation and forwarding stand on.

nftables and the kernel's settings announce changes by netlink: what is about our tables, about iptables' FORWARD, and
about forwarding is acted on within milliseconds. iptables-legacy announces nothing and is looked at every second. The
keeper's look every ten seconds goes over everything all the same.

Transactions of our own need no look: they are known by their netlink port and by their numbers. A program that changes
the tables again and again costs the daemon no more than `SHARE` of a CPU; it has to be found by its name in the log.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable

from cni.daemon.fence.controller import FenceController
from cni.daemon.fence.model import TABLE
from cni.daemon.fence.repairs import Pace
from cni.errors import CniError
from cni.host import iptables, xtables
from cni.host.netconf import SettingsEar
from cni.host.nft_news import Ear, Interest, News
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

LEGACY = 1.0  # seconds between two looks at iptables-legacy
SHARE, CREDIT = 0.1, 1.0  # of one CPU, and seconds of work that never wait: what one thread may use
PATIENCE = 5.0  # seconds that a repair may take at the daemon's end
FORWARD = frozenset({"FORWARD", iptables.CHAIN})
VERSIONS = (4, 6)


class Watch:
    """Watches for one barrier, in two threads: one hears and puts the tables right, the other runs iptables.

    `forward`: looks at what stands in the way of forwarding, and removes what may be removed. `settings`: puts the
    node's forwarding back. `told`: called after a repair.
    """

    def __init__(
        self,
        barrier: FenceController,
        forward: Callable[[], None],
        settings: Callable[[], None],
        told: Callable[[], None],
        *,
        crew: Crew | None = None,
    ) -> None:
        self._barrier, self._forward, self._settings, self._told = barrier, forward, settings, told
        self._end, self._stop = socket.socketpair()
        self._ended = False
        self._ears: list[tuple[Ear | SettingsEar, Callable[[], None]]] = []
        self._stands_in_the_way = threading.Event()  # something that forwards, or keeps from it, was changed
        made_by = crew or Crew()
        self._workers = [made_by.worker("fence-watch", self._hear), made_by.worker("forward-watch", self._clear)]

    def start(self) -> None:
        """Begin. What the kernel does not announce is left to the keeper's looks, and that is logged."""
        try:
            ear = Ear(Interest(TABLE, FORWARD), self._barrier.portid)
            self._ears.append((ear, lambda: self._heard(ear.read())))
            settings_ear = SettingsEar()
            self._ears.append((settings_ear, lambda: self._switched(settings_ear.read())))
        except OSError as error:
            log.warning("the kernel announces no changes: they are looked for every ten seconds: %s", error)
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        """Hear no more; a repair that is going on is waited for."""
        for worker in self._workers:
            worker.retire()
        self._ended = True
        self._stop.close()
        self._stands_in_the_way.set()
        for worker in self._workers:
            worker.join(PATIENCE)

    # --- what is announced -------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        pace, poll = Pace(SHARE, CREDIT), select.poll()
        for each in (self._end, *(ear for ear, _ in self._ears)):
            poll.register(each, select.POLLIN)
        while True:
            beat(IDLE)
            ready = {fd for fd, _ in poll.poll(IDLE * 1000)}
            beat()
            if self._end.fileno() in ready:
                return
            began = time.thread_time()
            for ear, work in self._ears:
                if ear.fileno() in ready:
                    _step(work)
            pause = pace.worked(time.thread_time() - began)
            beat(pause)
            if pause and select.select([self._end], [], [], pause)[0]:
                return

    def _heard(self, news: News) -> None:
        if news.lost and self._barrier.is_settled():
            return  # what was lost was about changes of our own
        changed = news.ours() and self._barrier.restore(frozenset(news.sets), news.generations, news.by)
        if news.lost and not self._barrier.is_settled():
            changed = self._barrier.load() or changed
        if changed:
            self._told()
        if news.forward or news.hooks or news.lost:
            self._stands_in_the_way.set()

    def _switched(self, links: set[int]) -> None:
        """Forwarding was switched off there; what is on is left alone, so this wakes nothing again."""
        if links:
            self._settings()

    # --- what stands in the way --------------------------------------------------------------------------------------

    def _clear(self) -> None:
        pace, legacy = Pace(SHARE, CREDIT), _legacy()
        while not self._ended:
            beat(LEGACY)
            heard = self._stands_in_the_way.wait(LEGACY)
            self._stands_in_the_way.clear()
            _step(self._barrier.prime)
            if self._ended or (not heard and _legacy() == legacy):
                continue
            began = time.monotonic()
            _step(self._forward)
            legacy = _legacy()
            pause = pace.worked(time.monotonic() - began)
            beat(pause)
            if pause:
                select.select([self._end], [], [], pause)


def _legacy() -> tuple[bytes, ...]:
    return tuple(map(xtables.forward, VERSIONS))


def _step(work: Callable[[], None]) -> None:
    """What cannot be done now is left to the keeper's look."""
    try:
        work()
    except (CniError, OSError) as error:
        log.warning("what was heard of a change could not be acted on: %s", error)
    except Exception:
        log.exception("what was heard of a change could not be acted on")
