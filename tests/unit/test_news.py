"""What agents are told of peers: what has changed since the last look, and nothing that was so before."""

from __future__ import annotations

import math

from cni.daemon.mesh.peer_events import PeerEvents
from cni.daemon.model.wireguard import DEAD
from cni.host.wg_types import PeerChange, PeerSeen
from cni.overlay import wire

HERE, THERE = "192.0.2.7:51420", "198.51.100.9:40000"


def look(
    news: PeerEvents, age: float = 5, endpoint: str = HERE, device: str = "g", key: str = "A"
) -> list[wire.AnyEvent]:
    return news.update(device, {key: PeerSeen(key, endpoint)}, {key: age})


def test_what_is_so_at_the_first_look_is_no_news() -> None:
    for age in (5, DEAD + 5, math.inf):
        assert look(PeerEvents(), age) == []


def test_a_peer_falls_silent_and_answers_again() -> None:
    news = PeerEvents()
    said = [look(news, age) for age in (5, DEAD - 1, DEAD, DEAD + 10, 3, 4)]
    assert said == [[], [], [wire.PeerHealthChanged("A", False)], [], [wire.PeerHealthChanged("A", True)], []]


def test_a_peer_that_never_answered_does() -> None:
    news = PeerEvents()
    assert [look(news, age) for age in (math.inf, 1)] == [[], [wire.PeerHealthChanged("A", True)]]


def test_a_peer_roams() -> None:
    news = PeerEvents()
    said = [look(news, endpoint=endpoint) for endpoint in (HERE, THERE, THERE, HERE)]
    assert said == [[], [wire.NatEndpointChanged("A", THERE)], [], [wire.NatEndpointChanged("A", HERE)]]


def test_who_calls_first_has_an_endpoint_then() -> None:
    news = PeerEvents()
    assert look(news, math.inf, "") == []
    assert look(news, 1, THERE) == [wire.NatEndpointChanged("A", THERE), wire.PeerHealthChanged("A", True)]


def test_an_endpoint_that_this_node_sets_is_no_news() -> None:
    news = PeerEvents()
    look(news)
    news.configured("g", [PeerChange("A", endpoint=THERE), PeerChange("B", endpoint=THERE)])
    assert look(news, endpoint=THERE) == []
    news.configured("g", [PeerChange("A", remove=True), PeerChange("A", allowed_ips=("10.0.0.0/26",))])
    assert look(news, endpoint=HERE) == [wire.NatEndpointChanged("A", HERE)], "it came from there all the same"


def test_a_peer_that_was_taken_away_and_given_anew_is_not_known() -> None:
    news = PeerEvents()
    look(news)
    assert news.update("g", {}, {}) == []
    assert look(news, math.inf, THERE) == []


def test_devices_do_not_meet() -> None:
    news = PeerEvents()
    look(news, device="g")
    assert look(news, math.inf, THERE, device="d") == []
    news.forget("g")
    assert look(news, math.inf, THERE, device="g") == []
