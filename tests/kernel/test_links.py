"""Links, addresses, routes: each ensure and each remove twice, and what the kernel then has, by another reader."""

import errno
import ipaddress

import pytest

from cni.host import addressing, links
from cni.host.kernel import Kernel
from cni.host.links import Route
from cni.host.netlink import NetlinkError

pytestmark = pytest.mark.root

MAC = "02:00:00:00:00:aa"
TENTATIVE, NODAD = 0x40, 0x02


def ensure_route(netlink, route):
    """As an attach adds it, where another of the same destination is no error."""
    netlink.send([addressing.route_message(route, frozenset({errno.EEXIST}))])


def iface(text):
    return ipaddress.ip_interface(text)


def net(text):
    return ipaddress.ip_network(text)


def addr(text):
    return ipaddress.ip_address(text)


@pytest.fixture
def kernel(host):
    """The kernel as the daemon has it, of the host's namespace, each call from inside it."""
    made = host.inside(Kernel)
    yield made
    made.close()


# --- bridges ---


def test_a_bridge_twice_is_one_bridge(host, netlink):
    first = links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    assert links.ensure_bridge(netlink, "zb-1", MAC, 1420) == first
    seen = host.link("zb-1")
    assert (seen["index"], seen["kind"], seen["state"], seen["mtu"], seen["address"]) == (
        first.index,
        "bridge",
        "up",
        1420,
        MAC,
    )
    options = {key.removeprefix("ifla_br_"): value for key, value in seen["data"].items()}
    assert (options["stp_state"], options["mcast_snooping"], options["forward_delay"]) == (0, 0, 0)


def test_a_bridge_is_brought_up_again(host, netlink):
    links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    host.ip("link set zb-1 down")
    assert host.link("zb-1")["state"] == "down"
    links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    assert host.link("zb-1")["state"] == "up"


def test_another_kind_of_link_of_that_name_is_not_adopted(host, netlink):
    host.ip("link add zb-1 type veth peer name zb-2")
    before = host.link("zb-1")["index"]
    for name in ("zb-1", "lo"):
        with pytest.raises(NetlinkError) as caught:
            links.ensure_bridge(netlink, name, MAC, 1420)
        assert caught.value.errno == errno.EEXIST
    assert host.link("zb-1")["index"] == before
    assert host.link("zb-1")["state"] == "down"


def test_a_bridges_mac_does_not_follow_its_ports(host, netlink):
    links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    host.ip("link add v0 address 02:00:00:00:00:01 type veth peer name v1", "link set v0 master zb-1 up")
    assert host.link("zb-1")["address"] == MAC


def test_a_bridges_mtu_does_not_follow_its_ports(host, netlink):
    links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    host.ip("link add v0 mtu 1280 type veth peer name v1", "link set v0 master zb-1 up")
    assert host.link("zb-1")["mtu"] == 1420


@pytest.mark.parametrize("change", ["mtu 1300", "type bridge stp_state 1", "address 02:00:00:00:00:bb"])
def test_a_bridge_that_was_changed_is_put_right(host, netlink, change):
    links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    before = host.link("zb-1")
    host.ip(f"link set zb-1 {change}")
    links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    after = host.link("zb-1")
    keys = ("mtu", "address")
    assert [after[key] for key in keys] == [before[key] for key in keys]
    assert after["data"]["ifla_br_stp_state"] == 0


# --- looking ---


def test_a_link_is_found_by_name_and_by_index(host, netlink):
    host.ip("link add v0 mtu 1400 address 02:00:00:00:00:05 type veth peer name v1", "link set v0 up")
    found = links.find_link(netlink, "v0")
    seen, peer = host.link("v0"), host.link("v1")
    assert found == links.find_link(netlink, index=seen["index"])
    assert found == links.Link(seen["index"], "v0", True, 1400, "02:00:00:00:00:05", "veth", 0, peer["index"])


def test_what_is_not_there_is_none(netlink):
    assert links.find_link(netlink, "absent") is None
    assert links.find_link(netlink, index=9999) is None


def test_the_list_is_what_another_reader_sees(host, netlink):
    host.ip("link add v0 type veth peer name v1", "link add name b0 type bridge")
    listed = {(link.index, link.name, link.mac, link.mtu, link.kind) for link in links.list_links(netlink)}
    seen = host.read(
        lambda ipr: {
            (
                link["index"],
                link.get("ifname"),
                link.get("address"),
                link.get("mtu"),
                link.get("linkinfo").get("kind") if link.get("linkinfo") else "",
            )
            for link in ipr.get_links()
        }
    )
    assert listed == seen


# --- removing ---


@pytest.mark.parametrize("by", ["name", "index"])
def test_a_link_removed_twice_is_gone_with_its_peer(host, netlink, by):
    host.ip("link add v0 type veth peer name v1")
    how = {"name": "v0"} if by == "name" else {"index": host.link("v0")["index"]}
    for _ in range(2):
        links.remove_link(netlink, **how)
        assert host.links() == set()


def test_what_cannot_be_removed_is_an_error(netlink):
    with pytest.raises(NetlinkError) as caught:
        links.remove_link(netlink, "lo")
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_group_is_removed_at_once_and_only_the_group(host, netlink):
    links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    host.ip(*(f"link add v{n} type veth peer name w{n}" for n in range(4)), "link set v0 master zb-1 up")
    indexes = [host.link(f"v{n}")["index"] for n in range(3)]
    links.set_group(netlink, [*indexes, 9999], 0x7A6C0001)
    seen = host.link("v0")
    assert (seen["group"], seen.get("master"), seen["state"]) == (0x7A6C0001, None, "down")
    for _ in range(2):
        links.remove_group(netlink, 0x7A6C0001)
        assert host.links() == {"zb-1", "v3", "w3"}


def test_a_group_of_nobody(netlink):
    links.set_group(netlink, [9998, 9999], 0x7A6C0001)
    links.remove_group(netlink, 0x7A6C0001)


def test_a_link_is_put_on_a_bridge(host, netlink):
    made = links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    host.ip("link add v0 type veth peer name v1")
    for _ in range(2):
        links.set_master(netlink, host.link("v0")["index"], made.index)
        assert host.link("v0")["master"] == made.index


# --- addresses ---


@pytest.mark.parametrize("text", ["10.9.0.65/26", "10.9.0.1/32", "10.9.0.0/31", "fd00:9::101/120", "fd00:9::1/128"])
def test_an_address_twice_is_one_address_and_removed_twice_is_none(host, netlink, text):
    made = links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    for _ in range(2):
        addressing.ensure_address(netlink, made.index, iface(text))
        assert text in host.addresses("zb-1")
    assert (made.index, iface(text)) in addressing.list_addresses(netlink)
    assert iface(text) in [address for _, address in addressing.list_addresses(netlink, made.index)]
    for _ in range(2):
        addressing.remove_address(netlink, made.index, iface(text))
        assert text not in host.addresses("zb-1")


def test_an_ipv6_address_is_ready_at_once(host, netlink):
    made = links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    addressing.ensure_address(netlink, made.index, iface("fd00:9::101/120"))
    flags = dict(host.address_flags("zb-1"))["fd00:9::101/120"]
    assert (flags & TENTATIVE, flags & NODAD) == (0, NODAD)


def test_one_of_two_gateways_goes_and_the_other_stays(host, netlink):
    made = links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    for text in ("10.9.0.65/26", "10.9.1.129/26"):
        addressing.ensure_address(netlink, made.index, iface(text))
    addressing.remove_address(netlink, made.index, iface("10.9.0.65/26"))
    assert {text for text in host.addresses("zb-1") if "." in text} == {"10.9.1.129/26"}


def test_an_address_of_a_link_that_is_gone(netlink):
    for text in ("10.9.0.65/26", "fd00:9::101/120"):
        addressing.remove_address(netlink, 9999, iface(text))
        with pytest.raises(NetlinkError) as caught:
            addressing.ensure_address(netlink, 9999, iface(text))
        assert caught.value.errno == errno.ENODEV


# --- routes ---


@pytest.fixture
def wire(host, netlink):
    """A link with addresses of both families; its index."""
    made = links.ensure_bridge(netlink, "zb-1", MAC, 1420)
    for text in ("10.9.0.65/26", "fd00:9::101/120"):
        addressing.ensure_address(netlink, made.index, iface(text))
    return made.index


@pytest.mark.parametrize(
    ("dst", "via"),
    [
        ("0.0.0.0/0", "10.9.0.70"),
        ("192.0.2.0/24", "10.9.0.70"),
        ("192.0.2.1/32", None),
        ("::/0", "fd00:9::170"),
        ("2001:db8::/32", "fd00:9::170"),
    ],
)
def test_a_route_twice_is_one_route(host, netlink, wire, dst, via):
    route = Route(net(dst), addr(via) if via else None, wire)
    seen, family = (("default/0" if dst.endswith("/0") else dst), via), 10 if ":" in dst else 2
    for _ in range(2):
        ensure_route(netlink, route)
        assert seen in host.routes(family)
    assert route in addressing.list_routes(netlink)


def test_an_ensured_route_does_not_replace_another_to_the_same_place(netlink, wire):
    first, second = (Route(net("192.0.2.0/24"), addr(f"10.9.0.{n}"), wire) for n in (70, 71))
    ensure_route(netlink, first)
    ensure_route(netlink, second)
    assert [r for r in addressing.list_routes(netlink) if r.dst == first.dst] == [first]


def test_routes_of_other_tables_are_not_listed(host, netlink, wire):
    host.ip("route add 198.51.100.0/24 via 10.9.0.70 table 77", "route add 198.51.101.0/24 via 10.9.0.70 table 1000")
    listed = {str(route.dst) for route in addressing.list_routes(netlink)}
    assert "10.9.0.64/26" in listed
    assert {text for text in listed if text.startswith("198.")} == set()


def test_the_type_of_a_route_is_told(host, netlink):
    host.ip("route add unreachable 198.51.100.0/24")
    (found,) = [r for r in addressing.list_routes(netlink) if str(r.dst) == "198.51.100.0/24"]
    assert found.type == 7  # RTN_UNREACHABLE


def test_a_route_by_a_gateway_that_cannot_be_reached_is_an_error(netlink, wire):
    with pytest.raises(NetlinkError, match=r"203\.0\.113\.1"):
        ensure_route(netlink, Route(net("192.0.2.0/24"), addr("203.0.113.1"), wire))


@pytest.mark.parametrize("text", ["10.9.0.66", "fd00:9::102"])
def test_a_neighbour_is_forgotten_twice(host, netlink, wire, text):
    host.ip(f"neigh add {text} lladdr 02:00:00:00:00:07 dev zb-1 nud reachable")

    family = 2 if "." in text else 10

    def known():  # an entry that was deleted may be seen a moment longer, but without its address
        return host.read(
            lambda ipr: [
                n.get("lladdr") for n in ipr.get_neighbours(family=family) if n.get("dst") == text and n.get("lladdr")
            ]
        )

    assert known() == ["02:00:00:00:00:07"]
    for _ in range(2):
        addressing.remove_neighbour(netlink, wire, addr(text))
        assert known() == []
    addressing.remove_neighbour(netlink, 9999, addr(text))


# --- the kernel as the daemon has it ---


def test_a_service_bridge_of_one_family_has_no_ipv6(host, kernel):
    for _ in range(2):
        host.inside(lambda: kernel.ensure_bridge("zb-1", MAC, 1420, [iface("10.9.0.65/26")]))
    assert host.addresses("zb-1") == {"10.9.0.65/26"}
    assert host.sysctl("ipv6/conf/zb-1/disable_ipv6") == "1"
    assert host.sysctl("ipv4/conf/zb-1/send_redirects") == "0"


def test_a_service_bridge_of_two_families_takes_no_advertisements(host, kernel):
    both = [iface("10.9.0.65/26"), iface("fd00:9::101/120")]
    for _ in range(2):
        host.inside(lambda: kernel.ensure_bridge("zb-1", MAC, 1420, both))
    assert {"10.9.0.65/26", "fd00:9::101/120"} <= host.addresses("zb-1")
    assert host.sysctl("ipv6/conf/zb-1/accept_ra") == "0"


def test_a_service_bridge_gets_a_second_family_later(host, kernel):
    host.inside(lambda: kernel.ensure_bridge("zb-1", MAC, 1420, [iface("10.9.0.65/26")]))
    host.inside(lambda: kernel.ensure_bridge("zb-1", MAC, 1420, [iface("10.9.0.65/26"), iface("fd00:9::101/120")]))
    assert "fd00:9::101/120" in host.addresses("zb-1")


def test_gateways_come_and_go_and_a_missing_bridge_has_none(host, kernel):
    host.inside(lambda: kernel.ensure_bridge("zb-1", MAC, 1420, [iface("10.9.0.65/26")]))
    for name in ("zb-1", "absent"):
        for _ in range(2):
            host.inside(lambda name=name: kernel.ensure_gateway(name, iface("10.9.1.1/26")))
    assert host.addresses("zb-1") == {"10.9.0.65/26", "10.9.1.1/26"}
    for name in ("zb-1", "absent"):
        for _ in range(2):
            host.inside(lambda name=name: kernel.remove_gateway(name, iface("10.9.1.1/26")))
    assert host.addresses("zb-1") == {"10.9.0.65/26"}


@pytest.mark.parametrize("text", ["10.9.0.1", "fd00:9::1"])
def test_the_nodes_own_address_comes_and_goes(host, kernel, text):
    for _ in range(2):
        host.inside(lambda: kernel.ensure_node_address(addr(text)))
        assert any(each.startswith(f"{text}/") for each in host.addresses("lo"))
    for _ in range(2):
        host.inside(lambda: kernel.remove_node_address(addr(text)))
        assert not any(each.startswith(f"{text}/") for each in host.addresses("lo"))


def test_forwarding_is_switched_on_and_stays(host, kernel):
    host.sysctl("ipv4/ip_forward", "0")  # a new namespace has what the first one has
    host.sysctl("ipv6/conf/all/forwarding", "0")
    assert [host.inside(lambda v=v: kernel.forwarding(v)) for v in (4, 6)] == [False, False]
    host.inside(lambda: kernel.enable_forwarding([4]))
    assert [host.inside(lambda v=v: kernel.forwarding(v)) for v in (4, 6)] == [True, False]
    for _ in range(2):
        host.inside(lambda: kernel.enable_forwarding([4, 6]))
        assert [host.inside(lambda v=v: kernel.forwarding(v)) for v in (4, 6)] == [True, True]


@pytest.mark.parametrize("versions, six", [([4], "0"), ([6], "1"), ([4, 6], "1")])
def test_the_overlays_links_forward_the_overlays_families(host, kernel, versions, six):
    """A bridge has IPv6 for a moment, until the daemon that makes it has disabled IPv6: a node without IPv6 ranges that
    looked just then would leave the bridge with another setting than its sisters."""
    host.sysctl("ipv6/conf/all/forwarding", "1" if six == "1" else "0")
    host.ip("link add zl-0123456789-b type bridge")
    for family in ("ipv4", "ipv6"):
        host.sysctl(f"{family}/conf/zl-0123456789-b/forwarding", "0")
    host.inside(lambda: kernel.enable_forwarding(versions))
    assert host.sysctl("ipv4/conf/zl-0123456789-b/forwarding") == "1"
    assert host.sysctl("ipv6/conf/zl-0123456789-b/forwarding") == six


def test_an_uplink_goes_on_taking_its_default_route_from_advertisements(host, kernel):
    host.ip("link add up0 type veth peer name up1")
    host.sysctl("ipv6/conf/up0/accept_ra", "1")
    host.sysctl("ipv6/conf/up1/accept_ra", "0")
    host.inside(lambda: kernel.enable_forwarding([6]))
    assert [host.sysctl(f"ipv6/conf/{name}/accept_ra") for name in ("up0", "up1")] == ["2", "0"]


def test_an_uplink_that_is_a_bridge_does_too(host, kernel):
    host.ip("link add br0 type bridge")
    host.sysctl("ipv6/conf/br0/accept_ra", "1")
    host.inside(lambda: kernel.enable_forwarding([6]))
    assert host.sysctl("ipv6/conf/br0/accept_ra") == "2"


def test_the_underlays_mtu_is_the_default_routes(host, kernel):
    assert host.inside(kernel.underlay_mtu) == 1500
    host.ip(
        "link add up0 mtu 1380 type veth peer name up1",
        "link set up0 up",
        "addr add 192.0.2.2/24 dev up0",
        "route add default via 192.0.2.1",
    )
    assert host.inside(kernel.underlay_mtu) == 1380


def test_a_default_route_to_nowhere_is_no_underlay(host, kernel):
    host.ip("link set lo up", "-6 route add unreachable default")
    assert host.inside(kernel.underlay_mtu) == 1500
