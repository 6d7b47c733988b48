"""An address's next owner: it gets the address at once if it requests it by name, and nothing of the last owner."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

from tests.mesh.fleet import Container, Fleet, Node, inside, run

REST = 0.7  # seconds in which a deletion that is late would have happened


def given(container: Container, address: str) -> None:
    """ADD the container with that address, requested by name."""
    container.conf["runtimeConfig"] = {**container.conf.get("runtimeConfig", {}), "ips": [address]}
    result = container.result = json.loads(container.node.plugin("ADD", container))
    container.address = result["ips"][0]["address"].partition("/")[0]
    assert container.address == address


def connected(client: Container, outside: Node) -> tuple[socket.socket, socket.socket]:
    """A TCP connection from a container to an address outside the overlay, its two ends. It is masqueraded: without its
    tracked flow no answer finds the container."""
    with inside(outside.path, lambda: socket.create_server((outside.underlay, 0))) as listener:
        one = client.socket(socket.SOCK_STREAM)
        one.connect(listener.getsockname())
        two, _ = listener.accept()
        two.settimeout(5)
    return one, two


def test_a_new_owner_by_name_is_served_at_once_and_keeps_its_connections(
    frozen: Callable[..., Node], fleet: Fleet
) -> None:
    node, outside = frozen(1), fleet.node(2, start=False)
    first, second = node.container(), node.unattached()
    for client in (first, second):  # the same container again, then another one
        node.plugin("DEL", first)
        given(client, first.address)
        one, two = connected(client, outside)
        with one, two:
            time.sleep(REST)
            two.sendall(b"from outside")
            assert one.recv(100) == b"from outside"


def test_a_new_owner_by_name_inherits_no_flow(frozen: Callable[..., Node], fleet: Fleet) -> None:
    node, outside = frozen(1), fleet.node(2, start=False)
    first, second = node.container(), node.unattached()
    one, two = connected(first, outside)
    with one, two:
        node.plugin("DEL", first)
        given(second, first.address)
        tracked = run("ip", "netns", "exec", node.name, "cat", "/proc/net/nf_conntrack")
        assert f"src={first.address} " not in tracked
