"""One path that is measured: when a check begins, and what is known of the path. No I/O; times are passed in, in
seconds of the monotonic clock."""

from __future__ import annotations

from dataclasses import replace

from cni.daemon.mesh.measured import MeasuredPath, ProbedPeer
from cni.daemon.model import path_search
from cni.daemon.model.path_search import Bounds, PathState
from cni.daemon.model.wireguard import Address

CHECK = 3.0  # seconds between two checks of a path with traffic
ACTIVE = 3000  # bytes to a peer since the last check that count as traffic: two full packets and a bit
SILENT = 60.0  # seconds: the longest pause between two checks of a peer that answers no echo

Sizes = tuple[int, ...]


class ProbedPath:
    """The path to one peer. The methods return the sizes of the probes to send."""

    def __init__(self, peer: ProbedPeer, size: int) -> None:
        """`size`: what an earlier daemon measured, 0 for nothing."""
        self._peer, self._state = peer, PathState(size)
        self._sent, self._own, self._traffic = peer.sent, 0, 0
        self._next_check, self._silences = 0.0, 0
        self._responder: Address | None = None

    @property
    def is_new(self) -> bool:
        """Whether the path was not measured yet, or not since something may have changed it."""
        return self._state.measured_at == 0.0 or self._peer.told_at > self._state.measured_at

    @property
    def is_under_way(self) -> bool:
        """Whether probes are under way."""
        return self._state.burst is not None

    @property
    def due(self) -> float:
        """When `advance` must be called; infinite while nothing is under way."""
        return self._state.due()

    def addresses(self) -> tuple[Address, ...]:
        """The addresses to which probes are sent: the one that has answered, or all that may answer."""
        return self._peer.addresses if self._responder is None else (self._responder,)

    def measured(self) -> MeasuredPath | None:
        """The measurement; None before the first one."""
        state = self._state
        if not state.size:
            return None
        full = self._peer.bounds.full
        return MeasuredPath(state.size, full, self._peer.endpoint, state.measured_at, state.too_narrow)

    def has_changed(self, before: MeasuredPath | None) -> bool:
        """Whether the path needs another MTU or other engine settings than `before`, or whether the measurement
        answers what the kernel was told since."""
        if (before.at if before is not None else 0.0) < self._peer.told_at < self._state.measured_at:
            return True
        full = self._peer.bounds.full
        earlier = (min(before.size, full), before.too_narrow) if before is not None else (full, False)
        return bool(self._state.size) and (min(self._state.size, full), self._state.too_narrow) != earlier

    def update(self, peer: ProbedPeer) -> bool:
        """Take in a reading of the device. Returns whether the path may be another one than before."""
        changed = (peer.endpoint, peer.bounds) != (self._peer.endpoint, self._peer.bounds)
        if changed:
            self._state, self._next_check = _begun_anew(self._state, self._peer.bounds), 0.0
        self._traffic += max(0, peer.sent - self._sent - self._own)
        self._peer, self._sent, self._own = peer, peer.sent, 0
        return changed

    def begin(self, now: float, may_grow: bool) -> Sizes:
        """Begin what is due. `may_grow`: larger sizes can be tried; not so while packets may be fragmented."""
        state = self._state
        if self.is_under_way or not self._peer.alive or not self._peer.addresses or now < self._next_check:
            return ()
        if not self.is_new and self._traffic < ACTIVE:
            return ()
        grows = not self.is_new and state.size < self._peer.bounds.full and now >= state.grow_at
        if grows and state.too_narrow:
            # Fragments are not allowed from now on; the path is measured without them.
            self._state = replace(state, too_narrow=False, measured_at=0.0, grow_at=now + path_search.GROW[1])
            return ()
        self._traffic, self._next_check = 0, now + CHECK
        act = path_search.grow if grows and may_grow else path_search.check
        return self._go_on(act(state, self._peer.bounds, now), now)

    def take(self, size: int, address: Address, now: float) -> Sizes:
        """Take in the answer to a probe."""
        self._responder, self._silences = address, 0
        return self._go_on(path_search.answer(self._state, size, self._peer.bounds, now), now)

    def advance(self, now: float) -> Sizes:
        """Continue when answers are overdue."""
        burst = self._state.burst
        sizes = self._go_on(path_search.advance(self._state, self._peer.bounds, now), now)
        if burst is not None and not burst.answered and not self.is_under_way:
            self._silences, self._responder = self._silences + 1, None
            self._next_check = now + min(CHECK * 2**self._silences, SILENT)
        return sizes

    def note_sent(self, octets: int) -> None:
        """Note that the device counts so many bytes for a probe: they are no traffic."""
        self._own += octets

    def _go_on(self, step: tuple[PathState, Sizes], now: float) -> Sizes:
        self._state, sizes = step
        return sizes


def _begun_anew(state: PathState, before: Bounds) -> PathState:
    """The state after a change of the endpoint or of the bounds: a path that was not narrower than its bounds gets the
    new bounds at once; another one keeps its size until it is measured."""
    return PathState() if state.size >= before.full else replace(state, measured_at=0.0, grow_at=0.0, burst=None)
