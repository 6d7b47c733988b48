"""Endpoints of a silent peer are tried in turn; one that answers stays."""

from __future__ import annotations

from cni.daemon.mesh.endpoint_turns import ROUNDS, TRY, EndpointTurns
from cni.daemon.mesh.silence import GRACE, Silence
from cni.daemon.model.wireguard import DEAD, Target
from cni.host.wg_types import PeerSeen

A, B, C = "192.0.2.1:1", "192.0.2.2:2", "[2001:db8::3]:3"


def passes(turns: EndpointTurns, count: int, alive_at: str = "", candidates: tuple[str, ...] = (A, B, C)) -> list[str]:
    return [turns.choose("wg", "K", candidates, alive_at, (TRY + 0.5) * each) for each in range(count)]


def test_a_silent_peer_is_called_at_each_of_its_endpoints_in_turn() -> None:
    turns = EndpointTurns()
    assert passes(turns, 5) == [A, B, C, A, B]
    assert turns.firsts("wg") == {"K": A}


def test_an_endpoint_has_its_time() -> None:
    turns = EndpointTurns()
    assert [turns.choose("wg", "K", (A, B), "", at) for at in (0.0, TRY / 2, TRY - 0.1, TRY)] == [A, A, A, B]


def test_where_the_peer_answers_it_is_called() -> None:
    turns = EndpointTurns()
    assert passes(turns, 2) == [A, B]
    assert passes(turns, 9, alive_at=B) == [B] * 9
    assert turns.choose("wg", "K", (A, B, C), "203.0.113.9:4", 900.0) == B, "it roamed: WireGuard follows by itself"
    assert turns.choose("wg", "K", (A, B, C), None, 901.0) == B, "the device was not read"


def test_another_first_endpoint_is_preferred() -> None:
    turns = EndpointTurns()
    assert passes(turns, 2) == [A, B]
    assert turns.choose("wg", "K", (C, A, B), B, 20.0) == C


def test_an_endpoint_that_is_gone_is_not_called() -> None:
    turns = EndpointTurns()
    assert passes(turns, 2) == [A, B]
    assert turns.choose("wg", "K", (A, C), B, 20.0) == A


def test_a_daemon_goes_on_where_the_one_before_was() -> None:
    before, after = EndpointTurns(), EndpointTurns()
    assert passes(before, 2) == [A, B]
    after.restore("wg", before.firsts("wg"), {"K": B}, 0.0)
    assert after.choose("wg", "K", (A, B, C), B, 0.0) == B
    fresh = EndpointTurns()
    fresh.restore("wg", before.firsts("wg"), {"K": B}, 0.0)
    assert fresh.choose("wg", "K", (C, A, B), B, 0.0) == C


def test_haste_ends() -> None:
    turns = EndpointTurns()
    hasty = []
    for each in range(10):
        turns.choose("wg", "K", (A, B, C), "", (TRY + 0.5) * each)
        hasty.append(turns.is_in_haste())
    assert hasty == [True] * (ROUNDS * 3) + [False] * (10 - ROUNDS * 3)
    turns.choose("wg", "K", (A,), "", 99.0)
    turns.keep("wg", {})
    assert not turns.is_in_haste()


# --- silence ----------------------------------------------------------------------------------------------------------


def silent(target: Target, readings: list[tuple[float, int, int]], age: float = float("inf")) -> list[bool]:
    """Whether the peer counts as silent after each reading: (time, bytes sent, bytes received)."""
    silence, verdicts = Silence(), []
    for now, sent, received in readings:
        seen = PeerSeen("K", A, sent=sent, received=received)
        silence.note("wg", {"K": target}, {"K": seen}, {"K": age}, now)
        verdicts.append("K" in silence.of("wg"))
    return verdicts


def test_a_peer_that_never_answered_is_silent() -> None:
    assert silent(Target("K", (A,), keepalive=25), [(0.0, 0, 0), (GRACE - 1, 148, 0), (GRACE, 296, 0)]) == [
        False,
        False,
        True,
    ]


def test_a_peer_with_a_session_is_not() -> None:
    target = Target("K", (A,), keepalive=25)
    assert silent(target, [(0.0, 0, 0), (GRACE, 296, 0)], DEAD - 1) == [False, False]
    assert silent(target, [(0.0, 0, 0), (GRACE, 296, 0)], DEAD) == [False, True]


def test_without_keepalive_only_what_was_sent_counts() -> None:
    target = Target("K", (A,))
    idle = [(each * GRACE, 500, 500) for each in range(4)]
    assert silent(target, idle) == [False] * 4
    assert silent(target, [(0.0, 0, 0), (1.0, 148, 0), (GRACE, 296, 0), (GRACE + 1, 296, 0)]) == [False] * 3 + [True]
    assert silent(target, [(0.0, 0, 0), (1.0, 148, 0), (GRACE, 296, 92), (GRACE + 1, 296, 92)]) == [False] * 4


def test_who_calls_by_itself_is_not_silent() -> None:
    readings = [(0.0, 0, 0), (GRACE, 0, 0)]
    assert silent(Target("K", (), keepalive=25), readings) == [False, False]
    assert silent(Target("K", (A,), keepalive=25, owner="edge:x"), readings) == [False, False]
