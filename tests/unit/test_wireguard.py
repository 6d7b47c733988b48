"""What a WireGuard device is told: as little as makes it right, and in an order that leaves no peer without a route."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.daemon.model import wireguard
from cni.daemon.model.endpoints import split_endpoint
from cni.daemon.model.wireguard import Peer, Target
from cni.host.tunnel_routes import UnderlayRoute
from cni.host.wg_types import PeerChange, PeerSeen

NOW = 1_800_000_000.0
HERE, THERE, NEW = "192.0.2.7:51420", "198.51.100.9:4242", "192.0.2.8:51420"


def seen(key: str = "A", endpoint: str = HERE, allowed: tuple[str, ...] = ("10.0.5.0/26",), age: float = 5) -> PeerSeen:
    return PeerSeen(key, endpoint, frozenset(allowed), 25, int(NOW - age) if age >= 0 else 0)


def peer(
    key: str = "A", endpoint: str = HERE, allowed: tuple[str, ...] = ("10.0.5.0/26",), keepalive: int = 25
) -> Peer:
    return Peer(key, endpoint, frozenset(allowed), keepalive)


def told(have: list[PeerSeen], want: list[Peer], configured: dict[str, str] | None = None) -> list[PeerChange]:
    known = {"A": HERE} if configured is None else configured
    by_key = ({each.public_key: each for each in have}, {each.public_key: each for each in want})
    ages = {each.public_key: NOW - each.last_handshake for each in have if each.last_handshake}
    return wireguard.changes(*by_key, known, ages)  # type: ignore[arg-type]


def test_what_is_right_is_left_alone() -> None:
    assert told([seen()], [peer()]) == []


def test_a_new_peer_is_given_everything() -> None:
    assert told([], [peer()]) == [PeerChange("A", False, HERE, ("10.0.5.0/26",), True, 25)]


def test_one_more_network_is_added_and_nothing_else() -> None:
    assert told([seen()], [peer(allowed=("10.0.5.0/26", "10.0.6.0/26"))]) == [
        PeerChange("A", allowed_ips=("10.0.6.0/26",))
    ]


def test_one_network_less_needs_the_rest_said_again() -> None:
    have = seen(allowed=("10.0.5.0/26", "10.0.6.0/26"))
    assert told([have], [peer()]) == [PeerChange("A", allowed_ips=("10.0.5.0/26",), replace=True)]


def test_a_network_that_moves_is_with_its_new_peer_before_the_old_one_goes() -> None:
    changes = told([seen("A")], [peer("B")])
    assert [(change.public_key, change.remove) for change in changes] == [("B", False), ("A", True)]


@pytest.mark.parametrize(
    ("have", "want", "configured", "endpoint"),
    [
        (seen(endpoint=THERE), peer(), {"A": HERE}, ""),  # it roamed: the device knows better
        (seen(endpoint=THERE), peer(), {}, ""),  # a new daemon that adopts: the same
        (seen(endpoint=THERE), peer(endpoint=NEW), {"A": HERE}, NEW),  # configuration changed
        (seen(endpoint=THERE, age=181), peer(), {"A": HERE}, HERE),  # no peer answers there any more
        (seen(endpoint=THERE, age=-1), peer(), {"A": HERE}, HERE),  # never did
        (seen(endpoint=THERE, age=-30), peer(), {"A": HERE}, HERE),
        (seen(endpoint=""), peer(), {}, HERE),
        (seen(endpoint=THERE), peer(endpoint=""), {"A": HERE}, ""),  # it calls: nothing to set
        (seen(), peer(), {}, ""),
    ],
)
def test_an_endpoint_is_set_only_when_it_must(
    have: PeerSeen, want: Peer, configured: dict[str, str], endpoint: str
) -> None:
    changes = told([have], [want], configured)
    assert [change.endpoint for change in changes] == ([endpoint] if endpoint else [])


def test_a_device_made_anew_gets_the_endpoints_that_were_learned() -> None:
    """Peer A is behind a NAT, B was heard where it is called, C moved, D is no peer any more."""
    want = {"A": peer("A", ""), "B": peer("B", HERE), "C": peer("C", HERE)}
    have = {key: seen(key, endpoint) for key, endpoint in (("A", THERE), ("B", HERE), ("C", NEW), ("D", NEW))}
    learned = wireguard.learned_endpoints(have, want, dict.fromkeys(have, 5.0), {"A": NEW, "D": NEW})
    assert learned == {"A": THERE, "C": NEW}
    assert wireguard.learned_endpoints({}, want, {}, learned) == learned
    assert wireguard.learned_endpoints(have, want, dict.fromkeys(have, 500.0), {}) == {}
    made = wireguard.renewed({}, want, {"B": HERE, "C": HERE}, {}, learned=learned, forgotten=())
    assert {change.public_key: change.endpoint for change in made} == {"A": THERE, "B": HERE, "C": NEW}


def test_keepalive_is_corrected_alone() -> None:
    assert told([seen()], [peer(keepalive=0)]) == [PeerChange("A", keepalive=0)]


CIDRS = [f"10.0.{n}.0/24" for n in range(6)]


@st.composite
def books(draw: st.DrawFn) -> dict[str, Peer]:
    holders = draw(st.lists(st.sampled_from(["", "A", "B", "C"]), min_size=6, max_size=6))
    return {
        key: peer(
            key, draw(st.sampled_from([HERE, NEW])), tuple(c for c, h in zip(CIDRS, holders, strict=True) if h == key)
        )
        for key in draw(st.sets(st.sampled_from(["A", "B", "C"])))
    }


def device(before: dict[str, PeerSeen], changes: list[PeerChange]) -> dict[str, PeerSeen]:
    """What WireGuard makes of changes: a CIDR has one peer, the last it was given to."""
    peers = dict(before)
    for change in changes:
        if change.remove:
            peers.pop(change.public_key, None)
            continue
        was = peers.get(change.public_key, PeerSeen(change.public_key))
        for key, other in peers.items():
            kept = other.allowed_ips - set(change.allowed_ips)
            peers[key] = PeerSeen(key, other.endpoint, kept, other.keepalive)
        kept = frozenset() if change.replace else was.allowed_ips
        keepalive = was.keepalive if change.keepalive is None else change.keepalive
        allowed = kept | set(change.allowed_ips)
        peers[change.public_key] = PeerSeen(change.public_key, change.endpoint or was.endpoint, allowed, keepalive)
    return peers


def plain(book: dict[str, Peer]) -> dict[str, PeerSeen]:
    return {key: PeerSeen(key, each.endpoint, each.allowed_ips, each.keepalive) for key, each in book.items()}


@given(books(), books())
def test_whatever_there_was_afterwards_it_is_as_wanted(before: dict[str, Peer], after: dict[str, Peer]) -> None:
    configured = {key: each.endpoint for key, each in before.items()}
    assert device(plain(before), wireguard.changes(plain(before), after, configured, {})) == plain(after)
    assert device(plain(before), wireguard.delta(before, after)) == plain(after)
    assert wireguard.delta(after, after) == []
    assert wireguard.changes(plain(after), after, {}, {}) == []


def test_a_later_book_has_its_keys_and_its_networks() -> None:
    first = [Target("A", (HERE,), ("10.0.1.0/26", "10.0.2.0/26")), Target("ME", (), ("10.0.9.0/26",))]
    later = [Target("B", (NEW,), ("10.0.2.0/26",)), Target("A", (THERE,), ("10.0.1.0/26", "10.0.2.0/26"))]
    found = wireguard.merged([first, later[:1]], "ME")
    assert {key: each.allowed_ips for key, each in found.items()} == {"A": ("10.0.1.0/26",), "B": ("10.0.2.0/26",)}
    found = wireguard.merged([first, later], "ME")
    assert found["A"] == later[1]
    assert found["B"].allowed_ips == ()


def test_who_is_called_elsewhere_keeps_what_is_behind_him() -> None:
    cluster = (Target("A", (HERE,), ("10.0.1.0/26",)), Target("B", (HERE,), ("10.0.2.0/26",)))
    assert wireguard.called_as(cluster, []) == cluster
    found = wireguard.called_as(cluster, [Target("A", (THERE, HERE), ("10.0.9.0/26",)), Target("C", (NEW,))])
    assert found == (Target("A", (THERE, HERE), ("10.0.1.0/26",)), cluster[1])


def test_routes_lead_to_peers_but_never_round_in_a_circle() -> None:
    targets = [
        Target("A", (HERE,), ("10.0.5.0/26", "0.0.0.0/0", "::/0")),
        Target("B", (), ("192.0.2.0/24", "fd00::/64")),
        Target("C", (), ("10.0.7.0/26", "10.0.8.0/26"), routes=("10.0.8.0/26",)),
    ]
    found = wireguard.leads(targets, [ipaddress.ip_address("192.0.2.7")])
    assert {str(net): key for net, key in found.items()} == {"10.0.5.0/26": "A", "fd00::/64": "B", "10.0.8.0/26": "C"}


def test_what_is_behind_tunnels_is_told_without_overlap_and_within_the_overlay() -> None:
    targets = [
        Target("A", (), ("10.200.5.0/26", "10.200.5.0/27", "192.0.2.0/24", "fd00:1::/64")),
        Target("B", (), ("10.200.5.64/26", "10.200.9.7/32")),
    ]
    assert wireguard.behind(targets, ("10.200.0.0/16", "fd00::/16")) == (
        "10.200.5.0/25",
        "10.200.9.7/32",
        "fd00:1::/64",
    )
    assert wireguard.behind([Target("A", (), ("0.0.0.0/0",))], ("10.200.0.0/16",)) == ("10.200.0.0/16",)


@pytest.mark.parametrize(
    ("path", "version", "device_mtu", "mtu"),
    [
        (1500, 4, 1420, 0),
        (1500, 6, 1420, 0),
        (1480, 4, 1420, 0),
        (1479, 4, 1420, 1408),  # 1419 would fit, but not when it is padded
        (1492, 6, 1420, 1408),
        (1400, 4, 1420, 1328),
        (9000, 4, 1420, 0),
        (600, 4, 1420, 576),
        (1300, 6, 1420, 1216),
    ],
)
def test_the_mtu_of_a_narrow_path(path: int, version: int, device_mtu: int, mtu: int) -> None:
    assert wireguard.route_mtu(path, version, device_mtu) == mtu


@pytest.mark.parametrize(
    ("mtu", "learned", "widest", "version", "path"),
    [
        (1500, False, 1500, 4, 1500),
        (1400, True, 1500, 4, 1400),
        (552, True, 1500, 4, 1340),
        (1280, True, 1500, 6, 1360),
        (552, False, 1500, 4, 552),  # the route says so: an operator's word
        (552, True, 1000, 4, 1000),  # never more than the link
    ],
)
def test_what_is_believed_of_a_path(mtu: int, learned: bool, widest: int, version: int, path: int) -> None:
    assert wireguard.believed(UnderlayRoute(2, mtu, learned, widest), version) == path


@given(st.integers(1376, 9000), st.sampled_from([4, 6]))
def test_what_a_route_lets_through_fits_the_path_when_padded(path: int, version: int) -> None:
    device_mtu = 1500
    mtu = wireguard.route_mtu(path, version, device_mtu) or device_mtu
    padded = min(-(-mtu // 16) * 16, device_mtu)
    assert padded + wireguard.OVERHEAD[version] <= path
    assert path - mtu <= 95 or mtu == device_mtu


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("192.0.2.1:5", ("192.0.2.1", 5)),
        ("[fd00::1]:65535", ("fd00::1", 65535)),
        ("a-b.example:51420", ("a-b.example", 51420)),
    ],
)
def test_endpoints(text: str, parts: tuple[str, int]) -> None:
    assert split_endpoint(text) == parts


@pytest.mark.parametrize(
    "text", ["a.example", "a.example:0", "a.example:70000", "a b:5", ":5", "300.1.1.1:5", "a.1:5", ""]
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="socket address"):
        split_endpoint(text)
