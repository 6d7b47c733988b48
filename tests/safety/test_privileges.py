"""What the programs beside the daemon may do: no more than they use, however the daemon was started."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mesh.fleet import Node, link, wait_for

pytestmark = pytest.mark.usefixtures("engine")
USED = 1 << 12 | 1 << 10  # CAP_NET_ADMIN: the device; CAP_NET_BIND_SERVICE: a port below 1024 (capabilities(7))


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_an_engine_has_the_capabilities_it_uses_and_can_gain_none(frozen: Callable[..., Node]) -> None:
    """Outside of a unit as well, where the daemon has all of root's; and it can do all it must: a port below 1024."""
    nodes = [frozen(number, start=False, wg_port=443) for number in (1, 2)]
    link(*nodes)
    for node in nodes:
        node.start()
    one, two = (node.container() for node in nodes)
    wait_for(lambda: one.pings(two.address), "packets between the nodes", 30)
    engine = nodes[0].engine()
    assert engine, "the node's engine is a program here"
    found = _status(engine)
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(found[name], 16) == USED, f"{name} is {found[name]}"
    assert (int(found["CapInh"], 16), int(found["CapAmb"], 16), found["NoNewPrivs"]) == (0, 0, "1")
    daemon = nodes[0].daemon
    assert daemon is not None
    assert _status(daemon.pid)["CapEff"] == _status(os.getpid())["CapEff"], "the daemon keeps what it has"


def test_an_engine_of_a_daemon_before_is_adopted(frozen: Callable[..., Node]) -> None:
    """One that has less than the daemon goes on with the next daemon, as any other does."""
    nodes = [frozen(number, start=False) for number in (1, 2)]
    link(*nodes)
    for node in nodes:
        node.start()
    one, two = (node.container() for node in nodes)
    wait_for(lambda: one.pings(two.address), "packets between the nodes", 30)
    engine = nodes[0].engine()
    nodes[0].end()
    nodes[0].start()
    assert nodes[0].engine() == engine
    assert one.pings(two.address)
    wait_for(lambda: nodes[0].tool("status")["wireguard"]["alive"] == 1, "the peer is alive")
    assert nodes[0].tool("status")["problems"] == []
