"""Decides which path to a peer is used, and which probes are sent to find it. Pure: times are arguments.

A peer has candidates: places at which it may be reached. A path is used only when a probe to its place was just
answered; it is left only for a better one that has answered three probes in a row, or when it answers no more.

An attempt begins with what is new: candidates, or this node's own addresses. Both nodes learn of each other at about
the same time, so both attempts overlap. To a place outside, the first probe has a small TTL: it opens this node's NAT
and dies on the way. A router that answers unsolicited datagrams itself would remember the other's probe as a flow of
its own, and give its client's probe another port. Only after that do probes travel all the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cni.addresses import Address

Place = tuple[Address, int]
Kind = Literal["host", "outside", "relay", "turn"]
"""What a place is: one of the peer's own addresses, an address outside its NAT, a port of a node that relays in its
kernel, or a place behind a relay that forwards in user space (ZLayer's relay, TURN)."""

RelayUse = Literal["", "only", "never"]
"""Whether relays are the only paths to a peer, or none; "": a relay while there is no direct path."""

RANK: Mapping[Kind, int] = {"host": 0, "outside": 1, "relay": 2, "turn": 3}
RELAYED: tuple[Kind, ...] = ("relay", "turn")
STEADY = 3  # answers in a row until a better path replaces one that works
HOPS = 2  # routers after which a first probe is dropped: this node's own NAT, and the one after it
NEAR = (0.0, 0.3, 1.0, 3.0)  # seconds after an attempt's begin at which a peer's own addresses are probed
BEYOND = (0.0, 0.3, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0)  # the same for relays, which carry nothing until both ends are bound
FAR = (1.0, 1.3, 1.7, 2.5, 4.0, 6.0, 8.0)  # the same for addresses outside, after the first probe of few hops
CONFIRM = 0.2  # seconds between the probes that confirm a better path
LENGTH = 9.0  # seconds that an attempt lasts
PAUSES = (3.0, 5.0, 10.0, 20.0, 40.0, 50.0)  # seconds between two attempts without anything new
CALLED = 5.0  # seconds after an attempt's begin in which the peer's call begins no other one
SILENCE = 2.0  # seconds that a peer to or from which packets flow may send nothing, until its path is probed
IDLE_SILENCE = 150.0  # the same without packets: one end may send all keepalives, but after 120 s a handshake is due
STANDBY = 20.0  # seconds between two probes to the second relay of a pair in use: its NATs keep the mappings
READY = (0.3, 0.5, 1.0, 2.0, 4.0)  # seconds between the first of these probes, until every other relay has answered
VERDICT = 1.5  # seconds in which the path in use must answer a probe
PACKET = 100  # bytes in one reading that are more than WireGuard's keepalives, of 32 bytes each
BUSY = 300  # bytes in one reading of the counters that are no keepalive
ACTIVE = 45.0  # seconds for which a pair counts as in use after its last packet
FEW = 3  # attempts to leave a relay that are made for a pair that is not in use
MOST_LEARNED = 4  # places from which the peer itself has called, beside those that it has named


@dataclass(frozen=True, slots=True)
class Send:
    """A probe to send. `hops`: after how many routers it is dropped, 0 for the system's default. `is_call`: not a ping
    but a call."""

    to: Place
    hops: int = 0
    is_call: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place. `sent`: probes of the present attempt; `streak`: how many in a row were answered; `seconds`: the last
    round trip; `waiting`: when the probe under way was sent, None if there is none; `confirm_at`: when the next probe
    is due that is no part of an attempt."""

    kind: Kind
    sent: int = 0
    streak: int = 0
    seconds: float = 0.0
    waiting: float | None = None
    confirm_at: float | None = None


class PeerPaths:
    """The paths to one peer. Times in seconds on a monotonic clock. For one thread."""

    def __init__(self, now: float, use: RelayUse = "") -> None:
        """`use`: whether relays are the only paths that may be used, or none."""
        self._use, self._call = use, False
        self._candidates: dict[Place, Candidate] = {}
        self._named: Mapping[Place, Kind] = {}
        self._learned: dict[Place, tuple[Kind, float]] = {}
        self._chosen: Place | None = None
        self._began: float | None = None  # of the present attempt
        self._started = float("-inf")  # of the last attempt
        self._attempts = 0
        self._ended = now
        self._counters = (-1, -1)
        self._heard_at = now
        self._busy_at = now
        self._has_sent = False  # the peer has sent packets since the last question
        self._standby_at = float("inf")  # when the relays that are not in use are probed
        self._readied = 0  # the probes that were sent to get them ready
        self._asked_at: float | None = None  # when the path in use was asked whether it works
        self._has_moved = False  # the peer no longer names the path in use, which was asked whether it works
        self._began_at = now

    # --- what is known -----------------------------------------------------------------------------------------------

    @property
    def chosen(self) -> Place | None:
        """The path in use; None while there is none."""
        return self._chosen

    @property
    def kind(self) -> Kind | None:
        """What the path in use is."""
        return self._candidates[self._chosen].kind if self._chosen is not None else None

    @property
    def candidates(self) -> Mapping[Place, Candidate]:
        """Every place, with what is known of it."""
        return self._candidates

    def searched_for(self, now: float) -> float:
        """Seconds since the search began, for a peer without a path."""
        return now - self._began_at

    # --- what happens ------------------------------------------------------------------------------------------------

    def name(self, places: Mapping[Place, Kind], now: float) -> None:
        """Take in the places that the peer has named. Different ones are news: a path in use that is none of them is
        asked whether it works, and if the peer had named it before, any other is as good as that one."""
        places = {place: kind for place, kind in places.items() if self.may_use(kind)}
        if places == self._named:
            return
        is_new_relay = any(kind in RELAYED and place not in self._named for place, kind in places.items())
        before, self._named = self._named, places
        self._rebuild()
        if self._chosen is not None and self._chosen not in places:
            self._doubt(now)
            self._has_moved = self._chosen in before
        self.begin(now)
        if is_new_relay:
            self._get_ready(now)

    def begin(self, now: float) -> None:
        """Begin an attempt: something is new."""
        self._attempts = 0
        self._call = True
        self._start(now)

    def called(self, now: float) -> None:
        """Take in the peer's call: it tries to leave the relay now, and both must try together, because a NAT lets a
        probe in only for some 30 s after one has gone out (nf_conntrack_udp_timeout)."""
        if self.kind in RELAYED and now - self._started >= CALLED:
            self._start(now)

    def may_use(self, kind: Kind) -> bool:
        """Whether a path of that kind may be used at all."""
        return not self._use or (kind in RELAYED) == (self._use == "only")

    def called_from(self, place: Place, now: float, kind: Kind = "outside") -> None:
        """Take in that an authenticated ping of the peer came from a place: it may be reached there. `kind`: what the
        place is, if the peer has not named it."""
        if not self.may_use(kind):
            return
        if place not in self._candidates:
            self._learned[place] = (kind, now)
            while len(self._learned) > MOST_LEARNED:
                del self._learned[min(self._learned, key=lambda learned: self._learned[learned][1])]
            self._rebuild()
        candidate = self._candidates.get(place)
        if candidate is not None and self._is_wanted(candidate) and now - (candidate.waiting or 0.0) >= CONFIRM:
            self._put(place, replace(candidate, confirm_at=now))

    def answered(self, place: Place, seconds: float, now: float) -> None:
        """Take in the answer to a probe."""
        before = self._candidates.get(place)
        if before is None:
            return
        better = self._is_wanted(before)
        again = now + CONFIRM if better and self._chosen is not None and before.streak + 1 < STEADY else None
        self._put(
            place,
            replace(before, streak=before.streak + 1, seconds=seconds, waiting=None, confirm_at=again),
        )
        if place == self._chosen:
            self._asked_at, self._heard_at, self._has_moved = None, now, False
        elif self._chosen is None or self._has_moved or (better and before.streak + 1 >= STEADY):
            self._choose(place, now)

    def note_traffic(self, sent: int, received: int, now: float) -> bool:
        """Take in the counters of the peer, in bytes: packets without an answer make the path in use suspect, and the
        end of what the peer has sent, because only one of two nodes learns that a path to it was cut. Returns whether
        that is new."""
        before, self._counters = self._counters, (sent, received)
        if sent - before[0] > BUSY or received - before[1] > BUSY:
            self._busy_at = now
            if self._standby_at == float("inf"):
                self._get_ready(now)
        if before[1] != received or before[0] < 0:
            self._heard_at = now
        self._has_sent = self._has_sent or received - before[1] > BUSY
        silent, flows = now - self._heard_at, sent - before[0] >= PACKET or self._has_sent
        is_suspect = silent >= (SILENCE if flows else IDLE_SILENCE)
        if self._chosen is None or self._asked_at is not None or not is_suspect:
            return False
        self._heard_at, self._has_sent = now, False  # one question for each silence
        self._doubt(now)
        return True

    def ask(self, now: float) -> None:
        """Probe the path in use now, for a person."""
        if self._chosen is not None:
            self._put(self._chosen, replace(self._candidates[self._chosen], confirm_at=now))

    # --- what to do --------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> list[Send]:
        """The probes that are due."""
        self._expire(now)
        sends = []
        if self._began is None and now >= self._next_attempt():
            self._call = True
            self._start(now)
        if self._call and self._chosen is not None and self.kind in RELAYED:
            sends.append(Send(self._chosen, is_call=True))
        self._call = False
        if self._began is not None and now >= self._began + LENGTH:
            self._began, self._ended = None, now
            self._attempts += 1
        sends += self._to_standby(now)
        for place, candidate in list(self._candidates.items()):
            if candidate.confirm_at is not None and now >= candidate.confirm_at:
                again = now + VERDICT / 3 if place == self._chosen and self._asked_at is not None else None
                self._put(place, replace(candidate, confirm_at=again, waiting=now))
                sends.append(Send(place))
            elif self._began is not None and self._is_wanted(candidate):
                sends += self._of_attempt(place, candidate, now - self._began, now)
        return sends

    def due(self) -> float:
        """When `advance` has something to do next."""
        times = [candidate.confirm_at for candidate in self._candidates.values() if candidate.confirm_at is not None]
        if self._asked_at is not None:
            times.append(self._asked_at + VERDICT)
        if self.kind in RELAYED:
            times.append(self._standby_at)
        if self._began is not None:
            times.append(self._began + LENGTH)
            for candidate in self._candidates.values():
                schedule = _schedule(candidate.kind)
                if candidate.sent < len(schedule) and self._is_wanted(candidate):
                    times.append(self._began + schedule[candidate.sent][0])
        else:
            times.append(self._next_attempt())
        return min(times, default=float("inf"))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _of_attempt(self, place: Place, candidate: Candidate, elapsed: float, now: float) -> list[Send]:
        schedule = _schedule(candidate.kind)
        if candidate.sent >= len(schedule) or elapsed < schedule[candidate.sent][0]:
            return []
        hops = schedule[candidate.sent][1]
        lost = candidate.waiting is not None
        streak = 0 if lost else candidate.streak
        self._put(place, replace(candidate, sent=candidate.sent + 1, streak=streak, waiting=None if hops else now))
        return [Send(place, hops)]

    def _to_standby(self, now: float) -> list[Send]:
        """The probes that keep the other relays ready for this pair, so that they carry it when this one is gone."""
        if self.kind not in RELAYED or now < self._standby_at:
            return []
        others = self._other_relays()
        if self._readied < len(READY) and not all(self._candidates[place].streak for place in others):
            self._standby_at = now + READY[self._readied]
            self._readied += 1
        else:
            self._standby_at = now + STANDBY if now - self._busy_at < ACTIVE else float("inf")
        return [Send(place) for place in others]

    def _get_ready(self, now: float) -> None:
        """Probe the other relays soon. Each end is bound to a relay only by its own probe, so a relay that neither end
        has probed carries nothing when it is needed."""
        self._standby_at, self._readied = now + CONFIRM, 0
        for place in self._other_relays():
            self._put(place, replace(self._candidates[place], streak=0))

    def _other_relays(self) -> list[Place]:
        """The places behind relays, without the one in use."""
        return [place for place, each in self._candidates.items() if each.kind in RELAYED and place != self._chosen]

    def _start(self, now: float) -> None:
        self._began = self._started = now
        for place, candidate in self._candidates.items():
            self._put(place, replace(candidate, sent=0, streak=0, waiting=None))

    def _expire(self, now: float) -> None:
        """Give the path in use up if it did not answer; another that answers takes its place."""
        if self._asked_at is None or now < self._asked_at + VERDICT or self._chosen is None:
            return
        lost, self._chosen, self._asked_at, self._has_moved = self._chosen, None, None, False
        self._put(lost, replace(self._candidates[lost], streak=0, confirm_at=None))
        self._began_at = now
        self.begin(now)

    def _doubt(self, now: float) -> None:
        """Ask the path in use whether it works."""
        assert self._chosen is not None
        self._asked_at = now
        self._put(self._chosen, replace(self._candidates[self._chosen], confirm_at=now, waiting=None))

    def _choose(self, place: Place, now: float) -> None:
        self._chosen, self._asked_at, self._heard_at, self._has_moved = place, None, now, False
        self._get_ready(now)

    def _is_wanted(self, candidate: Candidate) -> bool:
        """Whether a place would be a better path than the one in use."""
        if self._chosen is None or self._has_moved:
            return True
        return RANK[candidate.kind] < RANK[self._candidates[self._chosen].kind]

    def _next_attempt(self) -> float:
        """When an attempt is due without anything new, infinite for never: a relay is left as soon as possible, but a
        pair that is not in use is not worth the probes."""
        at = self._ended + PAUSES[min(max(self._attempts - 1, 0), len(PAUSES) - 1)]
        if not any(self._is_wanted(candidate) for candidate in self._candidates.values()):
            return float("inf")
        is_worth = self.kind in RELAYED and (self._attempts < FEW or at - self._busy_at < ACTIVE)
        return at if self._chosen is None or is_worth else float("inf")

    def _rebuild(self) -> None:
        kinds: dict[Place, Kind] = {**{place: kind for place, (kind, _) in self._learned.items()}, **self._named}
        if self._chosen is not None:
            kinds.setdefault(self._chosen, self._candidates[self._chosen].kind)  # it works, named or not
        before = self._candidates
        self._candidates = {
            place: replace(before[place], kind=kind) if place in before else Candidate(kind)
            for place, kind in kinds.items()
        }

    def _put(self, place: Place, candidate: Candidate) -> None:
        self._candidates[place] = candidate


def _schedule(kind: Kind) -> tuple[tuple[float, int], ...]:
    """When a place of that kind is probed in an attempt, and by how many hops."""
    if kind == "outside":
        return ((0.0, HOPS), *((at, 0) for at in FAR))
    return tuple((at, 0) for at in (BEYOND if kind in RELAYED else NEAR))
