"""A mesh in which one of three nodes runs ZLayer's own daemon, driven by our client; its faults worked around or named.

Numbers like 5.3/22 are the contract's. Both other nodes are ours, and peers of each other by their YAML; all that
concerns the third is said by `OverlayManager`, to its daemon and to ours.
"""

from __future__ import annotations

import ipaddress
import itertools
import signal
import socket
from collections.abc import Iterator

import pytest

from cni.host import wg_engine
from cni.overlay.errors import UnsupportedPeerChange

from .fleet import Container, Fleet, Node, arrives, echoes, fleet, link, run
from .upstreams import PROGRAM, UpstreamNode, manager_of, peer_of, upstream_node

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not wg_engine.find(), reason="no WireGuard engine here (apt-get install wireguard-go)"),
    pytest.mark.skipif(not PROGRAM.exists(), reason=f"ZLayer's daemon is not in {PROGRAM}: scripts/interop builds it"),
]
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


def one_cidr(number: int) -> dict[str, str]:
    """Settings of ours that put everything behind the node into one CIDR, for ZLayer's daemon takes one (5.3/23)."""
    first = f"10.200.{number * 32}.0"
    return {"slice_cidr": f"{first}/26", "service_cidr": f"{first}/19"}


def outside(fleet: Fleet, theirs: UpstreamNode, stem: str) -> str:
    """A service name whose subnet on ZLayer's node is in no node's range: it takes one without asking (5.3/26)."""
    taken = [ipaddress.ip_network(n.settings["service_cidr"]) for n in fleet.nodes.values() if n is not theirs]
    names = (f"{stem}{n}" for n in itertools.count())
    return next(name for name in names if not any(_net(theirs.subnet(name)).overlaps(each) for each in taken))


def _net(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


@pytest.fixture(scope="module")
def mixed() -> Iterator[Fleet]:
    with fleet("u") as made:
        ours = [made.node(number, start=False, **one_cidr(number)) for number in (1, 2)]
        link(*ours)
        for node in ours:
            node.start()
        theirs = upstream_node(made, 3)
        for node in ours:
            theirs.manager.add_global_peer(peer_of(node, str(node.settings["service_cidr"])))
        yield made


@pytest.fixture(scope="module")
def theirs(mixed: Fleet) -> UpstreamNode:
    node = mixed.nodes[3]
    assert isinstance(node, UpstreamNode)
    return node


def know(mixed: Fleet, theirs: UpstreamNode) -> None:
    """Tell our nodes what is behind ZLayer's by now; a list is no fault with ours."""
    known = {_subnet(each.address) for each in theirs.containers} | {str(theirs.settings["slice_cidr"])}
    for node in ours_of(mixed):
        with manager_of(node) as manager:
            manager.add_global_peer(peer_of(theirs, *sorted(known)))


def _subnet(address: str) -> str:
    return str(ipaddress.ip_interface(f"{address}/26").network)


def ours_of(mixed: Fleet) -> list[Node]:
    return [node for node in mixed.nodes.values() if not isinstance(node, UpstreamNode)]


def is_closed(one: Container, two: Container) -> bool:
    return not one.pings(two.address, wait=0.4) and not echoes(one, two, STREAM, 10, patience=0.5)


@pytest.mark.parametrize("mode", ["auto", "shared"])
def test_containers_of_all_three_reach_each_other(mixed: Fleet, theirs: UpstreamNode, mode: str) -> None:
    """By ICMP, UDP and TCP, in both directions, large and small, with one CIDR for each of our nodes."""
    service = outside(mixed, theirs, f"svc-{mode}")
    there = [node.container(service, mode=mode) for node in mixed.nodes.values()]
    know(mixed, theirs)
    for one, two in itertools.permutations(there, 2):
        arrives(one, two)
        assert echoes(one, two, DGRAM, 1200), f"{one.name} -> {two.name}"
        assert echoes(one, two, DGRAM, 9000), f"{one.name} -> {two.name}"
        assert echoes(one, two, STREAM, 300_000), f"{one.name} -> {two.name}"
    assert there[0].pings(there[2].address, there[0].mtu - 28), "as large as our MTU, unfragmented"
    # Its containers have 1500 bytes above a device of 1420 (6.5): they must be told, packet by packet; ours must not.
    assert there[0].mtu == 1420
    assert "mtu 1500" in there[2].run("ip", "link", "show", "eth0")
    assert not there[2].pings(there[0].address, 1500 - 28)


def test_what_the_fence_says_to_a_node_that_has_none(mixed: Fleet, theirs: UpstreamNode) -> None:
    """What comes from ZLayer's node is of the flat mesh to us, whatever it says itself: its own fence lets everything
    through (5.3/1) and its members are not published (5.3/8). So a member here is closed to all of it, both ways."""
    one = mixed.nodes[1]
    flat, red = one.container("fence"), one.container("fence", isolationNetwork="red")
    lonely = one.container("fence-lonely", mode="isolated")
    service = outside(mixed, theirs, "fence")
    plain, said_red = theirs.container(service), theirs.container(service, isolationNetwork="red")
    know(mixed, theirs)
    for far in (plain, said_red):
        arrives(flat, far)
        arrives(far, flat)
        assert echoes(far, flat, STREAM, 100_000)
        for member in (red, lonely):
            assert is_closed(far, member), f"{far.name} -> {member.name}"
            assert is_closed(member, far), f"{member.name} -> {far.name}"
    # Nor does the node itself come in, or a source that it makes up.
    host = ["ip", "netns", "exec", theirs.name, "ping", "-c", "1", "-W", "1", "-I"]
    own = str(theirs.manager.status().node_ip)
    assert "1 received" in run(*host, own, flat.address)
    for address in (red.address, lonely.address):
        assert "1 received" not in run(*host, own, address, check=False)
    forged = mixed.nodes[2].container("fence", isolationNetwork="red")
    plain.run("ip", "address", "add", f"{forged.address}/32", "dev", "eth0")
    assert "1 received" not in plain.run("ping", "-c", "1", "-W", "1", "-I", forged.address, red.address, check=False)


def test_our_client_keeps_it_from_stopping(mixed: Fleet, theirs: UpstreamNode) -> None:
    """A key that is set twice stops it for ever (5.3/22), a second CIDR is refused (5.3/23): it gets neither."""
    one = mixed.nodes[1]
    service = outside(mixed, theirs, "kept")
    here, far = one.container("kept"), theirs.container(service)
    know(mixed, theirs)
    arrives(here, far)
    wide, narrow = str(one.settings["service_cidr"]), _subnet(here.address)
    for cidr in (wide, narrow, wide, wide):
        theirs.manager.add_global_peer(peer_of(one, cidr))
        arrives(far, here)
    with pytest.raises(UnsupportedPeerChange):
        theirs.manager.add_allowed_ip(one_key(one), "10.200.0.0/26")
    halves = [str(each) for each in ipaddress.ip_network(wide).subnets()]
    theirs.manager.add_global_peer(peer_of(one, *halves))  # folded into one
    arrives(here, far)
    with theirs.client(None) as stranger, pytest.raises(UnsupportedPeerChange):
        stranger.remove_allowed_ip(one_key(one), wide)  # given by another program: it is not touched
    assert theirs.manager.status().peer_count == 2
    arrives(far, here)


def one_key(node: Node) -> str:
    return str(node.status().public_key)


def test_it_returns_with_another_key(mixed: Fleet, theirs: UpstreamNode) -> None:
    """It keeps no key, no peer and no attachment (6.14). Told anew, on both sides, it carries traffic again; what it
    attached before is on its bridge still, and that has its gateway back with the service."""
    one = mixed.nodes[1]
    service = outside(mixed, theirs, "again")
    here, far = one.container("again"), theirs.container(service)
    know(mixed, theirs)
    arrives(here, far)
    before = theirs.key()
    theirs.end(signal.SIGKILL)
    assert not here.pings(far.address, wait=0.4)
    theirs.manager = theirs.client(str(theirs.settings["slice_cidr"]))
    theirs.start()
    assert theirs.key() != before
    for node in ours_of(mixed):
        theirs.manager.add_global_peer(peer_of(node, str(node.settings["service_cidr"])))
        with manager_of(node) as manager:
            manager.remove_global_peer(before)
    know(mixed, theirs)
    theirs.manager.setup_service_overlay(service)
    arrives(here, far)
    arrives(far, here)


def test_a_dedicated_service_of_its_carries_nothing_across(mixed: Fleet, theirs: UpstreamNode) -> None:
    """Device and bridge have one address, the device first, so it routes its own containers' packets into the tunnel
    (5.3/24). Use another mode with such a node."""
    one, service = mixed.nodes[1], outside(mixed, theirs, "ded")
    with manager_of(one) as manager:
        mine, its = (each.setup_service_overlay(service, "dedicated") for each in (manager, theirs.manager))
        here, far = one.container(service, mode="dedicated"), theirs.container(service, mode="dedicated")
        for at, other, said in ((manager, theirs, its), (theirs.manager, one, mine)):
            assert said.wg_public_key
            assert said.subnet
            peer = peer_of(other, said.subnet, key=said.wg_public_key, port=said.wg_port or 0)
            at.add_service_peer(service, peer, said.subnet)
    assert f"dev {its_device(theirs)}" in run("ip", "-n", theirs.name, "route", "get", far.address)
    assert is_closed(here, far)
    assert is_closed(far, here)


def its_device(theirs: UpstreamNode) -> str:
    (dedicated,) = theirs.manager.status().dedicated_services or ()
    return str(dedicated.interface)
