"""`peers[].relay`: a peer to which relays are the only paths, and one to which they are none."""

from __future__ import annotations

import time

from tests.mesh.fleet import wait_for

from .lab import Lab
from .test_paths import SERVERS, echoed, path_of
from .test_relay import RELAY

SETTLED = 12.0  # seconds: longer than the first attempt of either side


def test_only_relays_are_used_although_both_are_public(lab: Lab) -> None:
    lab.start_stun()
    lab.joined("public", 3, nat=RELAY)
    second = lab.joined("public", 2, nat=SERVERS)
    peer = {"public_key": str(second.status().public_key), "allowed_ips": [], "relay": "only"}
    first = lab.joined("public", 1, nat=SERVERS, peers=[peer])
    began = time.monotonic()
    wait_for(lambda: echoed(first, second), "the tunnel")
    time.sleep(max(0.0, SETTLED - (time.monotonic() - began)))
    assert {path_of(first, second)["path"], path_of(second, first)["path"]} == {"relayed"}
    assert str(path_of(first, second)["endpoint"]).startswith(f"{lab.public_address(3)}:400")
    assert echoed(first, second)
    first.end()
    first.start()
    wait_for(lambda: path_of(first, second)["path"] == "relayed", "the relay again")


def test_no_relay_is_asked_for_a_peer_that_may_not_be_relayed(lab: Lab) -> None:
    lab.start_stun()
    relay = lab.joined("public", 3, nat=RELAY)
    second = lab.joined("sym", 2, nat=SERVERS)
    peer = {"public_key": str(second.status().public_key), "allowed_ips": [], "relay": "never"}
    first = lab.joined("sym", 1, nat=SERVERS, peers=[peer])
    wait_for(lambda: path_of(first, relay)["path"], "a path to the relay")
    wait_for(lambda: path_of(first, second), "the peer")
    time.sleep(SETTLED)
    assert path_of(first, second)["path"] == "searching"
    assert not echoed(first, second)
