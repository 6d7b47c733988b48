"""How long ago a peer was heard of, whatever happens to the wall clock; who is forgotten after that was set back."""

from __future__ import annotations

import math

from cni.daemon.mesh.handshakes import Handshakes
from cni.daemon.model import wireguard
from cni.daemon.model.wireguard import Peer
from cni.host.wg_types import PeerChange, PeerSeen

UNIX, BOOT = 1_800_000_000.0, 5_000.0
HOUR = 3600.0


class Clocks:
    """One device with one peer A, looked at as time goes by and the wall clock is set."""

    def __init__(self, stamp: float | None = None) -> None:
        self.boot, self.ahead = BOOT, UNIX - BOOT
        self.stamp = int(UNIX if stamp is None else stamp)
        self.handshakes = Handshakes()

    def after(self, seconds: float, set_by: float = 0.0, heard: bool = False) -> float:
        """Look again after so many seconds, in which the clock was set; the age of A."""
        self.boot += seconds
        self.ahead += set_by
        if heard:
            self.stamp = int(self.boot + self.ahead)
        return self.look()

    def look(self) -> float:
        peer = PeerSeen("A", "192.0.2.7:5", frozenset(), 25, self.stamp)
        return self.handshakes.note("wg", {"A": peer}, self.boot + self.ahead, self.boot)["A"]

    def refused(self) -> list[str]:
        return self.handshakes.refused("wg", self.boot)


def test_an_age_is_the_boot_clocks():
    clocks = Clocks()
    assert clocks.look() == 0
    assert clocks.after(10) == 10
    assert clocks.after(10, set_by=HOUR) == 20
    assert clocks.after(10, set_by=-5 * HOUR) == 30
    assert clocks.after(10, heard=True) == 0


def test_what_was_before_the_first_look_is_the_wall_clocks():
    assert Clocks(UNIX - 70).look() == 70
    assert Clocks(UNIX + HOUR).look() == 0, "not heard of in the future"
    assert Clocks(0).look() == math.inf


def test_a_handshake_before_a_jump_was_since_the_last_look():
    clocks = Clocks()
    clocks.look()
    clocks.boot += 5
    clocks.stamp = int(clocks.boot + clocks.ahead)
    assert clocks.after(5, set_by=HOUR) == 10


def test_a_time_reckoned_anew_at_each_look_is_the_same():
    clocks = Clocks()
    clocks.look()
    clocks.stamp += 1
    assert clocks.after(30) == 30


def test_after_a_clock_was_set_back_the_silent_are_forgotten_once():
    clocks = Clocks()
    clocks.look()
    clocks.after(10, set_by=-HOUR)
    assert clocks.refused() == [], "its session lives"
    clocks.after(174)
    assert clocks.refused() == []
    clocks.after(1)
    assert clocks.refused() == ["A"]
    assert clocks.refused() == []
    clocks.after(500)
    assert clocks.refused() == []
    clocks.after(10, set_by=-HOUR)
    assert clocks.refused() == ["A"], "another time"


def test_who_is_heard_of_since_is_not_forgotten():
    clocks = Clocks()
    clocks.look()
    clocks.after(10, set_by=-HOUR)
    clocks.after(60, heard=True)
    clocks.after(175)
    assert clocks.refused() == []


def test_a_clock_that_went_forward_or_a_little_back_forgets_nobody():
    for set_by in (HOUR, -30.0):
        clocks = Clocks()
        clocks.look()
        clocks.after(10, set_by=set_by)
        clocks.after(300)
        assert clocks.refused() == []


def test_a_daemon_that_begins_knows_of_the_clocks_before():
    clocks = Clocks()
    clocks.ahead -= HOUR
    clocks.handshakes.remember(UNIX - BOOT)
    clocks.look()
    clocks.after(190)
    assert clocks.refused() == ["A"]


def test_the_forgotten_are_given_anew_where_they_were():
    wanted = {key: Peer(key, "192.0.2.1:5", frozenset({"10.0.0.0/26"}), 25) for key in "AB"}
    seen = {key: PeerSeen(key, "192.0.2.9:7", frozenset({"10.0.0.0/26"}), 25, int(UNIX)) for key in "AB"}
    configured, ages = dict.fromkeys("AB", "192.0.2.1:5"), {"A": 160.0, "B": 5.0}
    assert wireguard.renewed(seen, wanted, configured, ages, learned={}, forgotten=["A"]) == [
        PeerChange("A", remove=True),
        PeerChange("A", False, "192.0.2.9:7", ("10.0.0.0/26",), True, 25),
    ]
