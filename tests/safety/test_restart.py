"""A daemon that is killed and started again costs no packet, through a tunnel as well."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.mesh.fleet import Fleet, Node, link, wait_for
from tests.upgrade.streams import lost, stream


def test_a_tunnel_carries_on_while_the_daemon_is_replaced(
    fleet: Fleet, engine: None, frozen: Callable[..., Node]
) -> None:
    one, two = frozen(1, start=False), frozen(2, start=False)
    link(one, two)
    for node in (one, two):
        node.start()
    here, there = one.container(), two.container()
    wait_for(lambda: here.pings(there.address), "the tunnel")
    with stream(here, there) as told:
        for _ in range(3):
            one.end(signal.SIGKILL)
            one.start()
        unanswered = lost(told())
    assert set(unanswered.values()) == {0}, unanswered
