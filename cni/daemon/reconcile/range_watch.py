"""Starts the node when its ranges allow it, and looks at them again when links, addresses or routes change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from cni.daemon.problem_board import ProblemBoard
from cni.daemon.reconcile.ranges import Ranges
from cni.host.monitor import ALL_GROUPS, Monitor
from cni.host.worker import Crew, beat

log = logging.getLogger(__name__)

INTERVAL = 10.0  # seconds between two looks without news: /etc/resolv.conf announces none
SETTLE = 0.03  # seconds from news to a look, so that what comes together is read once
SHARE = 3  # a look is followed by a pause of so many times what it took: a host may have many routes that change often
LONGEST = 2.0  # seconds that such a pause takes at most
PATIENCE = 5.0  # seconds that a look may take at the daemon's end


class RangeWatch:
    """One node's, in a thread of its own."""

    def __init__(
        self,
        ranges: Ranges,
        begin: Callable[[], None],
        stand_down: Callable[[], None],
        changed: Callable[[], None],
        *,
        board: ProblemBoard,
        crew: Crew,
    ) -> None:
        """`begin` starts the node; `stand_down` takes away what an earlier daemon left, where it may not; `changed` is
        called at each look of a node in service."""
        self._board, self._crew = board, crew
        self._ranges, self._begin, self._stand_down, self._changed = ranges, begin, stand_down, changed
        self._serving = False
        self._ended = threading.Event()
        self._wake = ranges.news
        self._monitor: Monitor | None = None
        self._worker = crew.worker("ranges", self._run)

    def start(self) -> None:
        """Decide for the first time: start the node, or leave it out of service. Never raises: what fails is a problem,
        and tried again."""
        self._monitor = Monitor(lambda kind, name: self._wake.set(), ALL_GROUPS, crew=self._crew, name="monitor-ranges")
        if self._may_begin():
            self._begin()
            self._serving = True
        else:
            log.error("the node is not in service: %s", self._ranges.refusal)
            what = "what an earlier daemon left could not be taken away"
            with self._board.step("start-incomplete", "standing down", what):
                self._stand_down()
        self._worker.start()

    def _step(self) -> AbstractContextManager[None]:
        what = "the overlay's ranges could not be compared with the host's networks"
        return self._board.step("look-incomplete", "ranges", what)

    def _may_begin(self) -> bool:
        try:
            return self._ranges.decide()
        except OSError as error:
            # Containers are not kept from their network because the host's could not be read: the next look tells.
            log.error("the overlay's ranges could not be compared with the host's networks: %s", error)
            return True

    @property
    def serving(self) -> bool:
        """Whether the node was started."""
        return self._serving

    def stop(self) -> None:
        """No look begins after this; one that is going on is waited for."""
        self._worker.retire()
        self._ended.set()
        self._wake.set()
        if self._monitor is not None:
            self._monitor.close()
        self._worker.join(PATIENCE)

    def _run(self) -> None:
        while not self._ended.is_set():
            beat(INTERVAL)
            if self._wake.wait(INTERVAL):
                self._ended.wait(SETTLE)
            self._wake.clear()
            if self._ended.is_set():
                return
            began = time.monotonic()
            with self._step():
                self._look()
            self._ranges.looked()
            beat(LONGEST)
            self._ended.wait(min((time.monotonic() - began) * SHARE, LONGEST))

    def _look(self) -> None:
        if self._serving:
            self._changed()
        elif self._ranges.decide():
            log.info("the overlay's ranges are free on this host: the node goes into service")
            self._begin()
            self._serving = True
