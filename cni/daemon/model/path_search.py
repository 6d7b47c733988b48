"""The search for the largest packet that a path carries through a tunnel. Pure.

Probes are echo requests that no node on the way may fragment. A probe of `SMALL` bytes accompanies each burst: a large
probe counts as too large only if the small one was answered, so a peer that is silent, or lets no echo pass, changes
nothing. A burst tries up to `STEPS` sizes at once, so a search takes few round trips and a bounded number of packets:
each round divides the sizes that are left by `STEPS`, and sends them at most `SEARCH_TRIES` times.

Sizes are in bytes of the packet inside the tunnel. Below the device's MTU they are whole blocks (`wireguard.BLOCK`),
because WireGuard pads packets to these. Times are in seconds of the monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cni.daemon.model.wireguard import BLOCK

SMALL = 64  # bytes: a size that every path carries, and in which a request of either IP version fits
STEPS = 8  # sizes in one burst
CHECK_TRIES = 3  # bursts until the present size counts as too large
SEARCH_TRIES = 2  # bursts in a round of a search: what a lost packet hides is found when the path is tried to grow
WAIT = (0.3, 2.0)  # seconds until a burst is repeated: three round trips, within these bounds
FIRST_WAIT = 1.0  # seconds, while the round trip is unknown
GROW = (30.0, 600.0)  # seconds between two attempts at larger sizes: at first, and at most


@dataclass(frozen=True, slots=True)
class Bounds:
    """The sizes between which a path is searched. `full`: the MTU of the device, or of the underlay's route to the
    peer; `floor`: the smallest MTU that a route to the peer may have."""

    floor: int
    full: int


@dataclass(frozen=True, slots=True)
class Burst:
    """The probes that are under way. `low`: the largest size that passed, 0 for none; `high`: the smallest size that
    did not; `answered`: the sizes of this round that were answered, `SMALL` included. `narrowing`: the sizes are those
    of a search, not of a check of the present size."""

    sizes: tuple[int, ...]
    low: int
    high: int
    sent_at: float
    tries: int = 1
    answered: frozenset[int] = frozenset()
    narrowing: bool = False


@dataclass(frozen=True, slots=True)
class PathState:
    """What is known of one path. `size`: the largest packet that passed, 0 if none was ever answered; `measured_at`:
    when `size` was last confirmed; `too_narrow`: not even the floor passed; `wait`: seconds until a burst is repeated.
    """

    size: int = 0
    measured_at: float = 0.0
    too_narrow: bool = False
    burst: Burst | None = None
    wait: float = FIRST_WAIT
    grow_at: float = 0.0
    grow_pause: float = GROW[0]

    def due(self) -> float:
        """When `advance` must be called if nothing is answered; infinite while nothing is under way."""
        return self.burst.sent_at + self.wait if self.burst is not None else float("inf")


def ladder(low: int, high: int, bounds: Bounds) -> tuple[int, ...]:
    """At most `STEPS` sizes above `low` and below `high`, evenly spread, the smallest and the largest among them."""
    first = -(-bounds.floor // BLOCK) * BLOCK
    blocks = [size for size in range(first, bounds.full, BLOCK) if low < size < high]
    sizes = [*([bounds.floor] if low < bounds.floor < high and bounds.floor % BLOCK else []), *blocks]
    sizes += [bounds.full] if low < bounds.full < high else []
    if len(sizes) <= STEPS:
        return tuple(sizes)
    return tuple(sizes[step * (len(sizes) - 1) // (STEPS - 1)] for step in range(STEPS))


def check(state: PathState, bounds: Bounds, now: float) -> tuple[PathState, tuple[int, ...]]:
    """Begin to check whether the present size passes, the full one if none was measured. Returns the sizes to send,
    none while another burst is under way."""
    if state.burst is not None:
        return state, ()
    top = min(state.size or bounds.full, bounds.full)
    return _send(state, Burst((top,), 0, bounds.full + 1, now))


def grow(state: PathState, bounds: Bounds, now: float) -> tuple[PathState, tuple[int, ...]]:
    """Begin to try sizes above the present one. Returns the sizes to send."""
    sizes = ladder(state.size, bounds.full + 1, bounds)
    if state.burst is not None or not sizes:
        return state, ()
    pause = min(state.grow_pause * 2, GROW[1])
    waiting = replace(state, grow_at=now + state.grow_pause, grow_pause=pause)
    return _send(waiting, Burst(sizes, state.size, bounds.full + 1, now, narrowing=True))


def answer(state: PathState, size: int, bounds: Bounds, now: float) -> tuple[PathState, tuple[int, ...]]:
    """Take in the answer to a probe. Returns the sizes to send next: the round ends with the answer to its largest. An
    answer to a size that was not sent changes nothing."""
    burst = state.burst
    if burst is None or size not in (*burst.sizes, SMALL):
        return state, ()
    wait = min(max(3 * (now - burst.sent_at), WAIT[0]), WAIT[1]) if not burst.answered else state.wait
    heard = replace(burst, answered=burst.answered | {size})
    state = replace(state, burst=heard, wait=wait)
    return _next_round(state, heard, bounds, now) if size == burst.sizes[-1] else (state, ())


def advance(state: PathState, bounds: Bounds, now: float) -> tuple[PathState, tuple[int, ...]]:
    """Continue when the answers are overdue: repeat the burst, or decide. Returns the sizes to send."""
    burst = state.burst
    if burst is None or now < state.due():
        return state, ()
    passed = max(burst.answered - {SMALL}, default=0)
    if burst.tries < (SEARCH_TRIES if burst.narrowing else CHECK_TRIES):
        again = replace(burst, tries=burst.tries + 1, sent_at=now)
        return replace(state, burst=again), (SMALL, *(size for size in burst.sizes if size > passed))
    if not burst.answered:
        return replace(state, burst=None), ()  # silent: it tells nothing about sizes
    if not burst.narrowing:
        # The present size does not pass. It is tried once more with the others: packets are also lost by chance.
        state = replace(state, grow_at=now + GROW[0], grow_pause=GROW[0])
        return _send(state, Burst(ladder(0, burst.high, bounds), 0, burst.high, now, narrowing=True))
    return _next_round(state, burst, bounds, now)


def _next_round(state: PathState, burst: Burst, bounds: Bounds, now: float) -> tuple[PathState, tuple[int, ...]]:
    low = max(burst.answered - {SMALL}, default=burst.low)
    high = min((size for size in burst.sizes if size > low), default=burst.high)
    sizes = ladder(low, high, bounds) if burst.narrowing and low else ()
    if sizes:
        return _send(state, Burst(sizes, low, high, now, narrowing=True))
    size = low or bounds.floor
    if size > state.size:
        state = replace(state, grow_at=now + GROW[0], grow_pause=GROW[0])
    too_narrow = low == 0 or (state.too_narrow and not burst.narrowing)
    return replace(state, size=size, measured_at=now, too_narrow=too_narrow, burst=None), ()


def _send(state: PathState, burst: Burst) -> tuple[PathState, tuple[int, ...]]:
    return replace(state, burst=burst), (SMALL, *burst.sizes)
