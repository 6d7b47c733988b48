"""Which path to a peer is used (model/peer_paths.py), with a clock that the test holds."""

from __future__ import annotations

import ipaddress

import pytest

from cni.daemon.model import nat_candidates, peer_paths
from cni.daemon.model.nat_behaviour import Observation
from cni.daemon.model.nat_words import PathView
from cni.daemon.model.peer_paths import PeerPaths, Place
from cni.daemon.nat.own_places import OwnPlaces


def at(text: str) -> Place:
    host, _, port = text.rpartition(":")
    return ipaddress.ip_address(host), int(port)


RELAY = at("198.51.100.1:40000")
LAN, OUT, OTHER = at("192.168.2.2:51420"), at("203.0.113.10:9073"), at("203.0.113.11:9")


class Clock:
    """Runs the paths, and answers the probes to `up`."""

    def __init__(self, *up: Place) -> None:
        self.now = 100.0
        self.paths = PeerPaths(self.now)
        self.up = set(up)
        self.sent: list[tuple[float, Place, int]] = []

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            for send in self.paths.advance(self.now):
                self.sent.append((self.now, send.to, send.hops))
                if send.to in self.up and not send.hops:
                    self.paths.answered(send.to, 0.01, self.now)
            self.now = min(end, max(self.now + 0.05, min(self.paths.due(), end)))

    def to(self, place: Place) -> list[tuple[float, int]]:
        return [(round(when - 100.0, 2), hops) for when, to, hops in self.sent if to == place]


def test_the_first_answer_is_used_at_once() -> None:
    clock = Clock(LAN)
    clock.paths.name({LAN: "host", OUT: "outside"}, clock.now)
    clock.run(1)
    assert clock.paths.chosen == LAN
    assert clock.paths.kind == "host"
    assert clock.to(LAN) == [(0.0, 0)]


def test_outside_a_probe_that_dies_on_the_way_comes_first() -> None:
    clock = Clock()
    clock.paths.name({OUT: "outside"}, clock.now)
    clock.run(2)
    assert clock.to(OUT)[0] == (0.0, peer_paths.HOPS)
    assert clock.to(OUT)[1] == (1.0, 0)
    assert all(hops == 0 for _, hops in clock.to(OUT)[1:])


def test_a_better_path_must_answer_three_times() -> None:
    clock = Clock(OUT)
    clock.paths.name({OUT: "outside"}, clock.now)
    clock.run(2)
    assert clock.paths.chosen == OUT
    clock.up = {OUT, LAN}
    clock.paths.name({OUT: "outside", LAN: "host"}, clock.now)
    clock.run(0.1)
    assert clock.paths.chosen == OUT
    clock.run(1)
    assert clock.paths.chosen == LAN
    assert len(clock.to(LAN)) == peer_paths.STEADY


def test_a_path_that_works_is_left_for_no_worse_one_and_an_idle_pair_sends_nothing() -> None:
    clock = Clock(LAN, OUT)
    clock.paths.name({LAN: "host", OUT: "outside"}, clock.now)
    clock.run(10)
    sent = len(clock.sent)
    for second in range(600):
        clock.paths.note_traffic(100 * second // 25, 100 * second // 25, clock.now)  # WireGuard's keepalives
        clock.run(1)
    assert clock.paths.chosen == LAN
    assert len(clock.sent) == sent


def test_silence_under_traffic_is_asked_about_and_a_dead_path_is_left() -> None:
    clock = Clock(OUT)
    clock.paths.name({OUT: "outside", OTHER: "outside"}, clock.now)
    clock.run(10)
    clock.up = {OTHER}
    began = clock.now
    sent = 0
    while clock.paths.chosen != OTHER and clock.now - began < 20:
        sent += 1000
        clock.paths.note_traffic(sent, 5, clock.now)
        clock.run(1)
    assert clock.now - began < 8


def test_silence_of_a_path_that_works_costs_one_question() -> None:
    clock = Clock(OUT)
    clock.paths.name({OUT: "outside"}, clock.now)
    clock.run(10)
    before = len(clock.sent)
    for second in range(9):
        clock.paths.note_traffic(1000 * second, 5, clock.now)
        clock.run(1)
    assert clock.paths.chosen == OUT
    assert len(clock.sent) - before <= 9 / peer_paths.SILENCE


def test_a_ping_of_the_peer_names_a_place_and_it_is_asked_at_once() -> None:
    clock = Clock(OTHER)
    clock.paths.name({OUT: "outside"}, clock.now)
    clock.run(3)
    clock.paths.called_from(OTHER, clock.now)
    clock.run(0.3)
    assert clock.paths.chosen == OTHER


def test_replayed_pings_from_many_places_take_no_memory() -> None:
    clock = Clock()
    clock.paths.name({OUT: "outside"}, clock.now)
    for port in range(1, 5000):
        clock.paths.called_from(at(f"203.0.113.66:{port}"), clock.now)
    assert len(clock.paths.candidates) == 1 + peer_paths.MOST_LEARNED
    assert OUT in clock.paths.candidates


def test_attempts_become_rare() -> None:
    clock = Clock()
    clock.paths.name({OUT: "outside"}, clock.now)
    clock.run(3600)
    assert len(clock.sent) < 3600 / (peer_paths.PAUSES[-1] + peer_paths.LENGTH) * 8 + 60


def test_what_is_no_other_machines_address_is_not_probed() -> None:
    ranges = [ipaddress.ip_network("10.200.0.0/16")]
    for text in (
        "127.0.0.1:51420",
        "224.0.0.1:1",
        "0.0.0.0:1",
        "169.254.1.1:1",
        "255.255.255.255:1",
        "10.200.3.4:1",
        "203.0.113.1:0",
        "::1:1",
        "ff02::1:1",
        "fe80::1:1",
    ):
        assert nat_candidates.refusal(at(text), ranges), text
    own = [at("192.168.1.2:51420"), LAN, at("127.0.0.1:1")]
    found = nat_candidates.places_of(own, [OUT, LAN], {ipaddress.ip_address("192.168.1.2")}, ranges, 10)
    assert found == {LAN: "outside", OUT: "outside"}
    assert list(nat_candidates.places_of([LAN], [OUT], (), ranges, 10).items()) == [(LAN, "host"), (OUT, "outside")]
    assert len(nat_candidates.places_of([at(f"203.0.113.1:{n}") for n in range(1, 99)], [], (), ranges, 99)) == 16


def test_after_the_nats_address_changed_old_observations_do_not_count() -> None:
    one, two = at("198.51.100.1:3478"), at("198.51.100.2:3478")
    seen = {one: (Observation(one, OUT), 10.0), two: (Observation(two, OTHER), 10.0 + nat_candidates.CURRENT + 1)}
    assert [each.mapped for each in nat_candidates.current(seen)] == [OTHER]


SYMMETRIC = "address-and-port-dependent"


@pytest.mark.parametrize(
    ("kind", "own", "theirs", "path", "said"),
    [
        ("host", "", "", "direct", "1.2.3.4:5 is one of the peer's own addresses"),
        ("outside", "", "", "hole-punched", "lets datagrams in at 1.2.3.4:5"),
        ("relay", SYMMETRIC, SYMMETRIC, "relayed", "by node3 at 1.2.3.4:5: both sides are symmetric"),
        ("relay", SYMMETRIC, "unknown", "relayed", "by node3 at 1.2.3.4:5: this node is symmetric"),
        ("", "unknown", SYMMETRIC, "searching", "the peer is symmetric"),
        ("", "", "", "searching", "no answer from a, b, c, d and 1 more"),
    ],
)
def test_the_reason_in_words(kind: str, own: str, theirs: str, path: str, said: str) -> None:
    view = PathView(kind, "1.2.3.4:5", 0.01, ("a", "b", "c", "d", "e"), own, theirs, "node3")
    assert view.path == path
    assert said in view.why()
    assert "has named no address" in PathView("", "", None, (), "", "").why()


def test_a_relay_is_used_at_once_and_left_when_a_direct_path_answers() -> None:
    clock = Clock(RELAY)
    clock.paths.name({OUT: "outside", RELAY: "relay"}, clock.now)
    clock.run(0.5)
    assert clock.paths.kind == "relay"
    clock.run(20)
    clock.up = {RELAY, OUT}
    for second in range(70):
        clock.paths.note_traffic(1000 * second, 1000 * second, clock.now)
        clock.run(1)
    assert clock.paths.chosen == OUT


def test_a_relayed_pair_that_is_not_in_use_sends_no_probes() -> None:
    clock = Clock(RELAY)
    clock.paths.name({OUT: "outside", RELAY: "relay"}, clock.now)
    clock.run(120)
    before = len(clock.sent)
    for second in range(600):
        clock.paths.note_traffic(32 * (second // 25), 32 * (second // 25), clock.now)
        clock.run(1)
    assert len(clock.sent) == before
    assert clock.paths.due() > clock.now


def test_the_second_relay_of_a_pair_in_use_is_kept_ready() -> None:
    clock = Clock(RELAY)
    second = at("198.51.100.2:40000")
    clock.paths.name({RELAY: "relay", second: "relay"}, clock.now)
    clock.run(5)
    before = len(clock.to(second))
    for count in range(100):
        clock.paths.note_traffic(1000 * count, 1000 * count, clock.now)
        clock.run(1)
    assert 4 <= len(clock.to(second)) - before <= 6
    clock.run(100)
    idle = len(clock.to(second))
    clock.run(600)
    assert len(clock.to(second)) == idle


def test_the_side_that_tries_to_leave_a_relay_calls_the_other_and_both_try_at_once() -> None:
    clock = Clock(RELAY)
    clock.paths.name({OUT: "outside", RELAY: "relay"}, clock.now)
    clock.run(1)
    assert clock.paths.kind == "relay"
    clock.run(2 * peer_paths.LENGTH)
    clock.sent.clear()
    clock.paths.begin(clock.now)
    calls = [send for send in clock.paths.advance(clock.now) if send.is_call]
    assert [call.to for call in calls] == [RELAY]
    clock.run(peer_paths.LENGTH)
    clock.sent.clear()
    began = clock.now
    clock.paths.called(began)
    clock.run(1.5)
    assert [hops for _, to, hops in clock.sent if to == OUT][:2] == [peer_paths.HOPS, 0]
    assert not any(send.is_call for send in clock.paths.advance(clock.now)), "a call is not called back"


@pytest.mark.parametrize(("use", "kind"), [("only", "relay"), ("never", "host")])
def test_what_may_not_be_used_is_not_probed(use: peer_paths.RelayUse, kind: str) -> None:
    clock = Clock(LAN, OUT, RELAY)
    clock.paths = PeerPaths(clock.now, use)
    clock.paths.name({LAN: "host", RELAY: "relay"}, clock.now)
    clock.paths.called_from(OUT, clock.now, "outside" if use == "only" else "turn")
    clock.run(20)
    assert clock.paths.kind == kind
    assert {to for _, to, _ in clock.sent} == {RELAY if use == "only" else LAN}


SECOND_RELAY = at("198.51.100.2:40000")


def test_a_relay_that_is_named_after_the_choice_is_probed_at_once() -> None:
    clock = Clock(RELAY, SECOND_RELAY)
    clock.paths.name({RELAY: "relay"}, clock.now)
    clock.run(3)
    assert clock.paths.chosen == RELAY
    clock.paths.name({RELAY: "relay", SECOND_RELAY: "relay"}, clock.now)
    clock.run(1)
    assert clock.to(SECOND_RELAY)[0] == (3.2, 0)
    assert len(clock.to(SECOND_RELAY)) == 2
    assert clock.paths.chosen == RELAY


def test_another_relay_is_probed_until_it_answers_but_not_for_ever() -> None:
    clock = Clock(RELAY)
    clock.paths.name({RELAY: "relay", SECOND_RELAY: "relay"}, clock.now)
    clock.run(15)
    tries = [when for when, _ in clock.to(SECOND_RELAY)]
    assert len([when for when in tries if when >= 0.2]) == len(peer_paths.READY) + 1
    clock.up.add(SECOND_RELAY)
    clock.run(60)
    assert len(clock.to(SECOND_RELAY)) <= len(tries) + 60 / peer_paths.STANDBY + 1


def test_a_pair_that_is_used_again_gets_its_other_relay_ready() -> None:
    clock = Clock(RELAY, SECOND_RELAY)
    clock.paths.name({RELAY: "relay", SECOND_RELAY: "relay"}, clock.now)
    clock.paths.note_traffic(0, 0, clock.now)
    clock.run(200)
    before = len(clock.to(SECOND_RELAY))
    clock.run(50)
    assert len(clock.to(SECOND_RELAY)) == before
    clock.paths.note_traffic(5000, 5000, clock.now)
    clock.run(1)
    assert len(clock.to(SECOND_RELAY)) == before + 2


def test_a_relay_that_is_bound_late_by_the_other_end_is_met_in_the_same_attempt() -> None:
    clock = Clock()
    clock.paths.name({RELAY: "relay"}, clock.now)
    clock.run(5)
    assert clock.paths.chosen is None
    clock.up.add(RELAY)
    clock.run(1.5)
    assert clock.paths.chosen == RELAY


# --- a peer that moves ------------------------------------------------------------------------------------------------


def test_a_place_that_the_peer_no_longer_names_is_left_for_the_first_that_answers() -> None:
    clock = Clock(OUT)
    clock.paths.name({OUT: "outside"}, clock.now)
    clock.run(20)
    clock.up = {OTHER}
    moved = clock.now
    clock.paths.name({OTHER: "outside"}, clock.now)
    clock.run(2)
    assert clock.paths.chosen == OTHER
    assert next(round(when - moved, 2) for when, to, hops in clock.sent if to == OTHER and not hops) == 1.0


def test_a_place_that_works_stays_although_the_peer_no_longer_names_it() -> None:
    clock = Clock(OUT)
    clock.paths.name({OUT: "outside"}, clock.now)
    clock.run(20)
    clock.up = {OUT, OTHER}
    clock.paths.name({OTHER: "outside"}, clock.now)
    clock.run(20)
    assert clock.paths.chosen == OUT


def test_a_place_that_the_peer_never_named_is_only_asked() -> None:
    clock = Clock(OUT, OTHER)
    clock.paths.called_from(OUT, clock.now)
    clock.run(2)
    assert clock.paths.chosen == OUT
    before = len(clock.to(OUT))
    clock.paths.name({OTHER: "outside"}, clock.now)
    clock.run(20)
    assert len(clock.to(OUT)) == before + 1
    assert clock.paths.chosen == OUT


def test_the_end_of_what_a_peer_sends_is_a_silence_once() -> None:
    clock = Clock(OUT)
    clock.paths.name({OUT: "outside"}, clock.now)
    clock.run(20)
    clock.up = set()
    for second in range(4):
        assert not clock.paths.note_traffic(0, 1000 * second, clock.now + second)
    told = [clock.paths.note_traffic(0, 3000, clock.now + second) for second in range(4, 12)]
    assert told == [False, True, *[False] * 6]


def test_a_silence_is_told_once() -> None:
    clock = Clock(OUT)
    clock.paths.name({OUT: "outside"}, clock.now)
    clock.run(20)
    clock.up = set()
    told = [clock.paths.note_traffic(1000 * second, 0, clock.now + second) for second in range(1, 6)]
    assert told == [False, False, True, False, False]  # the first reading is none


# --- this node's own places -------------------------------------------------------------------------------------------


def test_an_address_that_a_witness_sees_replaced_counts_no_longer() -> None:
    places = OwnPlaces()
    server, peer, later = at("198.51.100.254:3478"), at("203.0.113.2:51420"), at("203.0.113.6:51420")
    places.note(server, at("192.0.2.1:51420"), 8.0)
    places.note(peer, at("192.0.2.1:51420"), 10.0)
    places.note(later, at("192.0.2.9:7"), 11.0)
    places.note(server, at("192.0.2.5:51420"), 20.0)
    assert places.word([ipaddress.ip_address("10.0.0.2")], 51420, []).outside == ("192.0.2.5:51420", "192.0.2.9:7")


def test_another_port_alone_is_no_other_address() -> None:
    places = OwnPlaces()
    server, peer = at("198.51.100.254:3478"), at("203.0.113.2:51420")
    places.note(peer, at("192.0.2.1:1"), 8.0)
    places.note(server, at("192.0.2.1:2"), 10.0)
    places.note(server, at("192.0.2.1:3"), 20.0)
    assert places.word([ipaddress.ip_address("10.0.0.2")], 51420, []).outside == ("192.0.2.1:3", "192.0.2.1:1")
