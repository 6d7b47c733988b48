"""The overlay's ranges beside the host's own networks: neither ever takes the other's traffic."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cni.overlay import wire
from tests.mesh.fleet import Fleet, Node, run, wait_for

LAN4, LAN6 = "10.200.5", "fd00:200:0:5:"
RANGES = {"cluster_cidr": "10.200.0.0/16", "cluster_cidr6": "fd00:200::/48"}
FREE = {"slice_cidr": "10.200.1.0/26", "service_cidr": None}
Frozen = Callable[..., Node]


def join_lan(fleet: Fleet, node: Node, six: bool = False, dev: str = "lan0") -> tuple[str, str]:
    """A second network card, on a network inside the range, with a neighbour; (the node's address, the neighbour's)."""
    run("ip", "-n", node.name, "link", "add", dev, "type", "veth", "peer", "name", f"{dev}n", "netns", fleet.underlay)
    run("ip", "-n", fleet.underlay, "link", "set", f"{dev}n", "up")
    mine, other, length = (f"{LAN6}:10", f"{LAN6}:1", 64) if six else (f"{LAN4}.10", f"{LAN4}.1", 24)
    nodad = ["nodad"] if six else []
    run("ip", "-n", fleet.underlay, "address", "add", f"{other}/{length}", "dev", f"{dev}n", *nodad)
    run("ip", "-n", node.name, "link", "set", dev, "up")
    run("ip", "-n", node.name, "address", "add", f"{mine}/{length}", "dev", dev, *nodad)
    return mine, other


def answers(netns: str, address: str, count: int = 3) -> bool:
    words = ["ip", "netns", "exec", netns, "ping", "-n", "-q", "-c", str(count), "-i", "0.2", "-W", "2", address]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def both_ways(fleet: Fleet, node: Node, mine: str, other: str) -> bool:
    return answers(node.name, other) and answers(fleet.underlay, mine)


def add(node: Node, verb: str = "ADD", service: str = "web") -> dict[str, object]:
    """What the plugin answers to a verb, error or not."""
    done = node.call(verb, node.unattached(service), check=False)
    return {"rc": done.returncode, **(json.loads(done.stdout) if done.stdout.strip() else {})}


def tables(node: Node) -> str:
    return run("ip", "netns", "exec", node.name, "nft", "list", "tables")


# --- at the start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_a_range_over_the_lan_is_refused_and_the_lan_works(
    fleet: Fleet, either_form: tuple[str, ...], frozen: Frozen, six: bool
) -> None:
    node = frozen(1, start=False, **RANGES, **FREE)
    node.program = either_form
    mine, other = join_lan(fleet, node, six)
    node.start()
    said = add(node)
    assert said["code"] == 7, said
    named = (RANGES["cluster_cidr6"], f"{LAN6}:/64") if six else (RANGES["cluster_cidr"], f"{LAN4}.0/24")
    assert all(each in str(said) for each in named), said
    status = add(node, "STATUS")
    assert status["code"] == 50 and all(each in str(status) for each in named), status
    assert "zlayer_cni" not in tables(node)
    assert both_ways(fleet, node, mine, other)
    assert [each["code"] for each in node.tool("status")["problem_details"]] == ["overlay-range-refused"]


@pytest.mark.parametrize(
    "setup",
    [
        ["address add 10.200.0.1/8 dev eth0"],  # a network that contains the range
        ["address add 10.200.0.1/16 dev eth0"],  # the very range
        ["link add docker0 type bridge", "address add 10.200.77.1/24 dev docker0"],  # a bridge that is down
        ["address add 10.200.7.7/32 dev lo"],  # an address that is announced by a routing daemon
        ["link add vpn0 type bridge", "link set vpn0 up", "route add 10.200.99.0/24 dev vpn0 table 100"],
        ["address add 192.0.2.1 peer 10.200.3.3/32 dev eth0"],
        ["route add 203.0.113.0/24 via 10.200.44.1 dev eth0 onlink"],  # a gateway
    ],
    ids=["containing", "equal", "bridge", "loopback", "table", "peer", "gateway"],
)
def test_what_else_overlaps_is_refused(fleet: Fleet, frozen: Frozen, setup: list[str]) -> None:
    node = frozen(1, start=False, **FREE)
    for words in setup:
        run("ip", "-n", node.name, *words.split())
    node.start()
    assert add(node)["code"] == 7
    assert "zlayer_cni" not in tables(node)


def test_a_resolver_in_the_range_is_refused(fleet: Fleet, frozen: Frozen) -> None:
    node = frozen(1, start=False, **FREE)
    conf = Path("/etc/netns", node.name)
    conf.mkdir(parents=True)
    try:
        (conf / "resolv.conf").write_text("nameserver 10.200.0.53\n")
        node.start()
        said = add(node)
        assert said["code"] == 7 and "10.200.0.53" in str(said), said
    finally:
        (conf / "resolv.conf").unlink(missing_ok=True)
        conf.rmdir()


def test_what_does_not_overlap_is_no_obstacle(fleet: Fleet, frozen: Frozen) -> None:
    """Default routes and halves of them, a blackhole and a routed range, and the overlay's own after a restart."""
    node = frozen(1, start=False, **FREE)
    for words in (
        "link add vpn0 type bridge",
        "link set vpn0 up",
        "route add 0.0.0.0/1 dev vpn0",
        "route add 10.200.0.0/16 via 198.51.100.254 metric 50",
        "route add blackhole 10.200.0.0/16 metric 4000",
        "route add unreachable 10.200.64.0/18",
    ):
        run("ip", "-n", node.name, *words.split())
    node.start()
    node.container("web")
    node.container("db")
    node.end()
    node.start()
    assert add(node)["rc"] == 0
    assert node.tool("status")["problems"] == []


def test_the_node_goes_into_service_when_the_network_is_gone(fleet: Fleet, frozen: Frozen) -> None:
    node = frozen(1, start=False, **FREE)
    join_lan(fleet, node)
    node.start()
    assert add(node)["code"] == 7
    run("ip", "-n", node.name, "address", "del", f"{LAN4}.10/24", "dev", "lan0")
    wait_for(lambda: "zlayer_cni" in tables(node), "the fence", 5)
    wait_for(lambda: node.tool("status")["problems"] == [], "a good node", 5)
    assert add(node)["rc"] == 0


def test_install_refuses_before_it_writes(fleet: Fleet, frozen: Frozen) -> None:
    node = frozen(1, start=False, **FREE)
    join_lan(fleet, node)
    places = {name: node.directory / name for name in ("programs", "bin", "conf", "run-dir", "data-dir")}
    places["data-dir"].mkdir()
    (places["data-dir"] / "overlayd.yaml").write_text("cluster_cidr: 10.200.0.0/16\n")
    options = [
        *("--program-dir", str(places["programs"]), "--bin-dir", str(places["bin"])),
        *("--conf-dir", str(places["conf"]), "--run-dir", str(places["run-dir"])),
        *("--data-dir", str(places["data-dir"])),
    ]
    # `ip netns exec` has a mount namespace of its own: what is written to the machine by mistake is gone with it.
    away = "for each in /usr/local/bin /etc/systemd; do mount -t tmpfs none $each; done; exec "
    words = ["ip", "netns", "exec", node.name, "sh", "-c", away + " ".join([*node.program, "install", *options])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "10.200.0.0/16" in done.stdout + done.stderr and f"{LAN4}.0/24" in done.stdout + done.stderr
    assert not any(places[name].exists() for name in ("programs", "bin", "conf", "run-dir"))


# --- later -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_a_network_that_comes_later_stays_the_hosts(fleet: Fleet, frozen: Frozen, six: bool) -> None:
    node = frozen(1, **RANGES, **FREE)
    web = node.container("web")
    mine, other = join_lan(fleet, node, six)
    wait_for(lambda: both_ways(fleet, node, mine, other), "the LAN", 5)
    found = wait_for(lambda: node.tool("status")["problem_details"], "the problem", 5)
    assert [each["code"] for each in found] == ["overlay-range-overlap"]
    assert node.cli("status", "--run-dir", str(node.directory / "run")).returncode == 1
    fellow = node.container("web")
    assert web.pings(fellow.address)
    # To a container the LAN's addresses are the overlay's: it does not reach them, nor the LAN the container.
    assert not web.pings(other, wait=1.0)
    node.end()
    node.start()
    assert both_ways(fleet, node, mine, other) and web.pings(fellow.address)
    run("ip", "-n", node.name, "link", "del", "lan0")
    wait_for(lambda: node.tool("status")["problems"] == [], "the end of the problem", 5)


def test_no_slot_inside_a_later_network_is_used(fleet: Fleet, frozen: Frozen) -> None:
    """Four slots, of which the LAN covers three; also an idle service's, which moves, and one that is in use."""
    node = frozen(1, slice_cidr="10.200.1.0/26", service_cidr="10.200.5.0/24")
    idle = node.container("idle")
    node.remove(idle)
    run("ip", "-n", node.name, "link", "add", "vpn0", "type", "bridge")
    run("ip", "-n", node.name, "address", "add", "10.200.5.130/25", "dev", "vpn0")
    run("ip", "-n", node.name, "link", "set", "vpn0", "up")
    wait_for(lambda: node.tool("status")["problems"], "the problem", 5)
    outside = [node.container(name) for name in ("idle", "two")]
    assert all(int(each.address.split(".")[3]) < 128 for each in outside), [each.address for each in outside]
    said = add(node, service="three")
    assert said["code"] == 104, said
    addresses = {a["local"] for link in node.ip("address") for a in link["addr_info"] if link["ifname"] != "vpn0"}
    assert not any(a.startswith("10.200.5.") and int(a.split(".")[3]) >= 128 for a in addresses), addresses


def test_containers_keep_a_subnet_that_a_later_network_covers(fleet: Fleet, frozen: Frozen) -> None:
    """Until they end; later containers get another subnet, and the problem names the service."""
    node = frozen(1, slice_cidr="10.200.1.0/26", service_cidr="10.200.5.0/24")
    first = node.container("web")
    (subnet,) = next(each["subnets"] for each in node.tool("status")["services"])
    run("ip", "-n", node.name, "link", "add", "vpn0", "type", "bridge")
    run("ip", "-n", node.name, "address", "add", subnet.replace("/26", "/27"), "dev", "vpn0")
    (text,) = wait_for(lambda: node.tool("status")["problems"], "the problem", 5)
    assert f"{subnet} of service web" in text
    second = node.container("web")
    assert second.address.rpartition(".")[0] == first.address.rpartition(".")[0]
    assert ipaddress.ip_address(second.address) not in ipaddress.ip_network(subnet)
    assert second.pings(first.address) and first.pings(second.address)
    node.end()
    node.start()
    assert second.pings(first.address)
    node.remove(first)
    wait_for(lambda: subnet not in str(node.tool("status")["services"]), "the subnet given back", 30)
    assert second.pings("10.200.1.1")


def test_a_published_port_is_reached_from_a_later_network(fleet: Fleet, frozen: Frozen) -> None:
    node = frozen(1, **FREE)
    web = node.container("web")
    mine, other = join_lan(fleet, node)
    wait_for(lambda: both_ways(fleet, node, mine, other), "the LAN", 5)
    hook = "type nat hook prerouting priority -100;"
    dnat = f"table ip zlt {{ chain pre {{ {hook} tcp dport 8080 dnat to {web.address}:80; }}; }}"
    run("ip", "netns", "exec", node.name, "nft", dnat)
    with web.socket(1) as ear:
        ear.bind((web.address, 80))
        ear.listen()
        words = f"exec 3<>/dev/tcp/{mine}/8080"
        run("ip", "netns", "exec", fleet.underlay, "timeout", "3", "bash", "-c", words)


def test_a_tunnel_takes_nothing_from_a_later_network(fleet: Fleet, frozen: Frozen, engine: None) -> None:
    """A peer's subnet lies in the network: no route into the tunnel takes its addresses from the host."""
    peer = {"public_key": "OJqmDX2uxPKEDgNgFxnkOVRqJ0EWkQbBhKdHtGYtJm4=", "allowed_ips": ["10.200.5.0/26"]}
    node = frozen(1, peers=[peer], **FREE)
    wait_for(lambda: any(each["dst"] == "10.200.5.0/26" for each in node.ip("route")), "the route", 5)
    mine, other = join_lan(fleet, node)
    wait_for(lambda: both_ways(fleet, node, mine, other), "the LAN", 5)


# --- what an agent says ----------------------------------------------------------------------------------------------

KEY = "OJqmDX2uxPKEDgNgFxnkOVRqJ0EWkQbBhKdHtGYtJm4="


def setup(node: Node, cluster_cidr: str) -> wire.AnyReply:
    deployment, instance = node.settings["deployment"], node.settings["instance_id"]
    reply: wire.AnyReply = node.ask(
        wire.SetupGlobalOverlay(deployment=deployment, instance_id=instance, cluster_cidr=cluster_cidr, wg_port=51420)
    )
    return reply


def add_peer(node: Node, allowed_ips: str) -> None:
    assert node.ask(wire.AddPeer(KEY, "198.51.100.77:51420", allowed_ips, 0)) == wire.Ok()


def routed(node: Node) -> set[str]:
    return {each["dst"] for each in node.ip("route") if each["dev"] == node.device}


def test_an_agent_cannot_take_the_hosts_networks(fleet: Fleet, frozen: Frozen, engine: None) -> None:
    node = frozen(1, service_cidr=None, slice_cidr=None)
    for cidr in ("198.51.100.0/24", "198.51.0.0/16", "0.0.0.0/0", "127.0.0.0/8", "169.254.0.0/16"):
        said = setup(node, cidr)
        assert isinstance(said, wire.Err) and cidr in said.message, said
    assert isinstance(setup(node, "10.200.0.0/16"), wire.BridgeName)
    add_peer(node, "10.200.9.0/26,8.8.8.0/24,198.51.100.254/32,0.0.0.0/1")
    assert node.ask(wire.AddAllowedIp(KEY, "192.0.2.0/24")) == wire.Ok()
    wait_for(lambda: routed(node) == {"10.200.9.0/26"}, "the one route", 5)
    assert "8.8.8.0/24" in node.status().peers[0].allowed_ips
    found = node.tool("status")["problem_details"]
    assert [each["code"] for each in found] == ["peer-routes-kept-off"]
    assert all(cidr in found[0]["text"] for cidr in ("8.8.8.0/24", "198.51.100.254/32", "192.0.2.0/24", "0.0.0.0/1"))
    assert answers(node.name, "198.51.100.254")


def test_the_yaml_allows_a_peer_routes_outside_the_range(fleet: Fleet, frozen: Frozen, engine: None) -> None:
    """Those of its own peers as they stand there, and an agent's by `extra_routes`."""
    own = {"public_key": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "allowed_ips": ["192.168.7.0/24"]}
    node = frozen(1, peers=[own], extra_routes=["192.168.50.0/24"], **FREE)
    add_peer(node, "192.168.50.128/25,192.168.51.0/24")
    wait_for(lambda: routed(node) == {"192.168.7.0/24", "192.168.50.128/25"}, "the routes", 5)


def test_an_agent_gives_a_node_a_free_range(fleet: Fleet, frozen: Frozen) -> None:
    """The default range is the LAN's: the node is not in service until an agent names another."""
    node = frozen(1, start=False, service_cidr=None, slice_cidr=None)
    mine, other = join_lan(fleet, node)
    node.start()
    assert add(node)["code"] == 7
    assert isinstance(setup(node, "10.200.0.0/16"), wire.Err)
    said = node.ask(wire.SetupServiceOverlay("web", "auto"))
    assert isinstance(said, wire.Err) and f"{LAN4}.0/24" in said.message, said
    assert isinstance(setup(node, "10.99.0.0/16"), wire.BridgeName)
    assert add(node)["rc"] == 0
    assert both_ways(fleet, node, mine, other)


# --- the node's own addresses ----------------------------------------------------------------------------------------


def on_lo(node: Node) -> set[str]:
    found = {a["local"] for link in node.ip("address", "show", "lo") for a in link["addr_info"]}
    return {each for each in found if not each.startswith(("127.", "::1"))}


def test_a_former_node_address_goes(fleet: Fleet, frozen: Frozen) -> None:
    node = frozen(1, slice_cidr="10.200.1.0/26", service_cidr=None)
    node.container("web")
    assert on_lo(node) == {"10.200.1.1"}
    node.end()
    node.settings["slice_cidr"] = "10.200.2.0/26"
    node.start()
    assert on_lo(node) == {"10.200.2.1"}


def test_a_former_node_address_goes_when_the_records_are_lost(fleet: Fleet, frozen: Frozen) -> None:
    node = frozen(1, slice_cidr="10.200.1.0/26", service_cidr=None)
    node.end()
    run("rm", "-r", str(node.directory / "run"))
    node.settings["slice_cidr"] = "10.200.2.0/26"
    node.start()
    assert on_lo(node) == {"10.200.2.1"}


def test_uninstall_leaves_no_node_address(fleet: Fleet, frozen: Frozen) -> None:
    node = frozen(1, slice_cidr="10.200.1.0/26", service_cidr=None)
    node.container("web")
    node.end()
    node.settings["slice_cidr"] = "10.200.2.0/26"
    node.start()
    done = node.cli(
        *("uninstall", "--purge", "--force", "--root", str(node.directory)),
        *("--run-dir", "/run", "--data-dir", "/data"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert on_lo(node) == set()
