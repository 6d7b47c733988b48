"""CHECK: what is wrong is found and named, what a later plugin may have changed is not."""

import ipaddress

import msgspec
import pytest

from cni.daemon.attachments.check import Observed, differences, sought
from cni.daemon.model.records import AssignedAddress, Attachment, StaticRoute
from cni.host.links import Link, Route, RoutePattern
from cni.host.ports import ContainerView
from cni.netconf.types import IP, Interface, Result
from cni.netconf.types import Route as ResultRoute

SANDBOX = "/run/netns/c1"
ATTACHMENT = Attachment(
    network="blue",
    container="c1",
    ifname="eth0",
    state="live",
    service="web",
    mode="auto",
    isolation=None,
    bridge="zl-br",
    host_veth="zl-port-v",
    host_mac="02:00:00:00:00:0a",
    mac="0a:58:0a:09:00:42",
    addresses=(AssignedAddress("10.9.0.66/26", "10.9.0.65"), AssignedAddress("fd00::102/120", "fd00::101")),
    routes=(
        StaticRoute("0.0.0.0/0", "10.9.0.65"),
        StaticRoute("::/0", "fd00::101"),
        StaticRoute("192.0.2.0/24", "10.9.0.65"),
    ),
    mtu=1420,
    netns=(4, 99),
    sandbox=SANDBOX,
)
HOST = Link(21, "zl-port-v", True, 1420, "02:00:00:00:00:0a", "veth", 20, 5, hairpin=True)
BRIDGE = Link(20, "zl-br", True, 1420, "02:00:00:00:00:01", "bridge")
LINK = Link(5, "eth0", True, 1420, "0a:58:0a:09:00:42", "veth", 0, 21)


def addresses(*texts):
    return tuple(ipaddress.ip_interface(text) for text in texts)


def route(dst, via, oif=5, kind=1):
    return Route(ipaddress.ip_network(dst), ipaddress.ip_address(via) if via else None, oif, kind)


ROUTES = (route("0.0.0.0/0", "10.9.0.65"), route("::/0", "fd00::101"), route("192.0.2.0/24", "10.9.0.65"))
GATEWAYS = frozenset(
    (a.ip, ipaddress.ip_address(g.gateway)) for g in ATTACHMENT.addresses for a in addresses(g.address)
)
INSIDE = ContainerView(
    LINK,
    addresses("10.9.0.66/26", "fd00::102/120", "fe80::1/64"),
    (*ROUTES, route("10.9.0.64/26", None)),
    gateways=GATEWAYS,
)
GOOD = Observed(
    host=HOST,
    bridge=BRIDGE,
    gateways=frozenset({"10.9.0.65", "fd00::101"}),
    inside=INSIDE,
    netns=(4, 99),
)
RESULT = Result(
    interfaces=(
        Interface("zl-br", BRIDGE.mac),
        Interface("zl-port-v", HOST.mac),
        Interface("eth0", "0a:58:0a:09:00:42", SANDBOX),
    ),
    ips=(IP("10.9.0.66/26", "10.9.0.65", 2), IP("fd00::102/120", "fd00::101", 2)),
)

HOST_END = RESULT.interfaces[1]


def changed(value, **members):
    """`value` with some members changed, whatever kind of struct it is."""
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **members)
    return type(value)(**{**vars(value), **members})


def look(seen=GOOD, attachment=ATTACHMENT, result=RESULT, sandbox=SANDBOX):
    return differences(attachment, result, sandbox, seen)


def with_link(**members):
    return changed(GOOD, inside=changed(INSIDE, link=changed(LINK, **members)))


def with_routes(*routes):
    return changed(GOOD, inside=changed(INSIDE, routes=routes))


def with_patterns(*patterns):
    return changed(GOOD, inside=changed(INSIDE, patterns=frozenset(patterns)))


def with_addresses(*texts):
    return changed(GOOD, inside=changed(INSIDE, addresses=addresses(*texts)))


def test_what_add_made_is_good():
    assert look() == []


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        (changed(GOOD, netns=(4, 98)), f"{SANDBOX} is not the network namespace"),
        (changed(GOOD, host=None), "host interface zl-port-v is missing"),
        (changed(GOOD, host=changed(HOST, up=False)), "host interface zl-port-v is down"),
        (changed(GOOD, host=changed(HOST, master=0)), "not on the bridge zl-br"),
        (changed(GOOD, host=changed(HOST, master=33)), "not on the bridge zl-br"),
        (changed(GOOD, host=changed(HOST, hairpin=False)), "not in hairpin mode"),
        (changed(GOOD, bridge=None), "bridge zl-br is missing"),
        (changed(GOOD, bridge=changed(BRIDGE, up=False)), "bridge zl-br is down"),
        (changed(GOOD, gateways=frozenset({"10.9.0.65"})), "gateway address fd00::101"),
        (changed(GOOD, stopped=("the node does not forward IPv4",)), "does not forward IPv4"),
        (changed(GOOD, inside=ContainerView(None)), "interface eth0 is missing"),
        (with_link(up=False), "interface eth0 is down"),
        (with_link(peer=22), "not the peer of zl-port-v"),
        (with_link(mac="0a:58:0a:09:00:43"), "MAC 0a:58:0a:09:00:43"),
        (with_addresses("fd00::102/120"), "address 10.9.0.66/26 is missing"),
        (with_addresses("10.9.0.66/24", "fd00::102/120"), "address 10.9.0.66/26 is missing"),
        (with_addresses("10.9.0.66/26"), "address fd00::102/120 is missing"),
        (with_routes(*ROUTES[1:]), "route to 0.0.0.0/0"),
        (with_routes(ROUTES[0], ROUTES[2]), "route to ::/0"),
        (with_routes(*ROUTES[:2]), "route to 192.0.2.0/24"),
        (with_routes(*ROUTES[:2], route("192.0.2.0/24", "10.9.0.99")), "route to 192.0.2.0/24"),
        (with_routes(*ROUTES[:2], route("192.0.2.0/24", "10.9.0.65", oif=6)), "route to 192.0.2.0/24"),
        (with_routes(*ROUTES[:2], route("192.0.2.0/24", "10.9.0.65", kind=7)), "route to 192.0.2.0/24"),
        (changed(GOOD, inside=changed(INSIDE, gateways=frozenset())), "eth0 has no route to its gateway 10.9.0.65"),
        (changed(GOOD, inside=changed(INSIDE, gateways=frozenset())), "eth0 has no route to its gateway fd00::101"),
        (changed(GOOD, unfenced=("its source rule",)), "the fence is not whole: its source rule"),
    ],
)
def test_what_is_wrong_is_named(seen, word):
    assert any(word in said for said in look(seen)), look(seen)


def test_one_fault_is_one_complaint():
    assert len(look(with_link(up=False))) == 1


def test_every_fault_is_told():
    seen = changed(with_link(up=False), host=changed(HOST, up=False), bridge=changed(BRIDGE, up=False))
    assert len(look(seen)) == 3


def test_an_unfinished_attachment_is_not_good():
    assert look(attachment=changed(ATTACHMENT, state="intent")) != []


@pytest.mark.parametrize(
    "seen",
    [
        with_addresses("10.9.0.66/26", "fd00::102/120", "172.16.0.1/24"),
        with_routes(*ROUTES, route("198.51.100.0/24", "10.9.0.70"), route("0.0.0.0/0", "172.16.0.1", oif=9)),
        with_link(mtu=1300),
    ],
)
def test_what_a_later_plugin_added_or_tuned_is_good(seen):
    assert look(seen) == []


def test_a_mac_that_a_later_plugin_changed_and_told_is_good():
    tuned = "02:11:22:33:44:55"
    interfaces = (*RESULT.interfaces[:2], changed(RESULT.interfaces[2], mac=tuned.upper()))
    assert look(with_link(mac=tuned), result=changed(RESULT, interfaces=interfaces)) == []
    assert look(with_link(mac=tuned)) != []


def test_a_mac_that_the_result_does_not_have_is_told():
    interfaces = (*RESULT.interfaces[:2], changed(RESULT.interfaces[2], mac="02:11:22:33:44:55"))
    assert any("MAC" in said for said in look(result=changed(RESULT, interfaces=interfaces)))


def test_a_result_without_a_mac_leaves_it_to_the_record():
    bare = changed(RESULT, interfaces=(*RESULT.interfaces[:2], changed(RESULT.interfaces[2], mac="")))
    assert look(result=bare) == []
    assert look(with_link(mac="02:11:22:33:44:55"), result=bare) != []


def test_a_host_end_with_that_mac_in_the_result_does_not_count():
    assert look(with_link(mac=HOST.mac)) != []


@pytest.mark.parametrize(
    "result",
    [
        changed(RESULT, interfaces=RESULT.interfaces[:2], ips=()),
        changed(RESULT, interfaces=(*RESULT.interfaces[:2], Interface("eth1", LINK.mac, SANDBOX))),
        changed(RESULT, interfaces=(*RESULT.interfaces[:2], Interface("eth0", LINK.mac, "/run/netns/other"))),
        changed(RESULT, ips=RESULT.ips[:1]),
        changed(RESULT, ips=(IP("10.9.0.67/26", "", 2), RESULT.ips[1])),
        changed(RESULT, ips=(IP("10.9.0.66/26", "", 0), RESULT.ips[1])),
        Result(),
        changed(RESULT, interfaces=(changed(RESULT.interfaces[0], name="cni0"), *RESULT.interfaces[1:])),
        changed(RESULT, interfaces=(RESULT.interfaces[0], changed(HOST_END, name="veth0"), RESULT.interfaces[2])),
    ],
)
def test_a_result_that_is_not_of_this_attachment_is_told(result):
    assert any("prevResult" in said for said in look(result=result))


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        (
            changed(
                RESULT, interfaces=(changed(RESULT.interfaces[0], mac="02:00:00:00:00:77"), *RESULT.interfaces[1:])
            ),
            "prevResult has the MAC 02:00:00:00:00:77 for zl-br, which has 02:00:00:00:00:01",
        ),
        (
            changed(
                RESULT,
                interfaces=(RESULT.interfaces[0], changed(HOST_END, mac="02:00:00:00:00:78"), RESULT.interfaces[2]),
            ),
            "prevResult has the MAC 02:00:00:00:00:78 for zl-port-v, which has 02:00:00:00:00:0a",
        ),
        (
            changed(RESULT, ips=(IP("10.9.0.66/26", "10.9.0.99", 2), RESULT.ips[1])),
            "prevResult has the gateway 10.9.0.99 for 10.9.0.66/26, not 10.9.0.65",
        ),
        (
            changed(RESULT, ips=(RESULT.ips[0], IP("fd00::102/120", "fd00::0999", 2))),
            "prevResult has the gateway fd00::0999 for fd00::102/120, not fd00::101",
        ),
    ],
)
def test_a_member_of_the_result_that_differs_is_named(result, fault):
    assert look(result=result) == [fault]


def test_a_mac_and_a_gateway_in_another_spelling_are_good():
    interfaces = (*RESULT.interfaces[:1], changed(HOST_END, mac=HOST.mac.upper()), RESULT.interfaces[2])
    ips = (RESULT.ips[0], IP("fd00::102/120", "FD00:0::0101", 2))
    assert look(result=changed(RESULT, interfaces=interfaces, ips=ips)) == []


V4, V6, VIA4 = "198.51.100.0/24", "2001:db8::/32", ipaddress.ip_address("10.9.0.65")


@pytest.mark.parametrize(
    ("reported", "members", "text"),
    [
        (ResultRoute(V4), {}, f"{V4}"),
        (ResultRoute(V6), {}, f"{V6}"),
        (ResultRoute("198.51.100.7/24", str(VIA4)), {"gateway": VIA4}, f"198.51.100.7/24 via {VIA4}"),
        (ResultRoute(V4, str(VIA4), mtu=1300), {"gateway": VIA4, "mtu": 1300}, f"{V4} via {VIA4} mtu 1300"),
        (ResultRoute(V4, advmss=1200), {"advmss": 1200}, f"{V4} advmss 1200"),
        (ResultRoute(V4, priority=7), {"priority": 7}, f"{V4} priority 7"),
        (ResultRoute(V4, table=100), {"table": 100}, f"{V4} table 100"),
        (ResultRoute(V4, table=0), {}, V4),
        (ResultRoute(V4, scope=0), {"scope": 0}, V4),
        (ResultRoute(V4, scope=253), {"scope": 253}, f"{V4} scope 253"),
        (
            ResultRoute("0.0.0.0/0", str(VIA4), mtu=1300),
            {"gateway": VIA4, "mtu": 1300},
            f"0.0.0.0/0 via {VIA4} mtu 1300",
        ),
    ],
)
def test_a_route_of_the_result_must_be_there_with_all_that_the_result_says_of_it(reported, members, text):
    result = changed(RESULT, routes=(reported,))
    pattern = RoutePattern(ipaddress.ip_interface(reported.dst).network, **members)
    assert sought(ATTACHMENT, result, SANDBOX).patterns == {pattern}
    assert look(result=result) == [f"prevResult has the route {text}, which the container lacks"]
    assert look(with_patterns(pattern), result=result) == []


def test_a_route_that_add_made_is_not_reported_twice():
    result = changed(RESULT, routes=tuple(ResultRoute(r.dst, r.via) for r in ATTACHMENT.routes))
    assert sought(ATTACHMENT, result, SANDBOX).patterns == set()
    assert look(result=result) == []
    assert len(look(with_routes(*ROUTES[:2]), result=result)) == 1


def test_a_result_with_more_than_ours_is_good():
    more = changed(
        RESULT,
        interfaces=(*RESULT.interfaces, Interface("net1", "02:00:00:00:00:77", SANDBOX)),
        ips=(*RESULT.ips, IP("172.16.0.1/24", "", 3)),
    )
    assert look(result=more) == []


@pytest.mark.parametrize("address", ["10.9.0.70/26", "FD00::0:77/120"])
def test_an_address_that_the_result_gives_to_the_interface_must_be_there(address):
    more = changed(RESULT, ips=(*RESULT.ips, IP(address, "", 2)))
    assert any("is missing" in said for said in look(result=more))
    there = with_addresses("10.9.0.66/26", "fd00::102/120", address)
    assert look(there, result=more) == []


def test_an_address_without_an_index_in_the_result_is_good():
    assert look(result=changed(RESULT, ips=tuple(changed(ip, interface=None) for ip in RESULT.ips))) == []


def test_a_gateway_in_another_spelling_is_good():
    routes = (*ATTACHMENT.routes, StaticRoute("2001:db8::/32", "FD00::0101"))
    seen = with_routes(*ROUTES, route("2001:db8::/32", "fd00::101"))
    assert look(seen, attachment=changed(ATTACHMENT, routes=routes)) == []


@pytest.mark.parametrize(("what", "bound"), [("addresses", 4096), ("routes", 16384)])
def test_what_could_not_be_read_is_told_instead_of_what_is_missing(what, bound):
    seen = changed(GOOD, inside=ContainerView(LINK, INSIDE.addresses, INSIDE.routes, (what,), gateways=GATEWAYS))
    (said,) = look(seen)
    assert f"more than {bound} {what}" in said


def test_what_to_look_for_is_what_add_gave_and_what_the_result_promises():
    found = sought(ATTACHMENT, RESULT, SANDBOX)
    assert {str(a) for a in found.addresses} == {h.address for h in ATTACHMENT.addresses}
    assert {(str(dst), str(via)) for dst, via in found.routes} == {(r.dst, r.via) for r in ATTACHMENT.routes}
    assert {str(gateway) for _, gateway in found.gateways} == {h.gateway for h in ATTACHMENT.addresses}
