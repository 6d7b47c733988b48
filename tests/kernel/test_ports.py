"""A container's port: made inside its namespace, configured in one go, and nothing of the container's own touched."""

import errno
import ipaddress
import os
import time
from pathlib import Path

import pytest

from cni.host import addressing, links, netns, ports
from cni.host.links import Port, Route
from cni.host.links import RoutePattern as Pattern
from cni.host.netlink import Netlink, NetlinkError

pytestmark = pytest.mark.root

TENTATIVE = 0x40
BRIDGE_MAC = "02:00:00:00:00:aa"
HOST_MAC, INSIDE_MAC = "02:00:00:00:01:01", "0a:58:0a:09:00:42"
V4, V6 = "10.9.0.66/26", "fd00:9::102/120"


def iface(text):
    return ipaddress.ip_interface(text)


def route(dst, via, oif):
    return Route(ipaddress.ip_network(dst), ipaddress.ip_address(via) if via else None, oif)


def defaults(oif):
    return [route("0.0.0.0/0", "10.9.0.65", oif), route("::/0", "fd00:9::101", oif)]


@pytest.fixture
def bridge(host, netlink):
    """A service's bridge with its gateways; its index."""
    made = links.ensure_bridge(netlink, "zb-1", BRIDGE_MAC, 1420)
    for text in ("10.9.0.65/26", "fd00:9::101/120"):
        addressing.ensure_address(netlink, made.index, iface(text))
    return made.index


@pytest.fixture
def port(bridge):
    return Port("zp-1", HOST_MAC, bridge, 1420, "eth0", INSIDE_MAC)


def plug(netlink, port, container, *, up=True):
    """A port with both addresses and default routes; (host's index, container's index, routes left out)."""
    outer, inner, _ = links.create_port(netlink, port, container.fd)
    left_out = ports.configure(container.fd, inner, port.peer_name, [iface(V4), iface(V6)], defaults(inner))
    if up:
        links.raise_port(netlink, outer)
    return outer, inner, left_out


# --- making ---


def test_both_ends_are_where_they_belong(host, container, netlink, port):
    outer, inner, _ = links.create_port(netlink, port, container.fd)
    ours, theirs = host.link("zp-1"), container.link("eth0")
    assert (ours["index"], theirs["index"]) == (outer, inner)
    assert (ours["address"], ours["mtu"], ours["state"]) == (HOST_MAC, 1420, "down")
    assert (theirs["address"], theirs["mtu"], theirs["state"]) == (INSIDE_MAC, 1420, "down")
    assert (ours["link"], theirs["link"]) == (inner, outer)
    assert ours["master"] == port.bridge
    assert (host.links(), container.links()) == ({"zb-1", "zp-1"}, {"eth0"})


def test_a_full_bridge_is_an_error_that_names_the_limit(host, container, netlink, bridge, tmp_path):
    lines = [f"link add zf{n} master zb-1 type veth peer zg{n}\nlink set zg{n} master zb-1\n" for n in range(512)]
    (tmp_path / "batch").write_text("".join(lines)[: -len("link set zg511 master zb-1\n")])
    host.ip(f"-batch {tmp_path / 'batch'}")
    full = Port("zp-1", HOST_MAC, bridge, 1420, "eth0", INSIDE_MAC)
    with pytest.raises(NetlinkError, match="1023 ports, the kernel's limit") as refused:
        links.create_port(netlink, full, container.fd)
    assert refused.value.errno == errno.EXFULL
    assert container.links() == set()


def test_a_name_taken_on_the_host_is_an_error(host, container, netlink, port):
    host.ip("link add zp-1 type veth peer name other")
    before = host.link("zp-1")["index"]
    with pytest.raises(NetlinkError) as caught:
        links.create_port(netlink, port, container.fd)
    assert caught.value.errno == errno.EEXIST
    assert (host.link("zp-1")["index"], container.links()) == (before, set())


def test_a_name_taken_in_the_container_is_an_error_and_untouched(host, container, netlink, port):
    container.ip("link add eth0 address 02:00:00:00:00:07 type veth peer name other", "link set eth0 up")
    container.ip("addr add 172.16.0.1/24 dev eth0")
    before = container.link("eth0"), container.addresses("eth0")
    with pytest.raises(NetlinkError) as caught:
        links.create_port(netlink, port, container.fd)
    assert caught.value.errno == errno.EEXIST
    assert host.links() == {"zb-1"}
    after = container.link("eth0"), container.addresses("eth0")
    assert [(b["index"], b["address"], b["state"]) for b, _ in (before, after)] == [
        (before[0]["index"], "02:00:00:00:00:07", before[0]["state"])
    ] * 2
    assert before[1] == after[1]


@pytest.mark.parametrize("name", ["all", "default", "a/b", "a b", "a:b", ".", "..", "x" * 16])
def test_a_name_no_interface_may_have_is_an_error_and_leaves_nothing(host, container, netlink, bridge, name):
    with pytest.raises(NetlinkError):
        links.create_port(netlink, Port("zp-1", HOST_MAC, bridge, 1420, name, INSIDE_MAC), container.fd)
    assert (host.links(), container.links()) == ({"zb-1"}, set())


def test_a_bridge_that_is_gone_is_an_error_and_leaves_nothing(host, container, netlink, bridge):
    with pytest.raises(NetlinkError):
        links.create_port(netlink, Port("zp-1", HOST_MAC, 9999, 1420, "eth0", INSIDE_MAC), container.fd)
    assert (host.links(), container.links()) == ({"zb-1"}, set())


def test_a_descriptor_that_is_no_namespace_is_an_error(host, netlink, port, tmp_path):
    with (tmp_path / "x").open("w") as file, pytest.raises(NetlinkError):
        links.create_port(netlink, port, file.fileno())
    assert host.links() == {"zb-1"}


def test_removing_the_hosts_end_removes_both(host, container, netlink, port):
    links.create_port(netlink, port, container.fd)
    for _ in range(2):
        links.remove_link(netlink, "zp-1")
        assert (host.links(), container.links()) == ({"zb-1"}, set())


# --- configuring ---


def test_the_containers_end_is_ready_on_return(host, container, netlink, port):
    _, _, left_out = plug(netlink, port, container)
    assert left_out == []
    assert container.link("eth0")["state"] == "up"
    assert container.link("lo")["state"] == "up"
    assert {V4, V6} <= container.addresses("eth0")
    assert ("default/0", "10.9.0.65") in container.routes()
    assert ("default/0", "fd00:9::101") in container.routes(10)
    flags = dict(container.address_flags("eth0"))
    assert flags[V6] & TENTATIVE == 0


def declared_good(container):
    """Wait until the kernel holds all addresses of eth0 for good, its own link-local one too."""
    deadline = time.monotonic() + 30
    while True:
        found = container.address_flags("eth0")
        if any(text.startswith("fe80") for text, _ in found) and not any(flags & TENTATIVE for _, flags in found):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def test_the_containers_link_local_address_does_not_wait_either(container, netlink, port):
    """The kernel makes it, and declares it good, in a work queue of its own: without asking whether anybody has it."""
    plug(netlink, port, container)
    declared_good(container)
    counters = container.inside(lambda: Path("/proc/thread-self/net/dev_snmp6/eth0").read_text())
    assert "Icmp6OutType135" not in counters, "a neighbour solicitation: the address was looked for"


def test_the_container_reaches_its_gateway_at_once(container, netlink, port):
    plug(netlink, port, container)
    for gateway in ("10.9.0.65", "fd00:9::101"):
        assert container.inside(lambda gateway=gateway: os.system(f"ping -n -c1 -W2 {gateway} >/dev/null")) == 0


def test_the_containers_end_takes_no_advice(container, netlink, port):
    plug(netlink, port, container)
    wanted = {f"ipv4/conf/eth0/{name}": value for name, value in ports.SETTINGS_IPV4}
    wanted |= {f"ipv6/conf/eth0/{name}": value for name, value in ports.SETTINGS_IPV6}
    assert {path: container.sysctl(path) for path in wanted} == wanted


def test_ipv6_works_in_a_container_whose_default_is_off(container, netlink, port):
    container.sysctl("ipv6/conf/default/disable_ipv6", "1")
    plug(netlink, port, container)
    assert V6 in container.addresses("eth0")


def test_the_hosts_end_has_no_address_of_its_own(host, container, netlink, port):
    outer, _, _ = plug(netlink, port, container)
    assert host.link("zp-1")["state"] == "up"
    assert host.addresses("zp-1") == set()
    links.raise_port(netlink, outer)
    assert host.addresses("zp-1") == set()


def test_a_hosts_end_that_is_gone_cannot_be_raised(netlink):
    with pytest.raises(NetlinkError) as caught:
        links.raise_port(netlink, 9999)
    assert caught.value.errno == errno.ENODEV


def test_a_second_network_leaves_the_default_routes_alone(container, netlink, port, bridge):
    plug(netlink, port, container)
    second = Port("zp-2", "02:00:00:00:01:02", bridge, 1420, "net1", "0a:58:0a:09:00:43")
    _, inner, _ = links.create_port(netlink, second, container.fd)
    wanted = [*defaults(inner), route("192.0.2.0/24", "10.9.0.65", inner)]
    left_out = ports.configure(container.fd, inner, "net1", [iface("10.9.0.67/26"), iface("fd00:9::103/120")], wanted)
    # IPv6 knows routes by gateway and link, so only IPv4 is refused by the kernel as existing; metrics are the same.
    assert left_out[0] == wanted[0]
    assert [via for dst, via in container.routes() if dst == "default/0"] == ["10.9.0.65"]
    assert container.routes() >= {("192.0.2.0/24", "10.9.0.65")}
    assert {"10.9.0.67/26", "fd00:9::103/120"} <= container.addresses("net1")


def test_a_second_network_leaves_the_ipv6_default_route_alone(container, netlink, port, bridge):
    _, first, _ = plug(netlink, port, container)
    second = Port("zp-2", "02:00:00:00:01:02", bridge, 1420, "net1", "0a:58:0a:09:00:43")
    _, inner, _ = links.create_port(netlink, second, container.fd)
    wanted = defaults(inner)
    left_out = ports.configure(container.fd, inner, "net1", [iface("10.9.0.67/26"), iface("fd00:9::103/120")], wanted)
    assert left_out == wanted
    ways = {r.oif for r in ports.read(container.fd, "eth0").routes if r.dst == ipaddress.ip_network("::/0")}
    assert ways == {first}


def test_a_route_that_cannot_be_is_an_error(container, netlink, port):
    _, inner, _ = links.create_port(netlink, port, container.fd)
    with pytest.raises(NetlinkError, match=r"192\.0\.2\.0/24"):
        ports.configure(container.fd, inner, "eth0", [iface(V4)], [route("192.0.2.0/24", "203.0.113.1", inner)])


def test_an_address_the_container_has_already_is_an_error(container, netlink, port):
    _, inner, _ = links.create_port(netlink, port, container.fd)
    container.ip(f"addr add {V4} dev eth0")
    with pytest.raises(NetlinkError) as caught:
        ports.configure(container.fd, inner, "eth0", [iface(V4)], [])
    assert caught.value.errno == errno.EEXIST


def test_an_interface_that_is_gone_is_an_error(container):
    with pytest.raises(OSError):
        ports.configure(container.fd, 9999, "eth0", [iface(V4)], [])


def test_configuring_leaves_no_descriptor_open(container, netlink, port):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    _, inner, _ = links.create_port(netlink, port, container.fd)
    before = descriptors()
    ports.configure(container.fd, inner, "eth0", [iface(V4)], [])
    for _ in range(3):
        ports.read(container.fd, "eth0")
        ports.has_interface(container.fd, "eth0")
        with pytest.raises(NetlinkError):
            ports.configure(container.fd, inner, "eth0", [iface(V4)], [])
    assert descriptors() == before


# --- looking ---


def test_what_is_inside_is_what_was_made(host, container, netlink, port):
    outer, inner, _ = plug(netlink, port, container)
    seen = ports.read(container.fd, "eth0")
    assert (seen.link.index, seen.link.up, seen.link.mac, seen.link.peer) == (inner, True, INSIDE_MAC, outer)
    assert {iface(V4), iface(V6)} <= set(seen.addresses)
    assert set(defaults(inner)) <= set(seen.routes)
    assert ports.has_interface(container.fd, "eth0")
    assert not ports.has_interface(host.fd, "eth0")


def test_looking_changes_nothing(container, netlink, port):
    plug(netlink, port, container)
    declared_good(container)

    def everything():
        routes = container.routes(2), container.routes(10)
        return container.link("eth0")["state"], container.address_flags("eth0"), routes

    before = everything()
    ports.read(container.fd, "eth0")
    ports.has_interface(container.fd, "eth0")
    assert everything() == before


def test_what_is_not_there_is_nothing(container):
    assert ports.read(container.fd, "eth0") == ports.ContainerView(None)
    assert not ports.has_interface(container.fd, "eth0")


def test_other_interfaces_addresses_are_not_shown(container, netlink, port):
    container.ip("link add v0 type veth peer name v1", "addr add 172.16.0.1/24 dev v0", "link set v0 up")
    plug(netlink, port, container)
    assert iface("172.16.0.1/24") not in ports.read(container.fd, "eth0").addresses


def crowd(container, monkeypatch, most=20):
    """More routes by eth0, and more addresses and links, than a look may read."""
    monkeypatch.setattr(ports, "MOST", {"addresses": most, "routes": most})
    for n in range(2 * most):
        container.ip(f"route add 192.0.2.{n}/32 via 10.9.0.65", f"-6 addr add fd77::{n + 1:x}/128 dev eth0 nodad")


def test_a_look_finds_what_it_seeks_among_more_than_it_reads(container, netlink, port, monkeypatch):
    _, inner, _ = plug(netlink, port, container)
    crowd(container, monkeypatch)
    default = ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_address("10.9.0.65")
    seen = ports.inspect(container.fd, "eth0", ports.Sought(frozenset({iface(V4)}), frozenset({default})))
    assert (seen.addresses, seen.unread) == ((iface(V4),), ())
    assert [(r.dst, r.gateway, r.oif) for r in seen.routes] == [(*default, inner)]


NET = ipaddress.ip_network("192.0.2.0/24")
NET6 = ipaddress.ip_network("2001:db8::/32")
BY = ipaddress.ip_address("10.9.0.65")


@pytest.mark.parametrize(
    ("lines", "pattern", "other"),
    [
        ([f"route add {NET} via {BY}"], Pattern(NET, BY), Pattern(NET, BY + 1)),
        ([f"route add {NET} via {BY}"], Pattern(NET), Pattern(ipaddress.ip_network("192.0.2.0/25"))),
        ([f"route add {NET} via {BY} mtu 1300"], Pattern(NET, mtu=1300), Pattern(NET, mtu=1301)),
        ([f"route add {NET} via {BY} advmss 1200"], Pattern(NET, advmss=1200), Pattern(NET, advmss=1)),
        ([f"route add {NET} via {BY} metric 7"], Pattern(NET, priority=7), Pattern(NET, priority=8)),
        ([f"route add {NET} via {BY} table 100"], Pattern(NET, table=100), Pattern(NET, table=254)),
        ([f"route add {NET} via {BY} table 100"], Pattern(NET), Pattern(NET, table=101)),
        ([f"route add {NET} dev eth0 scope link"], Pattern(NET, scope=253), Pattern(NET, scope=0)),
        ([f"route add {NET} nexthop via {BY} nexthop via {BY + 5}"], Pattern(NET, BY + 5), Pattern(NET, BY + 6)),
        ([f"route add {NET} dev lo"], Pattern(NET), Pattern(NET, BY)),
        ([f"route add {NET} via {BY}", f"route add blackhole {NET} metric 9"], Pattern(NET), Pattern(NET, priority=9)),
        ([f"-6 route add {NET6} dev eth0 metric 7"], Pattern(NET6, priority=7, scope=0), Pattern(NET6, priority=8)),
        ([f"-6 route add {NET6} dev eth0 mtu 1300"], Pattern(NET6, mtu=1300), Pattern(NET6, mtu=1301)),
    ],
)  # fmt: skip
def test_a_look_finds_a_route_by_all_its_properties(container, netlink, port, lines, pattern, other):
    plug(netlink, port, container)
    container.ip(*lines)
    seen = ports.inspect(container.fd, "eth0", ports.Sought(patterns=frozenset({pattern, other})))
    assert seen.patterns == {pattern}
    assert not seen.unread


def test_a_look_finds_out_which_gateways_the_interface_reaches(container, netlink, port):
    plug(netlink, port, container)
    pairs = {(iface(V4).ip, BY), (iface(V6).ip, ipaddress.ip_address("fd00:9::101"))}
    first = ports.inspect(container.fd, "eth0", ports.Sought(gateways=frozenset(pairs)))
    assert first.gateways == pairs
    container.ip(f"route del {iface(V4).network}")
    seen = ports.inspect(container.fd, "eth0", ports.Sought(gateways=frozenset(pairs)))
    assert {own for own, _ in seen.gateways} == {iface(V6).ip}
    container.ip(f"route add {iface(V4).network} dev eth0 table 100", f"rule add from {iface(V4).ip} lookup 100")
    seen = ports.inspect(container.fd, "eth0", ports.Sought(gateways=frozenset(pairs)))
    assert seen.gateways == pairs, "what a source route says holds"


def test_a_look_says_what_it_did_not_read(container, netlink, port, monkeypatch):
    plug(netlink, port, container)
    crowd(container, monkeypatch)
    absent = ipaddress.ip_network("203.0.113.0/24"), ipaddress.ip_address("10.9.0.65")
    seen = ports.inspect(container.fd, "eth0", ports.Sought(frozenset({iface("10.9.0.3/26")}), frozenset({absent})))
    assert (seen.addresses, seen.routes, seen.unread) == ((), (), ("addresses", "routes"))
    assert seen.bound("routes") == 20
    with pytest.raises(ports.Crowded):
        ports.read(container.fd, "eth0")


def test_the_kernel_leaves_out_what_is_not_the_interfaces(container, netlink, port, monkeypatch):
    plug(netlink, port, container)
    monkeypatch.setattr(ports, "MOST", {"addresses": 20, "routes": 20})
    container.ip("link add v0 type veth peer name v1", "link set v0 up", "link set lo up")
    for n in range(40):
        container.ip(f"route add 192.0.2.{n}/32 dev lo", f"route add 198.51.100.{n}/32 dev eth0 table 77")
        container.ip(f"-6 addr add fd77::{n + 1:x}/128 dev v0 nodad")
    absent = ipaddress.ip_network("203.0.113.0/24"), ipaddress.ip_address("10.9.0.65")
    seen = ports.inspect(container.fd, "eth0", ports.Sought(frozenset({iface("10.9.0.3/26")}), frozenset({absent})))
    assert seen.unread == ()


def test_a_default_route_is_found_and_its_absence_told_within_a_bound(container, netlink, port, monkeypatch):
    assert not ports.has_default_route(container.fd, links.AF_INET)
    plug(netlink, port, container)
    assert ports.has_default_route(container.fd, links.AF_INET)
    assert ports.has_default_route(container.fd, links.AF_INET6)
    crowd(container, monkeypatch)
    container.ip("route del default")
    with pytest.raises(ports.Crowded):
        ports.has_default_route(container.fd, links.AF_INET)


def test_so_many_links_that_not_all_are_read_may_hide_a_machine(container):
    for n in range(12):
        container.ip(f"link add v{n} type veth peer name w{n}")
    kinds = frozenset({"tun"})
    for most, found in ((100, False), (8, None)):
        with netns.entered(container.fd):
            inner = Netlink()
        with inner:
            assert links.has_kind(inner, kinds, most) is found
    container.ip("tuntap add mode tap name a0")
    with netns.entered(container.fd):
        inner = Netlink()
    with inner:
        assert links.has_kind(inner, kinds, 100) is True
