"""Nodes whose peers stand in their YAML, came by token, or were told by an agent; guests and edges; MTUs; no engine."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.cli import metrics
from cni.daemon.fence.explain.remote import UNKNOWN_THERE
from cni.host import wg_engine
from cni.overlay import wire
from tests.eyes.calls import read

from .fleet import Agent, Fleet, Node, arrives, echoes, fleet, inside, link, run, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not wg_engine.find(), reason="no WireGuard engine here (apt-get install wireguard-go)"),
]
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
BEYOND = "203.0.113.1"  # an address outside the overlay, by the nodes' default route
OTHER = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="


@pytest.fixture(scope="module")
def pair() -> Iterator[Fleet]:
    with fleet("s") as made:
        nodes = [made.node(number, start=False) for number in (1, 2)]
        link(*nodes)
        for node in nodes:
            node.start()
        yield made


def test_containers_reach_each_other(pair: Fleet) -> None:
    one, two = (pair.nodes[n].container() for n in (1, 2))
    wait_for(lambda: one.pings(two.address), "the first handshake")
    assert two.pings(one.address)
    assert one.mtu == 1420
    assert one.pings(two.address, one.mtu - 28), "as large as the MTU, unfragmented"
    assert not one.pings(two.address, one.mtu - 27)
    for size in (1, 1400, 9000):
        assert echoes(one, two, DGRAM, size)
        assert echoes(two, one, DGRAM, size)
    assert echoes(one, two, STREAM, 1 << 20)
    assert echoes(two, one, STREAM, 1 << 20)


def test_an_engines_device_hands_its_packets_to_every_processor(pair: Fleet) -> None:
    node = pair.nodes[1]
    path = f"/sys/class/net/{node.device}/queues/rx-0/rps_cpus"
    if not node.engine():
        pytest.skip("the kernel's own WireGuard spreads its work itself")
    if (os.cpu_count() or 1) == 1:
        pytest.skip("this machine has one processor")
    said = run("ip", "netns", "exec", node.name, "cat", path).strip()
    assert int(said.replace(",", ""), 16) == (1 << (os.cpu_count() or 1)) - 1


def test_the_host_itself_reaches_the_other_node_and_its_containers(pair: Fleet) -> None:
    one, two = pair.nodes.values()
    there = two.container()
    run("ip", "netns", "exec", one.name, "ping", "-c", "1", "-W", "3", str(two.status().node_ip))
    run("ip", "netns", "exec", one.name, "ping", "-c", "1", "-W", "3", there.address)
    route = run("ip", "-n", one.name, "route", "get", there.address)
    assert f"dev {one.device}" in route
    assert f"src {one.status().node_ip}" in route


def test_the_tool_tells_how_peers_fare(pair: Fleet) -> None:
    one, two = pair.nodes.values()
    (peer,) = one.tool("peers")
    assert peer["public_key"] == two.status().public_key
    assert (peer["endpoint"], peer["direct"], peer["alive"]) == (f"{two.underlay}:51420", True, True)
    assert peer["path_mtu"] == 1500
    assert peer["rx_bytes"] > 0
    assert peer["allowed_ips"] == [two.settings["slice_cidr"], two.settings["service_cidr"]]
    text = one.cli("peers", "--run-dir", str(one.directory / "run")).stdout
    assert "direct" in text
    assert peer["public_key"][:10] in text
    (status,) = one.status().peers or ()
    assert abs(status.last_handshake_unix_secs - time.time()) < 300
    dot = one.cli("graph", "--run-dir", str(one.directory / "run")).stdout
    assert dot.startswith("graph overlay {")
    assert two.underlay in dot
    svg = one.cli("graph", "--svg", "--run-dir", str(one.directory / "run")).stdout
    assert svg.startswith("<svg")
    assert two.underlay in svg
    assert one.tool("status")["wireguard"]["alive"] == 1


def test_keys_are_nobody_elses_to_read(pair: Fleet) -> None:
    one = pair.nodes[1]
    path = one.directory / "data/identity.json"
    assert path.stat().st_mode & 0o777 == 0o600
    import json

    private = json.loads(path.read_bytes())["node"]["private_key"]
    assert private not in one.log.read_text()
    for words in (("status",), ("peers",), ("graph",)):
        assert private not in one.cli(*words, "--json", "--run-dir", str(one.directory / "run")).stdout


def test_a_narrower_underlay_is_followed(pair: Fleet) -> None:
    """By routes and device at once, by new containers, and large packets still arrive."""
    one, two = pair.nodes.values()
    a, b = one.container(), two.container()
    wait_for(lambda: a.pings(b.address), "the way")
    try:
        for node in (one, two):
            run("ip", "-n", node.name, "link", "set", "eth0", "mtu", "1400")
            run("ip", "-n", pair.underlay, "link", "set", f"n{node.number}", "mtu", "1400")
        wait_for(lambda: all(n.ip("link", "show", n.device)[0]["mtu"] == 1320 for n in (one, two)), "the device", 30)
        assert echoes(a, b, STREAM, 500_000)
        assert echoes(a, b, DGRAM, 5000)
        late = one.container()
        assert late.mtu == 1320
        assert late.pings(b.address, 1320 - 28)
        wait_for(lambda: "mtu 1320" in a.run("ip", "link", "show", "eth0"), "those that were running")
        assert a.pings(b.address, 1320 - 28)
    finally:
        for node in (one, two):
            run("ip", "-n", pair.underlay, "link", "set", f"n{node.number}", "mtu", "1500")
            run("ip", "-n", node.name, "link", "set", "eth0", "mtu", "1500")
    wait_for(lambda: all(n.ip("link", "show", n.device)[0]["mtu"] == 1420 for n in (one, two)), "the device", 30)
    wait_for(lambda: a.pings(b.address, 1392), "the containers that were running")


def test_a_narrow_path_to_one_peer(pair: Fleet) -> None:
    """Its routes alone are narrower; a sender of larger packets gets an ICMP error at once."""
    one, two = pair.nodes.values()
    a, b = one.container(), two.container()
    run("ip", "-n", one.name, "route", "add", f"{two.underlay}/32", "dev", "eth0", "mtu", "1400")
    try:
        wait_for(lambda: "mtu 1328" in run("ip", "-n", one.name, "route", "get", b.address), "the route", 30)
        assert one.ip("link", "show", one.device)[0]["mtu"] == 1420
        assert not a.pings(b.address, 1392)
        assert a.pings(b.address, 1300)
        assert echoes(a, b, STREAM, 500_000)
    finally:
        run("ip", "-n", one.name, "route", "del", f"{two.underlay}/32", "dev", "eth0")
    wait_for(
        lambda: "mtu" not in run("ip", "-n", one.name, "route", "get", b.address).split("cache")[0], "all of it", 30
    )


def test_a_member_is_closed_to_nodes_that_no_cluster_tells_of_it(pair: Fleet) -> None:
    """Static peers do not publish their members: containers behind them count as the flat mesh, in both directions. A
    member reaches none of them, also of a network of the same name, and none of them reaches it."""
    one, two = pair.nodes.values()
    red, flat = one.container("fence", isolationNetwork="red"), one.container("fence")
    far_red, far_flat = two.container("fence", isolationNetwork="red"), two.container("fence")
    arrives(flat, far_flat)
    arrives(far_flat, flat)
    for a, b in itertools.product((red, flat), (far_red, far_flat)):
        if (a, b) != (flat, far_flat):
            assert not a.pings(b.address, wait=0.4), f"{a.name} -> {b.name}"
            assert not b.pings(a.address, wait=0.4), f"{b.name} -> {a.name}"
    for a, b in itertools.product((red, flat), (far_red, far_flat)):
        assert one.why(b.address, a.address) == (a is flat), "containers from there count as the flat mesh"
        assert one.why(a.address, b.address) == (a is flat)
        assert two.why(a.address, b.address) == (b is far_flat)
    (path,) = one.tool("why", flat.address, far_red.address)["paths"]
    assert UNKNOWN_THERE in path["notes"]


# --- agents, guests, edges ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told() -> Iterator[Fleet]:
    """Two nodes that agents have set up, with nothing in their YAML."""
    with fleet("a") as made:
        for number in (1, 2):
            node = made.node(number, slice_cidr=None, service_cidr=None)
            with contextlib.closing(node.agent()) as agent:
                agent.ok(wire.SetLocalNodeId(number))
                said = agent.ask(
                    wire.SetupGlobalOverlay(
                        deployment=node.settings["deployment"],
                        instance_id=str(number),
                        cluster_cidr="10.200.0.0/16",
                        slice_cidr=f"10.200.{number}.0/28",
                        wg_port=51420,
                    )
                )
                assert said == wire.BridgeName(node.device)
        yield made


def subnet(node: Node, service: str) -> str:
    (found,) = [each["subnets"][0] for each in node.tool("status")["services"] if each["service"] == service]
    return str(found)


def peer_of(node: Node, allowed: str, endpoint: str = "") -> wire.AddPeer:
    return wire.AddPeer(str(node.status().public_key), endpoint or f"{node.underlay}:51420", allowed, 5)


def test_agents_bring_nodes_together(told: Fleet) -> None:
    one, two = told.nodes.values()
    a, b = one.container("web"), two.container("web")
    nets = {node.number: subnet(node, "web") for node in (one, two)}
    with contextlib.closing(one.agent()) as to_one, contextlib.closing(two.agent()) as to_two:
        to_one.ok(peer_of(two, f"{two.status().node_ip}/32"))
        to_one.ok(wire.AddAllowedIp(str(two.status().public_key), nets[2]))
        to_two.ok(peer_of(one, f"{one.status().node_ip}/32,{nets[1]}", "node-one.invalid:51420"))  # unresolvable
        wait_for(lambda: a.pings(b.address), "the way")
        assert b.pings(a.address)
        # Replacing a peer, with other networks; the session goes on.
        before = one.wg("show", one.device, "latest-handshakes")
        to_one.ok(peer_of(two, nets[2]))
        assert one.wg("show", one.device, "latest-handshakes") == before
        assert one.wg("show", one.device, "allowed-ips").split()[1:] == [nets[2]]
        assert a.pings(b.address)
        # A network that goes to another peer, and does not come back by itself.
        to_one.ok(wire.AddPeer(OTHER, "198.51.100.99:5", nets[2], 0))
        assert not a.pings(b.address, wait=0.4)
        to_one.ok(wire.RemovePeer(OTHER))
        assert not a.pings(b.address, wait=0.4)
        to_one.ok(wire.AddAllowedIp(str(two.status().public_key), nets[2]))
        assert a.pings(b.address)
        to_one.ok(wire.RemoveAllowedIp(str(two.status().public_key), nets[2]))
        assert not a.pings(b.address, wait=0.4)
        for _ in range(2):
            to_one.ok(wire.RemovePeer(str(two.status().public_key)))
        assert one.status().peer_count == 0
        assert one.wg("show", one.device, "peers") == ""
        to_one.ok(peer_of(two, nets[2]))
        wait_for(lambda: a.pings(b.address), "the way again")


def test_a_learned_endpoint_is_left_alone(told: Fleet) -> None:
    """Also by a daemon that begins anew."""
    one, two = told.nodes.values()
    key = str(two.status().public_key)
    wrong = wire.AddPeer(key, "198.51.100.77:51420", subnet(two, "web"), 5)
    one.ask(wrong)  # two calls, and one hears from where
    run("ip", "netns", "exec", two.name, "ping", "-c", "1", "-W", "3", "10.200.1.1", check=False)
    where = f"{two.underlay}:51420"
    wait_for(lambda: where in one.wg("show", one.device, "endpoints"), "the call", 40)
    one.end(signal.SIGKILL)
    one.start()
    assert where in one.wg("show", one.device, "endpoints")
    one.ask(wrong)
    assert where in one.wg("show", one.device, "endpoints")


def test_agents_are_told_what_becomes_of_peers(told: Fleet) -> None:
    """A peer falls silent, answers again, and roams; who does not read misses nothing, as long as it is little."""
    one, two = told.nodes[1], told.nodes[2]
    a, b = one.container("web"), two.container("web")
    key, device, port = str(two.status().public_key), one.device, f"n{two.number}"
    where = f"{two.underlay}:51420"
    one.ask(peer_of(two, subnet(two, "web")))
    two.ask(peer_of(one, subnet(one, "web")))
    wait_for(lambda: a.pings(b.address), "the way")
    one.end(signal.SIGKILL)
    one.start()  # it has looked, and so it was: that is nothing to tell
    with contextlib.closing(one.agent()) as agent, contextlib.closing(one.agent()) as deaf:

        def told_of() -> list[wire.AnyEvent]:
            agent.ask(wire.StatusRequest())
            return [event for event in agent.events if event.pubkey == key]

        assert told_of() == []
        expected: list[wire.AnyEvent] = []

        def hears(*events: wire.AnyEvent) -> None:
            expected.extend(events)
            wait_for(lambda: len(told_of()) >= len(expected), f"{events}", 60)
            assert told_of() == expected

        run("ip", "-n", told.underlay, "link", "set", port, "down")
        # As after three minutes without a handshake: a peer without any handshake on the device.
        allowed = ",".join(one.wg("show", device, "allowed-ips").split()[1:])
        one.wg("set", device, "peer", key, "remove", "peer", key, "endpoint", where, "allowed-ips", allowed)
        hears(wire.PeerHealthChanged(key, False))
        run("ip", "-n", told.underlay, "link", "set", port, "up")
        hears(wire.PeerHealthChanged(key, True))
        two.end(signal.SIGKILL)  # it would put the port right
        two.wg("set", two.device, "listen-port", "51999")
        hears(wire.NatEndpointChanged(key, f"{two.underlay}:51999"))
        two.start()
        hears(wire.NatEndpointChanged(key, where))
        deaf.ask(wire.StatusRequest())
        assert [event for event in deaf.events if event.pubkey == key] == expected
    answer = metrics.scrape(str(one.directory / "run/metrics.sock")).partition(b"\r\n\r\n")[2].decode()
    changes = "zlayer_cni_path_changes_total"
    assert [read(answer)[f'{changes}{{change="{kind}"}}'] for kind in ("health", "endpoint")] == [2, 2]


class Machine:
    """A machine outside with plain WireGuard: `wg` and an engine, no daemon of ours."""

    def __init__(self, fleet: Fleet, number: int, private_key: str, address: str) -> None:
        self.address = address
        self.node = Node(fleet, number)  # for its namespace and its end
        fleet.outside.append(self.node)
        run("ip", "netns", "add", self.node.name)
        run("ip", "-n", self.node.name, "link", "set", "lo", "up")
        port = f"n{number}"
        run(
            "ip",
            "-n",
            self.node.name,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            port,
            "netns",
            fleet.underlay,
        )
        run("ip", "-n", self.node.name, "address", "add", f"{self.node.underlay}/24", "dev", "eth0")
        run("ip", "-n", self.node.name, "link", "set", "eth0", "up")
        run("ip", "-n", fleet.underlay, "link", "set", port, "master", "under0", "up")
        self.device = self.node.device
        engine = wg_engine.find()
        words = ["ip", "netns", "exec", self.node.name, engine, *wg_engine.PROGRAMS[Path(engine).name], self.device]
        self.engine = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: Path(f"/var/run/wireguard/{self.device}.sock").exists(), "the engine")
        self.key = fleet.directory / f"key{number}"
        self.key.write_text(private_key)
        self.node.wg("set", self.device, "private-key", str(self.key))
        run("ip", "-n", self.node.name, "address", "add", f"{address}/32", "dev", self.device)
        run("ip", "-n", self.node.name, "link", "set", self.device, "mtu", "1420", "up")

    def peer(self, key: str, endpoint: str, allowed: str) -> None:
        words = ("peer", key, "endpoint", endpoint, "allowed-ips", allowed, "persistent-keepalive", "5")
        self.node.wg("set", self.device, *words)
        for cidr in allowed.split(","):
            run("ip", "-n", self.node.name, "route", "add", cidr, "dev", self.device)

    def pings(self, address: str, wait: float = 4.0) -> bool:
        words = ["ip", "netns", "exec", self.node.name, "ping", "-q", "-c", "1", "-W", f"{wait:g}", address]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def finds_closed(self, address: str, port: int) -> bool:
        """Whether the host at an address says within a second that the UDP port is closed."""

        def knock() -> bool:
            with socket.socket(socket.AF_INET, DGRAM) as sock:
                sock.settimeout(1.0)
                sock.connect((address, port))
                sock.send(b"zlt")
                try:
                    sock.recv(1)
                except ConnectionRefusedError:
                    return True
                except TimeoutError:
                    return False
                return False

        return inside(f"/run/netns/{self.node.name}", knock)


def test_a_guest_with_plain_wireguard(told: Fleet) -> None:
    one = told.nodes[1]
    flat, red = one.container("web"), one.container("web", isolationNetwork="red")
    asked = wire.AttachContainer(wire.GuestManaged("vm-7"), "web", False)
    config = one.ask(asked)
    assert isinstance(config, wire.GuestConfig), config
    guest = Machine(told, 7, config.private_key, config.overlay_ip)
    (peer,) = config.peers
    run("ip", "-n", told.underlay, "address", "add", f"{BEYOND}/32", "dev", "under0")
    guest.peer(peer.public_key, f"{one.underlay}:51420", f"{peer.allowed_ips},{BEYOND}/32")
    wait_for(lambda: guest.pings(flat.address), "the guest's way")
    assert flat.pings(config.overlay_ip), "a neighbour on the bridge finds it too"
    assert not guest.pings(red.address, wait=0.4)
    assert not red.pings(config.overlay_ip, wait=0.4)
    for there, may in ((flat, True), (red, False)):
        assert one.why("vm-7", there.name) == may
        assert one.why(there.name, config.overlay_ip) == may
    assert one.why("vm-7", "node") == guest.pings(str(one.status().node_ip))
    assert not one.why("vm-7", "outside")
    assert flat.pings(BEYOND)
    assert not guest.pings(BEYOND, wait=0.4), "not by this node"
    shown = one.cli("showconf", "vm-7", "--run-dir", str(one.directory / "run")).stdout
    assert f"PrivateKey = {config.private_key}" in shown
    assert f"PublicKey = {peer.public_key}" in shown
    one.ask(wire.DetachContainer(wire.GuestManaged("vm-7")))
    assert not guest.pings(flat.address, wait=0.4)


def test_a_guest_in_an_isolation_network_reaches_its_members_and_no_one_else(told: Fleet) -> None:
    one = told.nodes[1]
    red, other, flat = (
        one.container("web", isolationNetwork="red"),
        one.container("db", isolationNetwork="red"),
        one.container("web"),
    )
    blue = one.container("web", isolationNetwork="blue")
    guests = {}
    for number, network in ((11, "red"), (12, "red"), (13, "blue"), (14, None)):
        config = one.ask(
            wire.AttachContainer(wire.GuestManaged(f"vm-{number}"), "web", False, isolation_network=network)
        )
        assert isinstance(config, wire.GuestConfig), config
        made = guests[number] = Machine(told, number, config.private_key, config.overlay_ip)
        made.peer(config.peers[0].public_key, f"{one.underlay}:51420", config.peers[0].allowed_ips)
    in_red, neighbour, in_blue, in_none = guests.values()
    node_address = str(one.status().node_ip)
    for each in guests.values():
        wait_for(lambda each=each: each.pings(node_address), "a guest's way")  # type: ignore[misc]

    for box in (red, other):
        assert in_red.pings(box.address)
        assert box.pings(in_red.address), "a neighbour on the bridge, and one on another, find it"
    assert in_red.pings(neighbour.address), "by way of the node"
    assert in_blue.pings(blue.address)
    assert blue.pings(in_blue.address)
    assert in_none.pings(flat.address)

    def apart() -> None:
        for box in (flat, blue):
            assert not in_red.pings(box.address, wait=0.4)
            assert not box.pings(in_red.address, wait=0.4)
        for guest in (in_blue, in_none):
            assert not in_red.pings(guest.address, wait=0.4)
            assert not guest.pings(in_red.address, wait=0.4)
            assert not guest.pings(red.address, wait=0.4)

    apart()
    gateway = str(ipaddress.ip_interface(f"{red.address}/26").network.network_address + 1)
    assert not in_red.pings(gateway, wait=0.4), "of the host it has the node's address"
    wait_for(lambda: in_red.finds_closed(node_address, 9), "the answer of a closed port")
    assert not in_red.finds_closed(node_address, 4789), "no VXLAN into the host"
    wait_for(lambda: in_none.finds_closed(node_address, 4789), "the same for the flat mesh")
    expected = {red.name: True, other.name: True, "vm-12": True, "node": True, flat.name: False, blue.name: False}
    expected |= {"vm-13": False, "vm-14": False, gateway: False, "outside": False}
    assert {word: one.why("vm-11", word) for word in expected} == expected
    mutual = [word for word in expected if word not in ("node", gateway, "outside")]
    assert {word: one.why(word, "vm-11") for word in mutual} == {word: expected[word] for word in mutual}

    one.end(signal.SIGKILL)
    apart()
    one.start()
    wait_for(lambda: in_red.pings(red.address), "its way after a restart")
    apart()
    for number, guest in guests.items():
        one.ask(wire.DetachContainer(wire.GuestManaged(f"vm-{number}")))
        assert not red.pings(guest.address, wait=0.4)


def test_an_edge_reaches_what_it_is_allowed_and_no_more(told: Fleet) -> None:
    one = told.nodes[1]
    web, red = one.container("web"), one.container("db", isolationNetwork="red")
    mint = wire.MintEdgePeer(
        name="runner", ttl_secs=600, allow=(f"{red.address}/32",), node_endpoint=f"{one.underlay}:51420"
    )
    config = one.ask(mint)
    assert isinstance(config, wire.EdgeConfig), config
    edge = Machine(told, 8, config.private_key, config.overlay_ip)
    (peer,) = config.peers
    edge.peer(peer.public_key, peer.endpoint, "10.200.0.0/16")  # it asks for everything
    wait_for(lambda: edge.pings(red.address), "the edge's way")
    assert edge.pings(str(one.status().node_ip))
    assert not edge.pings(web.address, wait=0.4)
    assert not web.pings(config.overlay_ip, wait=0.4), "no container opens a flow to it"
    gateway = str(ipaddress.ip_interface(f"{web.address}/26").network.network_address + 1)
    assert not edge.pings(gateway, wait=0.4)
    asked = {"node": True, red.name: True, red.address: True, web.name: False, gateway: False, "outside": False}
    assert {word: one.why("runner", word) for word in asked} == asked
    assert not one.why(web.name, "runner")
    (listed,) = one.ask(wire.ListEdgePeers()).peers
    assert listed.last_handshake_unix_secs
    one.end(signal.SIGKILL)
    one.start()
    assert edge.pings(red.address)
    assert not edge.pings(web.address, wait=0.4)
    one.ask(wire.RevokeEdgePeer("runner"))
    assert not edge.pings(red.address, wait=0.4)


def test_a_dedicated_service_has_a_device_of_its_own(told: Fleet) -> None:
    """Its local traffic stays local, and what is far goes by its own port."""
    one, two = told.nodes.values()
    made = {node.number: node.ask(wire.SetupServiceOverlay("ded", "dedicated")) for node in (one, two)}
    there = {node.number: [node.container("ded", mode="dedicated") for _ in range(2)] for node in (one, two)}
    for node, other in ((one, two), (two, one)):
        told_, own = made[other.number], made[node.number]
        assert own.wg_port is not None
        assert 51421 <= own.wg_port <= 51676
        scope = wire.ServiceScope("ded")
        node.ask(wire.AddPeer(told_.wg_public_key, f"{other.underlay}:{told_.wg_port}", told_.subnet, 5, scope=scope))
    a, b = there[1][0], there[2][0]
    wait_for(lambda: a.pings(b.address), "the way")
    before = _bytes(one, made[1])
    assert a.pings(there[1][1].address)
    assert _bytes(one, made[1]) == before, "between containers of one node nothing enters the tunnel"
    assert echoes(a, b, STREAM, 200_000)
    assert _bytes(one, made[1]) > before
    (dedicated,) = one.status().dedicated_services or ()
    assert (dedicated.service, dedicated.peer_count) == ("ded", 1)
    one.ask(wire.TeardownServiceOverlay("ded"))
    assert dedicated.interface not in {link["ifname"] for link in one.ip("link")}


def _bytes(node: Node, service: wire.ServiceOverlay) -> int:
    (dedicated,) = node.status().dedicated_services or ()
    found = node.wg("show", dedicated.interface, "transfer").split()
    return int(found[2])


# --- tokens, and nothing at all -------------------------------------------------------------------------------------


def test_two_machines_join_by_token(pair: Fleet) -> None:
    with fleet("t") as made:
        one, two = made.node(1), made.node(2)
        run_dir = ("--run-dir", str(one.directory / "run"))
        token = one.cli("peer", "token", *run_dir).stdout.strip()
        assert token.startswith("zlnode1.")
        back = two.tool("join", token)["token"]
        assert one.cli("join", back, *run_dir).returncode == 0
        a, b = one.container(), two.container()
        wait_for(lambda: a.pings(b.address), "the way")
        for _ in range(2):
            assert one.cli("join", back, *run_dir).returncode == 0
        assert one.cli("join", token, *run_dir).returncode == 1, "its own"
        assert one.cli("join", "zlnode1.AAAA", *run_dir).returncode == 1
        two.cli("peer", "rotate", "--run-dir", str(two.directory / "run"))
        assert one.cli("join", two.tool("peer", "token")["token"], *run_dir).returncode == 0, "the same with a new key"
        assert [peer["public_key"] for peer in one.tool("peers")] == [two.status().public_key]
        wait_for(lambda: a.pings(b.address), "the way again")
        three = made.node(3, service_cidr=two.settings["service_cidr"])
        refused = one.cli("join", three.tool("peer", "token")["token"], *run_dir)
        assert refused.returncode == 1, "what it has is another peer's already"
        assert "overlaps the peer" in refused.stderr
        assert a.pings(b.address)
        two.end(signal.SIGKILL)
        shutil.rmtree(two.directory / "run")  # as after a reboot
        two.start()
        assert two.status().peer_count == 1
        assert two.tool("peer", "remove", str(one.status().public_key))["public_key"] == one.status().public_key
        assert two.status().peer_count == 0


def test_without_an_engine_the_node_serves_and_says_so() -> None:
    with fleet("n") as made:
        node = made.node(
            1, start=False, wireguard_engine="none", peers=[{"public_key": OTHER, "allowed_ips": ["10.200.9.0/26"]}]
        )
        node.start()
        a, b = node.container(), node.container()
        assert a.pings(b.address)
        (words,) = node.tool("status", check=False)["problems"]
        assert "no WireGuard device" in words
        assert "switched off" in words
        agent: Agent
        with contextlib.closing(node.agent()) as agent:
            agent.ok(wire.AddPeer("HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=", "198.51.100.9:5", "10.200.8.0/26", 0))
        assert node.status().interface is None
        assert node.status().peer_count == 2
        node.end()
        node.settings["wireguard_engine"] = "auto"
        node.start()
        assert node.status().interface == node.device
        assert len(node.wg("show", node.device, "peers").split()) == 2
        assert os.path.exists(f"/proc/{node.engine()}") or node.engine() == 0


def test_an_engine_that_is_installed_later_is_found() -> None:
    """Until then STATUS is good, for containers of the node can be attached, and says what to install."""
    engine = wg_engine.find()
    with fleet("i") as made:
        one, two = made.node(1, start=False), made.node(2, start=False)
        link(one, two)
        two.start()
        one.start(without=engine)
        if one.status().interface is not None:
            pytest.skip("this kernel has WireGuard, or there is another engine here")
        a, b = one.container(), one.container()
        assert a.pings(b.address)
        problems = one.tool("status", check=False)["problems"]
        said = one.call("STATUS", a)
        assert said.stdout == ""
        for words in (*problems, said.stderr, one.cli("status", "--run-dir", str(one.directory / "run")).stdout):
            assert "apt-get install wireguard-go" in words
        with contextlib.closing(one.agent()) as agent:
            agent.ok(wire.AddPeer(OTHER, "198.51.100.9:5", "10.200.250.0/26", 0))
        assert [peer["on_device"] for peer in one.tool("peers")] == [False, False]
        assert one.status().peer_count == 2
        assert one.daemon is not None
        run("nsenter", "-t", str(one.daemon.pid), "-m", "umount", engine)  # installed
        wait_for(lambda: one.status().interface == one.device, "the device", 30)
        assert OTHER in one.wg("show", one.device, "peers").split()
        wait_for(lambda: all(peer["on_device"] for peer in one.tool("peers")), "both peers")
        far = two.container()
        arrives(a, far)
        assert one.tool("status")["problems"] == []
        assert one.call("STATUS", a).stderr == ""
