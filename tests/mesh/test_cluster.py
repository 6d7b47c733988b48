"""Three nodes that know nothing of each other but where etcd is: they find ids, subnets and peers, and keep them."""

from __future__ import annotations

import ipaddress
import itertools
import re
import socket
import subprocess
from collections.abc import Iterator

import pytest

from cni.overlay import wire

from .etcds import PROGRAM, Clustered
from .fleet import PORT, Container, Node, arrives, echoes, node_key, run, wait_for
from .test_static import Machine

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


@pytest.fixture(scope="module")
def trio() -> Iterator[Clustered]:
    made = Clustered("c")
    try:
        for number in (1, 2, 3):
            made.member(number, cluster_cidr6="fd00:200::/48")
        for node in made.nodes.values():
            wait_for(lambda node=node: node.status().peer_count == 2, "two peers")  # type: ignore[misc]
        yield made
    finally:
        made.clean()


def pair(a: Node, b: Node, **conf: object) -> tuple[Container, Container]:
    one, two = a.container(**conf), b.container(**conf)
    wait_for(lambda: one.pings(two.address), "the way there")
    return one, two


def test_no_two_nodes_have_the_same(trio: Clustered) -> None:
    found = [node.status() for node in trio.nodes.values()]
    slices = [ipaddress.ip_network(str(status.slice_cidr)) for status in found]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(slices, 2))
    assert len({status.node_ip for status in found}) == 3
    assert len({node.tool("status")["node"]["node_id"] for node in trio.nodes.values()}) == 3


@pytest.mark.parametrize("mode", ["auto", "shared", "isolated", "dedicated"])
def test_containers_on_any_two_nodes_reach_each_other(trio: Clustered, mode: str) -> None:
    service = f"svc-{mode}"
    there = [node.container(service, mode=mode) for node in trio.nodes.values()]
    for one, two in itertools.permutations(there, 2):
        wait_for(lambda one=one, two=two: one.pings(two.address), f"{one.name} -> {two.name}")  # type: ignore[misc]
        wait_for(lambda one=one, two=two: one.pings(two.address6), "IPv6")  # type: ignore[misc]
        assert one.pings(two.address, one.mtu - 28)
    assert not there[0].pings(there[1].address, there[0].mtu - 27)
    for one, two in itertools.combinations(there, 2):
        assert echoes(one, two, DGRAM, 1300)
        assert echoes(one, two, DGRAM, 20000)
        assert echoes(one, two, STREAM, 300_000)
        assert echoes(two, one, STREAM, 300_000, six=True)


def reaches(one: Container, two: Container) -> bool:
    """By both families."""
    return one.pings(two.address) and one.pings(two.address6)


def is_cut_off(one: Container, two: Container) -> bool:
    """By both families."""
    return not one.pings(two.address, wait=0.4) and not one.pings(two.address6, wait=0.4)


def members_elsewhere(node: Node, network: str) -> set[str]:
    """The members of a network on other nodes, as this one knows them."""
    networks = {each["isolation_network"]: each for each in node.tool("networks")["networks"]}
    return set(networks[network]["remote_members"]) if network in networks else set()


def test_networks_span_nodes_and_nobody_else_gets_in(trio: Clustered) -> None:
    one, two, three = trio.nodes.values()
    red1, red2 = one.container("iso-a", isolationNetwork="red"), two.container("iso-b", isolationNetwork="red")
    blue2, blue3 = two.container("iso-b", isolationNetwork="blue"), three.container("iso-c", isolationNetwork="blue")
    flat1, flat3 = one.container("iso-a"), three.container("iso-c")
    for a, b in ((red1, red2), (red2, red1), (blue2, blue3), (blue3, blue2), (flat1, flat3), (flat3, flat1)):
        wait_for(lambda a=a, b=b: reaches(a, b), f"{a.name} -> {b.name}")  # type: ignore[misc]
    apart = [(red1, blue2), (red1, blue3), (red2, blue2), (red1, flat3), (red2, flat1), (red2, flat3), (blue3, flat1)]
    for a, b in apart:
        assert is_cut_off(a, b), f"{a.name} -> {b.name}"
        assert is_cut_off(b, a), f"{b.name} -> {a.name}"
    # That red and blue reach each other says nothing of what this node knows of blue by now.
    blue = {address for each in (blue2, blue3) for address in (each.address, each.address6)}
    wait_for(lambda: members_elsewhere(one, "red") == {red2.address, red2.address6}, "what is said of red")
    wait_for(lambda: members_elsewhere(one, "blue") == blue, "what is said of blue")
    two.remove(red2)
    wait_for(lambda: members_elsewhere(one, "red") == set(), "red is alone")
    flat2 = two.container("iso-b")  # a container that gets a member's address later is no member
    assert is_cut_off(flat2, red1)
    assert is_cut_off(red1, flat2)


def test_a_guest_is_of_its_network_on_every_node(trio: Clustered) -> None:
    one, two, _ = trio.nodes.values()
    amber, flat = two.container("iso-b", isolationNetwork="amber"), two.container("iso-b")
    config = one.ask(wire.AttachContainer(wire.GuestManaged("vm"), "iso-a", False, isolation_network="amber"))
    assert isinstance(config, wire.GuestConfig), config
    guest = Machine(trio, 9, config.private_key, config.overlay_ip)
    guest.peer(config.peers[0].public_key, f"{one.underlay}:{config.listen_port}", config.peers[0].allowed_ips)
    wait_for(lambda: config.overlay_ip in members_elsewhere(two, "amber"), "what is said of amber")
    wait_for(lambda: guest.pings(amber.address), "the guest's way")
    assert amber.pings(guest.address)
    assert not guest.pings(flat.address, wait=0.4)
    assert not flat.pings(guest.address, wait=0.4)
    one.ask(wire.DetachContainer(wire.GuestManaged("vm")))
    wait_for(lambda: config.overlay_ip not in members_elsewhere(two, "amber"), "the guest has left")
    assert not amber.pings(guest.address, wait=0.4)


def test_why_says_on_each_node_what_packets_do(trio: Clustered) -> None:
    """Of containers here and on other nodes, and of nodes; both ends are asked, by their addresses."""
    one, two, three = trio.nodes.values()
    there = [
        *(node.container("why", isolationNetwork="green") for node in (one, two)),
        two.container("why", isolationNetwork="grey"),
        *(node.container("why") for node in (one, three)),
    ]
    green = {there[1].address, there[1].address6}
    wait_for(lambda: green <= members_elsewhere(one, "green"), "what is said of green")
    for each in there[2:3]:
        wait_for(lambda each=each: each.address in members_elsewhere(one, "grey"), "what is said of grey")  # type: ignore[misc]
    arrives(there[0], there[1])
    arrives(there[3], there[4])
    asked = 0
    for a, b in itertools.permutations(there, 2):
        for src, dst in ((a.address, b.address), (a.address6, b.address6)):
            may = b.network == a.network
            assert a.pings(dst, wait=4.0 if may else 0.4) == may
            for node in {a.node, b.node}:
                assert node.why(src, dst) == may, f"{a.name} -> {b.name}, on {node.name}"
                asked += 1
    for source in there:
        for node in (one, two):
            own = str(node.status().node_ip)
            assert node.why(source.address, own) == source.pings(own, wait=1.0), f"{source.name} -> {node.name}"
            assert source.node.why(source.address, own) == node.why(source.address, own)
            asked += 1
    assert asked > 40


def test_a_member_reaches_its_own_node_and_no_other(trio: Clustered) -> None:
    one, two, _ = trio.nodes.values()
    red = one.container("iso-a", isolationNetwork="red")
    own, other = (str(node.status().node_ip) for node in (one, two))
    assert red.pings(own)
    assert not red.pings(other, wait=0.4)


def test_the_underlay_sees_nothing_but_wireguard_and_etcd(trio: Clustered) -> None:
    capture = trio.directory / "underlay.pcap"
    words = ["ip", "netns", "exec", trio.underlay, "tcpdump", "-Z", "root", "-i", "under0", "-w", str(capture), "-U"]
    tcpdump = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: capture.exists() and capture.stat().st_size >= 24, "tcpdump")
        there = [node.container("seen") for node in trio.nodes.values()]
        for one, two in itertools.permutations(there, 2):
            wait_for(lambda one=one, two=two: reaches(one, two), "the way")  # type: ignore[misc]
        assert echoes(there[0], there[1], STREAM, 200_000)
        assert echoes(there[1], there[2], DGRAM, 9000)
    finally:
        tcpdump.terminate()
        tcpdump.wait(20)

    def count(expression: str) -> int:
        said = run("tcpdump", "-n", "-r", str(capture), *expression.split())
        return len([line for line in said.splitlines() if re.match(r"\d\d:", line)])

    ours = "udp portrange 51420-51676"
    neighbours = "arp or ip6 proto 58 or ip6[6] == 0"
    assert count(ours) > 100
    assert count("tcp port 2379") > 0
    assert count(f"not ( {ours} ) and not tcp port 2379 and not ( {neighbours} )") == 0
    assert count("ip[6:2] & 0x3fff != 0") == 0, "nothing had to be fragmented"


def test_yaml_peers_beside_a_cluster(trio: Clustered) -> None:
    """One that was written down for what is a node of the cluster now takes nothing from it, and may say where it is
    called; one outside the cluster is a peer as without. The last test here, for it adds a node."""
    two = trio.nodes[2]
    outside = trio.node(8, start=False, slice_cidr="10.201.9.0/26", cluster_cidr="10.200.0.0/15", service_cidr=None)
    stale = {"public_key": node_key(two), "endpoint": f"{two.underlay}:{PORT}", "allowed_ips": ["10.200.255.192/26"]}
    other = {"public_key": node_key(outside), "endpoint": f"{outside.underlay}:{PORT}"}
    both = [stale, {**other, "allowed_ips": ["10.201.9.0/26"]}]
    mixed = trio.member(4, peers=both, cluster_cidr6="fd00:200::/48")
    wait_for(lambda: mixed.status().peer_count == 4, "all peers")
    one, two_ = mixed.container("mixed"), two.container("mixed")
    arrives(one, two_)
    arrives(two_, one)
    found = {peer["public_key"]: peer["allowed_ips"] for peer in mixed.tool("peers")}
    assert found[other["public_key"]] == ["10.201.9.0/26"]
    assert "10.200.255.192/26" not in found[stale["public_key"]]
