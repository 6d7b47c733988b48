"""An address's next owner: it gets the address at once if it requests it by name, and nothing of the last owner."""

from __future__ import annotations

import functools
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mesh.fleet import Container, Fleet, Node, inside, run, seconds_until

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


DUAL = {"cluster_cidr6": "fd00:200::/48"}
WRONG = "06:00:00:00:00:09"
MACS = ["06:00:00:00:00:01", "06:00:00:00:00:02"]


def known(container: Container, address: str) -> str:
    """The MAC with which the container knows its neighbour."""
    entries = json.loads(container.run("ip", "-j", "neigh", "show", address) or "[]")
    return str(entries[0].get("lladdr", "")) if entries else ""


def learns(container: Container, addresses: list[str], mac: str) -> float:
    """How long it takes until the container knows these neighbours with that MAC."""
    return seconds_until(lambda: {known(container, address) for address in addresses} == {mac}, "announcements", 5)


def admitted(container: Container, mac: str) -> bool:
    """Whether the fence admits the MAC at the container's port."""
    element = f"{{ {container.result['interfaces'][1]['name']} . {mac} }}"
    words = ["nft", "get", "element", "bridge", "zlayer_cni", "macs", element]
    return mac in run("ip", "netns", "exec", container.node.name, *words, check=False)


def test_the_neighbours_of_a_new_owner_with_another_mac_learn_it_at_once(frozen: Callable[..., Node]) -> None:
    node = frozen(1, **DUAL)
    neighbour, other = node.container(), node.container(isolationNetwork="blue")
    first = node.container(runtimeConfig={"mac": MACS[0]})
    addresses = [first.address, first.address6]
    assert all(neighbour.pings(address) for address in addresses)
    for one in (neighbour, other):  # believed for long, as after a conversation
        for address in addresses:
            one.run("ip", "neigh", "replace", address, "lladdr", MACS[0], "dev", "eth0", "nud", "reachable")
    node.plugin("DEL", first)
    second = node.unattached(runtimeConfig={"mac": MACS[1], "ips": addresses})
    node.plugin("ADD", second)
    assert learns(neighbour, addresses, MACS[1]) < 1.0
    assert all(neighbour.pings(address) for address in addresses)
    assert {known(other, address) for address in addresses} == {MACS[0]}, "another network hears nothing"


DEAF = ("setpriv", "--bounding-set", "-net_broadcast", "--inh-caps", "-net_broadcast")


@pytest.mark.parametrize("deaf", [False, True], ids=["announced-by-the-kernel", "without-net-broadcast"])
def test_a_mac_that_the_chain_sets_is_admitted_at_once_and_announced(
    frozen: Callable[..., Node], request: pytest.FixtureRequest, deaf: bool
) -> None:
    """As the plugin `tuning` does it, from outside: no process of the container is there yet."""
    node = frozen(1, start=False, **DUAL)
    node.program = (*DEAF, *node.program) if deaf else node.program
    node.start()
    neighbour, tuned = node.container(), node.unattached()
    tuned.process.kill()
    tuned.path = f"{node.path}-tuned"  # the directory of `ip netns` is shared with the daemon's mount namespace
    run("ip", "netns", "add", Path(tuned.path).name)
    request.addfinalizer(lambda: run("ip", "netns", "del", Path(tuned.path).name))
    tuned.result = json.loads(node.plugin("ADD", tuned))
    tuned.address, tuned.address6 = (ip["address"].partition("/")[0] for ip in tuned.result["ips"])
    gateway = tuned.result["ips"][0]["gateway"]
    addresses = [tuned.address, tuned.address6]
    for mac in MACS:
        for address in addresses:
            neighbour.run("ip", "neigh", "replace", address, "lladdr", WRONG, "dev", "eth0", "nud", "reachable")
        run("nsenter", f"--net={tuned.netns}", "ip", "link", "set", "eth0", "address", mac)
        assert seconds_until(functools.partial(admitted, tuned, mac), "the fence") < (4.0 if deaf else 0.2)
        run("nsenter", f"--net={tuned.netns}", "ping", "-c1", "-W1", gateway)
        assert learns(neighbour, addresses, mac) < 1.0
    assert ("announces no changes in containers" in node.log.read_text()) is deaf
