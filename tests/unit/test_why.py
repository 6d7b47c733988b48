"""Who may reach whom, as `why` says it: every kind of place to every other, and only rules that there are.

tests/kernel/test_tool.py compares the same answers with packets.
"""

import re
from dataclasses import replace

import pytest

from cni import answers
from cni.cli import why as why_cli
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.explain import why
from cni.daemon.fence.explain.endpoints import (
    Ambiguous,
    Balanced,
    EndpointKind,
    FenceView,
    GuestEndpoint,
    TunnelRoute,
)
from cni.daemon.fence.explain.operands import resolve
from cni.daemon.fence.explain.translated import PortSpec
from cni.daemon.fence.model import FenceBridge, FenceEdge, FenceNode, FencePort, RemoteMember, link_local
from cni.host.nat_rules import Base, Match, NatRule, Target
from cni.openings import Opening

WEB, DB = "zl-z-0-web-b", "zl-z-0-db-b"


def host_port(number, address, port, host_address=""):
    """What portmap writes for a port of the host's: for every address of the host, or for one."""
    at = Match("dst", (host_address,)) if host_address else Match("daddr-type", ("local",))
    rule = NatRule(
        (at, Match("proto", ("tcp",)), Match("dport", (str(number),))), "translate", target=Target(address, port)
    )
    version = 6 if ":" in address else 4
    return tuple(Base(hook, True, -100, (version,), "c", {"c": (rule,)}) for hook in ("prerouting", "output"))


def guest(name, bridge, place, network, pod=""):
    subnet, number = place
    addresses = (f"10.200.{subnet}.{number}", f"fd00:200:0:{subnet}::{number}")
    port = FencePort(f"zl-{name}", bridge, f"02:c0:00:00:{subnet:02x}:{number:02x}", addresses, network)
    return GuestEndpoint(name, pod, port, (f"{addresses[0]}/26", f"{addresses[1]}/64"))


GUESTS = (
    guest("red-a", WEB, (5, 2), "red", "shop/a"),
    guest("red-b", WEB, (5, 3), "red"),
    guest("red-db", DB, (6, 4), "red"),
    guest("red-far", WEB, (7, 9), "red"),  # another subnet of its service, on the same bridge
    guest("blue-a", WEB, (5, 5), "blue"),
    guest("blue-db", DB, (6, 6), "blue"),
    guest("flat-a", WEB, (5, 7), None),
    guest("flat-db", DB, (6, 8), None),
    guest("empty", DB, (6, 9), ""),
)
VIEW = FenceView(
    desired=DesiredState(
        node=FenceNode(("10.200.0.0/16", "fd00:200::/48"), ("10.200.0.1", "fd00:200::1"), ("zl-z-0-g",)),
        bridges=(FenceBridge(WEB), FenceBridge(DB)),
        ports=tuple(each.port for each in GUESTS),
        remotes=(
            RemoteMember("red", frozenset({"10.200.40.2", "fd00:200:0:40::2"})),
            RemoteMember(None, frozenset({"10.200.40.3", "fd00:200:0:40::3"})),
        ),
    ),
    guests=GUESTS,
    host=(
        ("lo", "127.0.0.1/8"),
        ("lo", "10.200.0.1/32"),
        ("lo", "fd00:200::1/128"),
        (WEB, "10.200.5.1/26"),
        (WEB, "10.200.7.1/26"),
        (WEB, "fd00:200:0:5::1/64"),
        (DB, "10.200.6.1/26"),
        (DB, "fd00:200:0:6::1/64"),
        ("eth0", "192.0.2.1/24"),
        ("eth0", "2001:db8::1/64"),
    ),
    leases={"10.200.5.40": "leased to x, and no container's"},
    translating=(*host_port(8080, "10.200.5.2", 80), *host_port(9090, "10.200.5.7", 90, "192.0.2.1")),
    tracks_bridged=frozenset({4, 6}),
)


def ask(src, dst, service=None, view=VIEW):
    """(allowed, the rule's name or None) of every pair of addresses, which must agree but for the IPv6 names."""
    found = [why.decide(view, a, b, service) for a, b in why.pairs(resolve(view, src), resolve(view, dst))]
    assert found
    said = {(v.allowed, v.spot and re.sub(r", IPv6$", "", v.spot.name).replace("IPv6", "IPv4")) for v in found}
    assert len(said) == 1, found
    return said.pop()


TABLE = """
red-a    red-b          yes  same network
red-a    red-db         yes  same network
red-a    red-far        yes  same network
red-a    blue-a         no   between networks
red-a    blue-db        no   between networks
red-a    flat-a         no   between networks
red-a    empty          no   between networks
red-a    10.200.40.2    yes  same network
red-a    10.200.40.3    no   between networks
red-a    10.200.5.60    no   between networks
red-a    10.200.99.1    no   between networks
red-a    10.200.5.40    no   between networks
red-a    node           yes  node address
red-a    10.200.5.1     no   host address
red-a    10.200.6.1     no   host address
red-a    192.0.2.1      no   host address
red-a    2001:db8::1    no   host address
red-a    127.0.0.1      no   loopback of the host
red-a    ::1            no   -
red-a    outside        yes  to the outside
red-a    203.0.113.9    yes  to the outside
red-a    red-a          yes  -
flat-a   flat-db        yes  same network
flat-a   red-a          no   between networks
flat-a   red-db         no   between networks
flat-a   10.200.40.3    yes  same network
flat-a   node           yes  flat mesh to the host
flat-a   10.200.6.1     yes  flat mesh to the host
flat-a   192.0.2.1      yes  flat mesh to the host
flat-a   10.200.99.1    no   between networks
flat-a   127.0.0.1      no   loopback of the host
flat-a   outside        yes  to the outside
empty    flat-a         no   between networks
node     red-a          yes  to a port
node     blue-db        yes  to a port
node     10.200.5.60    no   gateway to unknown port
node     10.200.99.1    no   -
node     10.200.40.2    yes  -
node     outside        yes  -
node     192.0.2.1      yes  -
outside  red-a          no   stranger to a member
outside  empty          no   stranger to a member
outside  flat-a         yes  to the flat mesh
outside  10.200.40.3    yes  to the flat mesh
outside  10.200.40.2    no   to an unknown overlay address
outside  10.200.99.1    no   to an unknown overlay address
outside  node           yes  -
outside  192.0.2.1      yes  -
outside  127.0.0.1      no   -
outside  203.0.113.9    yes  -
10.200.40.2  red-a      yes  same network
10.200.40.2  blue-a     no   between networks
10.200.40.2  flat-a     no   between networks
10.200.40.2  10.200.99.1  no  between networks
10.200.40.2  node       no   -
10.200.40.2  192.0.2.1  yes  -
10.200.40.2  outside    yes  -
10.200.40.2  127.0.0.1  no   loopback of the host
10.200.40.3  flat-a     yes  same network
10.200.99.1  red-a      no   overlay IPv4 source from elsewhere
fd00:200:0:99::1  red-a  no  overlay IPv4 source from elsewhere
10.200.5.1   red-a      yes  to a port
"""
CASES = [line.split(maxsplit=3) for line in TABLE.strip().splitlines()]

EDGE = FenceEdge("\0edge", "10.200.0.20", ("10.200.5.2/32", "10.200.41.0/26", "10.200.40.0/24", "192.168.7.0/24"))
FAR = replace(
    VIEW,
    desired=replace(
        VIEW.desired, edges=(EDGE,), remotes=(*VIEW.desired.remotes, RemoteMember("red", frozenset({"10.200.5.51"})))
    ),
    behind=(
        TunnelRoute("10.200.40.0/24", "behind node2"),
        TunnelRoute("fd00:200:0:40::/64", "behind node2"),
        TunnelRoute("10.200.41.0/26", "behind node3"),
        TunnelRoute("192.168.9.0/24", "behind node3"),
        TunnelRoute("10.200.5.50/32", "guest vm", "vm"),
        TunnelRoute("10.200.5.51/32", "guest vm-red", "vm-red"),
        TunnelRoute("10.200.0.20/32", "edge runner", "runner"),
    ),
)
FAR_TABLE = """
flat-a       10.200.41.7       yes  flat mesh elsewhere
flat-a       fd00:200:0:40::9  yes  flat mesh elsewhere
flat-a       10.200.40.2       no   between networks
flat-a       vm                yes  flat mesh elsewhere
flat-a       runner            no   between networks
flat-a       192.168.9.4       yes  to the outside
red-a        10.200.40.2       yes  same network
red-a        10.200.41.7       no   between networks
red-a        vm                no   between networks
red-a        runner            no   between networks
red-a        10.200.5.60       no   between networks
node         vm                yes  -
node         runner            yes  -
node         10.200.41.7       yes  -
outside      10.200.41.7       no   to an unknown overlay address
outside      vm                no   to an unknown overlay address
outside      runner            no   to an unknown overlay address
10.200.41.7  flat-a            yes  same network
10.200.41.7  red-a             no   between networks
10.200.41.7  10.200.40.2       no   between networks
10.200.41.7  vm                yes  flat mesh elsewhere
10.200.41.7  runner            no   between networks
10.200.41.7  node              yes  -
10.200.41.7  10.200.5.1        yes  -
10.200.41.7  192.0.2.1         yes  -
10.200.41.7  outside           yes  -
10.200.41.7  127.0.0.1         no   loopback of the host
10.200.40.2  node              no   -
10.200.40.2  10.200.5.1        no   -
10.200.40.2  192.0.2.1         yes  -
192.168.9.4  flat-a            yes  to the flat mesh
192.168.9.4  red-a             no   stranger to a member
vm           flat-a            yes  same network
vm           red-a             no   between networks
vm           10.200.41.7       yes  flat mesh elsewhere
vm           10.200.40.2       no   between networks
vm           runner            no   between networks
vm           node              yes  -
vm           outside           no   tunnel to the outside
vm           127.0.0.1         no   loopback of the host
red-a        vm-red            yes  same network
flat-a       vm-red            no   between networks
blue-a       vm-red            no   between networks
vm           vm-red            no   between networks
10.200.40.2  vm-red            yes  same network
10.200.41.7  vm-red            no   between networks
outside      vm-red            no   to an unknown overlay address
node         vm-red            yes  -
vm-red       red-a             yes  same network
vm-red       10.200.40.2       yes  same network
vm-red       flat-a            no   between networks
vm-red       vm                no   between networks
vm-red       runner            no   between networks
vm-red       10.200.41.7       no   between networks
vm-red       node              yes  node address, from elsewhere
vm-red       10.200.5.1        no   host address, from elsewhere
vm-red       outside           no   tunnel to the outside
vm-red       127.0.0.1         no   loopback of the host
runner       red-a             yes  edge to 10.200.5.2/32
runner       red-b             no   not allowed to an edge peer
runner       flat-a            no   not allowed to an edge peer
runner       10.200.41.7       yes  edge to 10.200.41.0/26
runner       10.200.40.2       no   -
runner       node              yes  node address, from elsewhere
runner       10.200.5.1        no   not allowed to an edge peer
runner       192.168.7.9       yes  edge to 192.168.7.0/24
runner       203.0.113.9       no   not allowed to an edge peer
runner       outside           no   not allowed to an edge peer
runner       127.0.0.1         no   loopback of the host
"""
FAR_CASES = [line.split(maxsplit=3) for line in FAR_TABLE.strip().splitlines()]


@pytest.mark.parametrize(("src", "dst", "may", "rule"), CASES)
def test_who_may_reach_whom(src, dst, may, rule):
    assert ask(src, dst) == (may == "yes", None if rule == "-" else rule)


@pytest.mark.parametrize(("src", "dst", "may", "rule"), FAR_CASES)
def test_who_may_reach_whom_by_tunnels(src, dst, may, rule):
    assert ask(src, dst, view=FAR) == (may == "yes", None if rule == "-" else rule)


def test_the_longest_prefix_says_where_an_address_is():
    wide = replace(FAR, behind=(*FAR.behind, TunnelRoute("10.200.0.0/16", "behind a node that has everything")))
    assert [p.kind for p in resolve(wide, "10.200.5.60")] == [EndpointKind.UNKNOWN], "on our own bridge"
    assert [p.kind for p in resolve(wide, "10.200.5.50")] == [EndpointKind.CALLER], (
        "a guest has one of our bridge's addresses"
    )
    assert [p.label for p in resolve(wide, "10.200.41.9")] == ["behind node3"]
    assert [p.label for p in resolve(wide, "10.200.99.1")] == ["behind a node that has everything"]


@pytest.mark.parametrize(("view", "cases", "least"), [(VIEW, CASES, 25), (FAR, FAR_CASES, 20)], ids=["here", "far"])
def test_every_rule_that_is_named_exists(view, cases, least):
    """In the chain that is named, with the verdict that fits."""
    rules = {(c.family, c.name, r.name): r.verdict for c in view.desired.chains() for r in c.rules}
    named = set()
    words = sorted({word for case in cases for word in case[:2]})
    for src in words:
        for dst in words:
            for a, b in why.pairs(resolve(view, src), resolve(view, dst)):
                for service in (None, PortSpec(8080), PortSpec(9090), PortSpec(4789, "udp")):
                    verdict = why.decide(view, a, b, service)
                    assert verdict.reason
                    if verdict.spot:
                        named.add((verdict.spot.family, verdict.spot.chain, verdict.spot.name, verdict.allowed))
    assert len(named) > least
    for family, chain, name, allowed in named:
        assert (rules[family, chain, name] != "drop") == allowed, (family, chain, name)


def test_on_one_bridge_it_goes_by_port_and_else_by_address():
    def spots(src, dst):
        found = why.pairs(resolve(VIEW, src), resolve(VIEW, dst))
        return {why.decide(VIEW, a, b).spot.family for a, b in found}

    assert spots("red-a", "red-b") == {"bridge"}
    assert spots("red-a", "blue-a") == {"bridge"}
    assert spots("red-a", "red-db") == {"inet"}
    assert spots("red-a", "red-far") == {"inet"}  # by the gateway, though on one bridge
    assert spots("red-a", "10.200.5.60") == {"bridge"}
    assert spots("red-a", "10.200.6.60") == {"inet"}


def test_the_refusing_chain_is_the_senders():
    (pair,) = why.pairs(resolve(VIEW, "10.200.5.2"), resolve(VIEW, "10.200.5.5"))
    assert why.decide(VIEW, *pair).spot.network == "red"


# --- ports --------------------------------------------------------------------------------------------------------


def test_tunnel_ports_are_those_of_the_rule():
    rules = [r for c in VIEW.desired.chains() for r in c.rules if r.name.startswith("tunnel to the node")]
    assert len(rules) == 2
    for rule in rules:
        assert {int(n) for n in re.findall(r"\d+", rule.match)} == why.TUNNEL_PORTS
    assert ask("red-a", "node", PortSpec(4789, "udp")) == (False, "tunnel to the node")
    for src in ("vm-red", "runner"):
        assert ask(src, "node", PortSpec(4789, "udp"), FAR) == (False, "tunnel to the node, from elsewhere")
        assert ask(src, "node", PortSpec(4789), FAR) == (True, "node address, from elsewhere")
    assert ask("vm", "node", PortSpec(4789, "udp"), FAR) == (True, None)


@pytest.mark.parametrize(
    ("service", "may"),
    [(PortSpec(4789, "udp"), False), (PortSpec(4789), True), (PortSpec(53, "udp"), True)],
)
def test_no_tunnel_from_a_network_into_the_node(service, may):
    assert ask("red-a", "node", service)[0] is may
    assert ask("flat-a", "node", service)[0] is True


PUBLISHED = [
    ("outside", "192.0.2.1", 8080, True, "published port"),
    ("outside", "192.0.2.1", 8081, True, None),
    ("outside", "192.0.2.1", 9090, True, "to the flat mesh"),
    ("red-db", "192.0.2.1", 8080, True, "same network"),
    ("blue-a", "192.0.2.1", 8080, False, "between networks"),
    ("flat-a", "192.0.2.1", 8080, False, "between networks"),
    ("flat-db", "192.0.2.1", 9090, True, "same network"),
    ("blue-a", "10.200.0.1", 9090, True, "node address"),  # published on another address of the host
    ("node", "192.0.2.1", 8080, True, "to a port"),
    ("outside", "2001:db8::1", 8080, True, None),  # published for IPv4 alone
    ("outside", "red-a", 8080, False, "stranger to a member"),  # not by the container's own address
]


@pytest.mark.parametrize(("src", "dst", "port", "may", "rule"), PUBLISHED)
def test_published_ports(src, dst, port, may, rule):
    assert ask(src, dst, PortSpec(port)) == (may, rule)


@pytest.mark.parametrize(
    ("address", "allowed", "rule"),
    [
        ("10.200.41.7", True, "published port elsewhere"),
        ("10.200.40.2", False, None),  # a member of a network: this node sends it on, its own node drops it
        ("10.200.99.1", False, "to an unknown overlay address"),
    ],
)
def test_a_node_port_leads_to_another_node(address, allowed, rule):
    view = replace(FAR, translating=host_port(31080, address, 80))
    found = why.decide(view, view.place_of("198.51.100.7"), view.place_of("192.0.2.1"), PortSpec(31080))
    assert (found.allowed, found.spot and found.spot.name) == (allowed, rule)
    chains = {chain.name: chain.rule_names() for chain in view.desired.chains()}
    assert found.spot is None or rule in chains[found.spot.chain]


def test_a_published_port_is_noted():
    ((a, b),) = why.pairs(resolve(VIEW, "203.0.113.9"), resolve(VIEW, "192.0.2.1"))
    assert "10.200.5.2 port 80" in why.decide(VIEW, a, b, PortSpec(8080)).notes[0]
    assert why.decide(VIEW, a, b, PortSpec(8080, "udp")).spot is None


OPENED = replace(
    VIEW,
    desired=replace(
        VIEW.desired,
        node=replace(
            VIEW.desired.node,
            openings=True,
            reach=(
                *(Opening(f"10.200.{subnet}.{number}", "udp", 53) for subnet, number in ((6, 8), (5, 7), (5, 60))),
                Opening("10.200.40.3"),
                Opening("10.96.0.10", "tcp", 8080),
                Opening("192.0.2.1", "tcp", 6443),
            ),
            senders=("10.200.6.6/32", "198.51.100.0/24"),
        ),
    ),
    translating=(*VIEW.translating, *host_port(8080, "10.200.6.8", 80, "10.96.0.10")),
)


@pytest.mark.parametrize(
    ("src", "dst", "port", "may", "rule"),
    [
        ("10.200.5.2", "10.200.6.8", PortSpec(53, "udp"), True, "isolation.reach, udp"),
        ("10.200.5.2", "10.200.6.8", PortSpec(53), False, "between networks"),
        ("10.200.5.2", "10.200.6.8", None, False, "between networks"),
        ("10.200.5.2", "10.200.5.7", PortSpec(53, "udp"), True, "isolation.reach, udp"),  # on its bridge
        ("10.200.5.2", "10.200.5.60", PortSpec(53, "udp"), False, "between networks"),  # not in use
        ("10.200.5.2", "10.200.40.3", PortSpec(99), True, "isolation.reach"),
        ("10.200.5.2", "10.96.0.10", PortSpec(8080), True, "isolation.reach, tcp"),
        ("10.200.5.2", "10.200.6.8", PortSpec(80), False, "between networks"),
        ("10.200.5.2", "192.0.2.1", PortSpec(6443), True, "isolation.reach, tcp"),
        ("203.0.113.9", "10.200.5.2", PortSpec(53), False, "stranger to a member"),
        ("198.51.100.9", "10.200.5.2", PortSpec(53), True, "isolation.from"),
        ("10.200.6.6", "10.200.5.2", None, True, "isolation.from"),
        ("10.200.5.2", "10.200.6.6", None, False, "between networks"),
        ("10.200.6.6", "10.200.5.60", None, False, "between networks"),
    ],
)
def test_what_the_settings_open(src, dst, port, may, rule):
    found = why.decide(OPENED, OPENED.place_of(src), OPENED.place_of(dst), port)
    assert (found.allowed, found.spot and found.spot.name) == (may, rule)
    chains = {(chain.family, chain.name): chain.rule_names() for chain in OPENED.desired.chains()}
    assert rule in chains[found.spot.family, found.spot.chain]


def test_a_listed_flow_on_one_bridge_needs_br_netfilter():
    view = replace(OPENED, tracks_bridged=frozenset())
    found = why.decide(view, view.place_of("10.200.5.2"), view.place_of("10.200.5.7"), PortSpec(53, "udp"))
    assert not found.allowed
    assert "bridge-nf-call" in found.notes[0]


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "kind", "addresses"),
    [
        ("red-a", EndpointKind.CONTAINER, ["10.200.5.2", "fd00:200:0:5::2"]),
        ("shop/a", EndpointKind.CONTAINER, ["10.200.5.2", "fd00:200:0:5::2"]),
        ("blue-d", EndpointKind.CONTAINER, ["10.200.6.6", "fd00:200:0:6::6"]),
        ("FD00:200:0:5:0::2", EndpointKind.CONTAINER, ["fd00:200:0:5::2"]),
        ("node", EndpointKind.HOST, ["10.200.0.1", "fd00:200::1"]),
        ("10.200.6.1", EndpointKind.HOST, ["10.200.6.1"]),
        ("outside", EndpointKind.OUTSIDE, [""]),
        ("198.51.100.3", EndpointKind.OUTSIDE, ["198.51.100.3"]),
        ("10.200.40.2", EndpointKind.REMOTE, ["10.200.40.2"]),
        ("10.200.5.40", EndpointKind.UNKNOWN, ["10.200.5.40"]),
        ("127.9.9.9", EndpointKind.LOOPBACK, ["127.9.9.9"]),
    ],
)
def test_what_a_word_means(word, kind, addresses):
    found = resolve(VIEW, word)
    assert {place.kind for place in found} == {kind}
    assert [place.address for place in found] == addresses


@pytest.mark.parametrize("word", ["red", "absent", "", "224.0.0.1", "ff02::1", "255.255.255.255", "0.0.0.0", "fe80::9"])
def test_a_word_that_is_unclear(word):
    with pytest.raises(Ambiguous):
        resolve(VIEW, word)


def test_link_local_is_the_neighbours_and_stays_on_the_bridge():
    def to(name):
        (target,) = [g for g in GUESTS if g.container == name]
        return ask("red-a", f"{link_local(target.port.mac)}%eth0")

    assert to("red-b") == (True, "same network")
    assert to("blue-a") == (False, "between networks")
    assert to("red-db") == (False, None)


def test_pairs_are_of_one_family():
    found = why.pairs(resolve(VIEW, "red-a"), resolve(VIEW, "outside"))
    assert [(a.address, b.version) for a, b in found] == [("10.200.5.2", 4), ("fd00:200:0:5::2", 6)]
    assert why.pairs(resolve(VIEW, "10.200.5.2"), resolve(VIEW, "fd00:200:0:5::3")) == []
    assert len(why.pairs(resolve(VIEW, "outside"), resolve(VIEW, "outside"))) == 1


# --- IPVS -------------------------------------------------------------------------------------------------------------

OWN, OUT = "192.0.2.1", "203.0.113.9"


def with_service(*servers, **more):
    """The view with an IPVS service at port 53/udp of the host's address."""
    balanced = tuple(Balanced("udp", 53, address, 53, OWN, translated) for address, translated in servers)
    return replace(VIEW, balanced=balanced, **more)


@pytest.mark.parametrize(
    ("src", "server", "said"),
    [
        ("red-a", "10.200.6.4", (True, "same network")),
        ("blue-a", "10.200.6.4", (False, "between networks")),
        ("flat-a", "10.200.6.4", (False, "between networks")),
        ("flat-a", "10.200.6.8", (True, "same network")),
        ("red-a", "10.200.40.2", (True, "same network")),
        ("red-a", "10.200.99.1", (False, "between networks")),
        ("red-a", OUT, (True, "handed on to the outside")),
        ("red-a", OWN, (False, "host address")),
        ("red-a", "10.200.0.1", (True, "node address")),
        ("flat-a", OWN, (True, "flat mesh to the host")),
        ("node", "10.200.6.4", (True, "to a port")),
        ("outside", "10.200.6.4", (True, None)),
        ("10.200.40.3", "10.200.6.4", (True, None)),  # masqueraded by its own node
    ],
)
def test_a_service_of_ipvs_is_judged_by_who_asks(src, server, said):
    assert ask(src, OWN, PortSpec(53, "udp"), with_service((server, True))) == said


def test_of_several_real_servers_one_that_may_be_reached_is_enough():
    view = with_service(("10.200.5.5", True), ("10.200.6.4", True))
    assert ask("red-a", OWN, PortSpec(53, "udp"), view) == (True, "same network")
    assert ask("red-a", OWN, PortSpec(54, "udp"), view) == (False, "host address")
    assert ask("red-a", OWN, PortSpec(53, "tcp"), view) == (False, "host address")


def test_a_packet_that_keeps_the_virtual_address_reaches_no_container():
    name = "handed on to a container by an address of others"
    assert ask("red-a", OWN, PortSpec(53, "udp"), with_service(("10.200.6.4", False))) == (False, name)


def test_a_service_of_ipvs_leaves_by_a_tunnel_as_well():
    view = with_service(("10.200.40.2", True), ways={"10.200.40.2": "eth0"})
    assert ask("red-a", OWN, PortSpec(53, "udp"), view) == (False, "overlay without a tunnel")


@pytest.mark.parametrize(
    ("src", "dst", "service", "allowed", "rule"),
    [
        ("10.200.77.9", "192.0.2.1", None, True, None),
        ("10.200.77.9", "10.200.5.7", None, False, "connected network to a member"),
        ("10.200.77.9", "10.200.5.2", None, False, "connected network to a member"),
        ("10.200.77.9", "198.51.100.7", None, True, None),
        ("10.200.77.9", "192.0.2.1", PortSpec(8080), True, "published port, from a connected network"),
        ("10.200.0.1", "10.200.77.9", None, True, None),
        ("10.200.5.2", "10.200.77.9", None, False, "between networks"),
        ("10.200.78.9", "192.0.2.1", None, False, "overlay IPv4 source from elsewhere"),
    ],
)
def test_a_network_of_the_hosts_own_in_the_range(src, dst, service, allowed, rule):
    node = replace(VIEW.desired.node, connected=("10.200.77.0/24",))
    view = replace(VIEW, desired=replace(VIEW.desired, node=node), translating=host_port(8080, "10.200.5.2", 80))
    found = why.decide(view, view.place_of(src), view.place_of(dst), service)
    assert (found.allowed, found.spot and found.spot.name) == (allowed, rule)
    if rule:
        chains = {
            chain.name: chain.rule_names() for chain in view.desired.chains() if chain.family == found.spot.family
        }
        assert rule in chains[found.spot.chain]


# --- what an operator calls them --------------------------------------------------------------------------------------

A, B = "3a" * 32, "3b" * 32
NAMED = replace(
    VIEW,
    guests=(
        guest(f"default-{A}", WEB, (5, 21), None, "shop/front-6c8d9-x7k2p"),
        guest(f"default-{B}", WEB, (5, 22), None, "shop/front-6c8d9-q9z4m"),
        guest("default-newc1", WEB, (5, 23), None),
        guest("default-newc2", WEB, (5, 24), None),
        guest("pod-a", WEB, (5, 25), None, "shop/db"),
        guest("pod-b", WEB, (5, 26), None, "test/db"),
    ),
    behind=(
        TunnelRoute("10.200.64.0/26", "behind worker-2", node="worker-2", peer="k2"),
        TunnelRoute("10.200.65.0/26", "behind worker-2", node="worker-2", peer="k2"),
        TunnelRoute("10.200.66.0/26", "behind twin", node="twin", peer="k3"),
        TunnelRoute("10.200.67.0/26", "behind twin", node="twin", peer="k4"),
        TunnelRoute("10.200.5.50/32", "guest laptop", name="laptop", peer="k5"),
    ),
    node_name="worker-1",
)


@pytest.mark.parametrize(
    ("word", "address"),
    [
        ("newc1", "10.200.5.23"),
        (f"default-{A[:12]}", "10.200.5.21"),
        ("front-6c8d9-x7k2p", "10.200.5.21"),
        ("q9z4m", "10.200.5.22"),
        ("shop/db", "10.200.5.25"),
        ("shop/front-6c8d9-q", "10.200.5.22"),
        (A, "10.200.5.21"),
        (B[:12], "10.200.5.22"),
        ("worker-1", "10.200.0.1"),
        ("worker-2", "10.200.64.1"),
        ("laptop", "10.200.5.50"),
    ],
)
def test_a_name_may_be_a_part_that_only_one_has(word, address):
    assert resolve(NAMED, word)[0].address == address


@pytest.mark.parametrize(
    ("word", "candidates"),
    [
        ("newc", ["default-newc1", "default-newc2"]),
        ("default-newc", ["default-newc1", "default-newc2"]),
        ("db", ["shop/db", "test/db"]),
        ("front", ["shop/front-6c8d9-x7k2p", "shop/front-6c8d9-q9z4m"]),
        ("twin", ["10.200.66.1", "10.200.67.1"]),
        ("worker", ["worker-1", "worker-2"]),
    ],
)
def test_a_name_that_several_have_is_answered_with_all_of_them(word, candidates):
    with pytest.raises(Ambiguous) as error:
        resolve(NAMED, word)
    for candidate in candidates:
        assert candidate in str(error.value)


# --- peers that publish no networks -----------------------------------------------------------------------------------

TOKEN = replace(VIEW, behind=(TunnelRoute("10.200.64.0/20", "behind far", node="far", peer="k", certain=False),))


def verdict(view, src, dst):
    ((a, b),) = why.pairs(resolve(view, src), resolve(view, dst))
    return why.decide(view, a, b)


@pytest.mark.parametrize(("src", "dst"), [("flat-a", "10.200.64.9"), ("10.200.64.9", "flat-a")])
def test_what_a_peer_by_token_does_not_say_is_not_told_as_a_fact(src, dst):
    found = verdict(TOKEN, src, dst)
    assert (found.allowed, found.certain) == (True, False)
    assert "publishes no networks to this node" in found.reason
    assert any("the fence of that node decides as well" in note for note in found.notes)
    told = verdict(replace(TOKEN, behind=(replace(TOKEN.behind[0], certain=True),)), src, dst)
    assert (told.allowed, told.certain) == (True, True)


def test_what_the_own_fence_drops_is_certain():
    found = verdict(TOKEN, "red-a", "10.200.64.9")
    assert (found.allowed, found.certain) == (False, True)
    assert "10.200.64.9 is in the flat mesh" not in found.reason


@pytest.mark.parametrize(
    ("network", "flat", "text"), [(None, True, ", flat mesh"), ("red", False, ", red"), (None, False, "")]
)
def test_an_end_has_one_pair_of_brackets(network: str | None, flat: bool, text: str) -> None:
    end = answers.Endpoint(
        kind="container",
        address="10.9.0.2",
        label="web",
        container_id="c",
        isolation_network=network,
        on_flat_mesh=flat,
    )
    assert why_cli._endpoint(end) == f"10.9.0.2 (web{text})"
