"""Which packets the fence drops, while the tool asks: keeps the log rules in force as long as there is a reader.

A reader asks again and again; one that has not asked for LEASE seconds was killed or is gone. With the last reader the
thread, the socket and the log rules go. The kernel limits each rule (drop_log.py) and the ring keeps the last MOST
packets, so a flood costs the daemon a bounded share.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from itertools import islice

from cni.daemon.fence import drop_log
from cni.daemon.fence.drop_rules import DropRules
from cni.errors import FenceFailed, InvalidConfig, TryAgainLater
from cni.host.nflog import Logged, PacketLog

log = logging.getLogger(__name__)

LEASE = 3.0  # seconds
MOST = 4096  # packets that are kept
READERS = 16
_TURN = 0.25  # seconds of one wait for packets
_CHECK = 1.0  # seconds between two looks for rules that were added without a log rule


class DropWatch:
    """The readers, the ring, and the thread that fills it while there is a reader. Thread-safe."""

    def __init__(self, rules: DropRules) -> None:
        self._rules = rules
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._readers: dict[str, float] = {}  # until when, in seconds of the monotonic clock
        self._ring: deque[Logged] = deque(maxlen=MOST)
        self._count = 0  # packets since the daemon's start
        self._lost = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def read(self, reader: str, cursor: int, seconds: float) -> tuple[int, list[Logged], int]:
        """The packets after `cursor`: the next cursor, the packets, and how many are no longer kept. Waits at most
        `seconds` for the first; `cursor` is negative at a reader's first request, which returns at once.

        Raises FenceFailed, TryAgainLater, InvalidConfig.
        """
        with self._lock:
            if reader not in self._readers and len(self._readers) >= READERS:
                raise InvalidConfig(f"{READERS} readers of `drops` are at work: end one of them")
            self._begin()
            self._readers[reader] = time.monotonic() + LEASE + max(seconds, 0)
            if cursor < 0:
                return self._count, [], 0
            self._news.wait_for(lambda: self._count > cursor or self._thread is None, seconds)
            self._readers[reader] = time.monotonic() + LEASE
            new = self._count - cursor
            kept = min(new, len(self._ring))
            packets = list(islice(self._ring, len(self._ring) - kept, None))
            lost, self._lost = new - kept + self._lost, 0
            return self._count, packets, lost

    def end(self, reader: str) -> None:
        """The reader asks no more. Idempotent."""
        with self._lock:
            self._readers.pop(reader, None)

    def close(self) -> None:
        """Ends the thread, and with it the log rules. The daemon calls it at its end."""
        with self._lock:
            self._closed, thread = True, self._thread
            self._readers.clear()
        if thread is not None:
            thread.join(5.0)

    def _begin(self) -> None:
        """Starts the thread unless it runs; called with the lock. The log rules are in force when it returns."""
        if self._closed:
            raise TryAgainLater("the daemon is ending")
        if self._thread is not None:
            return
        try:
            packets = PacketLog(drop_log.GROUP, drop_log.SNAPLEN)
        except OSError as error:
            text = f"NFLOG group {drop_log.GROUP} cannot be opened: {error.strerror}"
            raise TryAgainLater(text, "another program has the group, or the kernel lacks nfnetlink_log") from error
        try:
            self._rules.sample_drops()
            self._thread = threading.Thread(target=self._run, args=(packets,), name="drops", daemon=True)
            self._thread.start()
        except BaseException:
            self._thread = None
            packets.close()
            self._rules.end_sample()
            raise

    def _run(self, packets: PacketLog) -> None:
        try:
            self._fill(packets)
        except OSError as error:
            log.warning("`drops` ends: %s", error)
        finally:
            packets.close()
            self._rules.end_sample()
            with self._lock:
                self._thread = None
                self._readers.clear()
                self._news.notify_all()

    def _fill(self, packets: PacketLog) -> None:
        checked = time.monotonic()
        while self._has_readers():
            self._keep(packets.read(_TURN), packets.take_lost())
            if time.monotonic() - checked > _CHECK:
                checked = time.monotonic()
                try:
                    self._rules.sample_drops()
                except FenceFailed as error:  # a rule was replaced meanwhile: the next look is at what is there then
                    log.debug("log rules are not added now: %s: %s", error.msg, error.details)

    def _has_readers(self) -> bool:
        with self._lock:
            now = time.monotonic()
            self._readers = {reader: until for reader, until in self._readers.items() if until > now}
            return bool(self._readers)

    def _keep(self, packets: Iterable[Logged], lost: int) -> None:
        ours = [packet for packet in packets if drop_log.place_of(packet.prefix) is not None]
        if ours or lost:
            with self._lock:
                self._ring.extend(ours)
                self._count += len(ours)
                self._lost += lost
                self._news.notify_all()
