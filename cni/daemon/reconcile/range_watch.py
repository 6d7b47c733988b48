"""Starts the node when its ranges allow it, and compares them again when links, addresses or routes change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from cni.daemon.events import KernelChanged
from cni.daemon.model.overlap import is_ours
from cni.daemon.node.ranges import Ranges
from cni.daemon.problem_board import ProblemBoard
from cni.host import monitor
from cni.host.worker import Crew, beat

log = logging.getLogger(__name__)

INTERVAL = 10.0  # seconds between two comparisons without an event: a change of /etc/resolv.conf sends none
SETTLE = 0.03  # seconds from an event to the comparison, so that a burst of events is read once
SHARE = 3  # the pause after a comparison, in multiples of its duration: a host may have many routes that change often
LONGEST = 2.0  # seconds: the longest such pause
PATIENCE = 5.0  # seconds that a running comparison may take when the daemon ends


class RangeWatch:
    """Watches the ranges of one node, in a thread of its own."""

    def __init__(
        self,
        ranges: Ranges,
        begin: Callable[[], None],
        remove_data_path: Callable[[], None],
        changed: Callable[[], None],
        *,
        board: ProblemBoard,
        crew: Crew,
    ) -> None:
        """`begin` starts the node. `remove_data_path` removes an earlier daemon's data path if the node may not start.
        `changed` is called at each comparison while the node is in service."""
        self._board, self._crew = board, crew
        self._ranges, self._begin, self._remove_data_path, self._changed = ranges, begin, remove_data_path, changed
        self._serving = False
        self._ended = threading.Event()
        self._wake = ranges.news
        self._worker = crew.worker("ranges", self._run)

    def start(self) -> None:
        """Decide for the first time: start the node, or leave it out of service. Never raises: a failure becomes a
        problem, and is tried again."""
        if self._may_begin():
            self._begin()
            self._serving = True
        else:
            log.error("the node is not in service: %s", self._ranges.refusal)
            what = "the data path of an earlier daemon could not be removed"
            with self._board.step("start-incomplete", "standing down", what):
                self._remove_data_path()
        self._worker.start()

    def _step(self) -> AbstractContextManager[None]:
        what = "the overlay's ranges could not be compared with the host's networks"
        return self._board.step("look-incomplete", "ranges", what)

    def _may_begin(self) -> bool:
        try:
            return self._ranges.decide()
        except OSError as error:
            # A failed read of the host's networks must not cut containers off: start, and compare again later.
            log.error("the overlay's ranges could not be compared with the host's networks: %s", error)
            return True

    @property
    def serving(self) -> bool:
        """Whether the node was started."""
        return self._serving

    def on_kernel_changed(self, change: KernelChanged) -> None:
        """Compare soon: the host may be on another network. The overlay's links are on none of the host's, and the loss
        of one of the host's links is announced too."""
        if not is_ours(change.link) and not change.link.startswith(monitor.GONE):
            self._wake.set()

    def stop(self) -> None:
        """Stop: no comparison begins after this; a running one is waited for up to `PATIENCE` seconds."""
        self._worker.retire()
        self._ended.set()
        self._wake.set()
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
                self._compare()
            self._ranges.looked()
            beat(LONGEST)
            self._ended.wait(min((time.monotonic() - began) * SHARE, LONGEST))

    def _compare(self) -> None:
        if self._serving:
            self._changed()
        elif self._ranges.decide():
            log.info("the overlay's ranges are free on this host: the node goes into service")
            self._begin()
            self._serving = True
