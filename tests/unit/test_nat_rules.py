"""Where kube-proxy's and portmap's rules lead a flow: evaluated as values.

tests/services/recorded has what kube-proxy 1.34.4 wrote, with services `all` (10.96.0.11: three endpoints), `sticky`
(client affinity), `none`, `local` (externalTrafficPolicy) and `away`; `flat-web` is 10.200.5.2.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cni.host import nat_iptables, nat_nft
from cni.host.nat_rules import Packet, Target, Way, refused_by, translate

RECORDED = Path(__file__).parents[1] / "services/recorded"
NODE, ME, CLIENT = "198.51.100.1", "10.200.5.2", "203.0.113.200"
HOST = frozenset({NODE, "10.200.0.1"})
BASES = {
    "nftables": nat_nft.bases(json.loads((RECORDED / "nftables.json").read_text())),
    "iptables": [
        base
        for table in ("nat", "filter")
        for base in nat_iptables.bases((RECORDED / f"iptables-{table}.txt").read_text().splitlines(), 4, table, "t")
    ],
}
WEB, WEB2, DB, FAR = "10.200.5.2", "10.200.5.3", "10.200.6.2", "10.200.40.2"


def led(mode, source, destination, port, protocol="tcp", from_host=False):
    """The addresses to which the flow may be led, and whether it may keep its destination."""
    way = translate(BASES[mode], Packet(source, destination, protocol, port, HOST), from_host)
    assert all(target.port == 8080 for target in way.targets)
    return {target.address for target in way.targets}, way.kept


@pytest.mark.parametrize("mode", BASES)
@pytest.mark.parametrize(
    ("source", "destination", "port", "protocol", "ends"),
    [
        (ME, "10.96.0.11", 80, "tcp", {WEB2, DB, FAR}),
        (ME, "10.96.0.11", 80, "udp", {WEB2, DB, FAR}),
        (ME, "10.96.0.12", 80, "tcp", {DB, FAR}),  # with client affinity
        (CLIENT, NODE, 30014, "tcp", {WEB}),  # externalTrafficPolicy Local: of this node alone
        (CLIENT, "203.0.113.14", 80, "udp", {WEB}),
        (ME, "203.0.113.14", 80, "tcp", {WEB, FAR}),  # and from containers to all of them
        (CLIENT, NODE, 30015, "tcp", {FAR}),
        ("", NODE, 30015, "udp", {FAR}),
    ],
)
def test_services_lead_to_their_endpoints(mode, source, destination, port, protocol, ends):
    assert led(mode, source, destination, port, protocol) == (ends, False)


@pytest.mark.parametrize("mode", BASES)
def test_the_host_uses_services_by_the_hook_output(mode):
    assert led(mode, NODE, "10.96.0.11", 80, from_host=True) == ({WEB2, DB, FAR}, False)


@pytest.mark.parametrize("mode", BASES)
@pytest.mark.parametrize(
    ("destination", "port"), [("8.8.8.8", 80), ("10.96.0.11", 81), (NODE, 80), ("10.96.0.13", 80), (WEB2, 8080)]
)
def test_other_destinations_are_kept(mode, destination, port):
    assert led(mode, ME, destination, port) == (set(), True)


@pytest.mark.parametrize("mode", BASES)
def test_a_service_without_endpoints_is_refused(mode):
    def refused(address, port=80):
        return refused_by(BASES[mode], Packet(ME, address, "tcp", port, HOST))

    assert refused("10.96.0.13")
    assert bool(refused("10.96.0.11", 81)) is (mode == "nftables")  # no port of the service; iptables lets it pass
    assert not refused("8.8.8.8")


@pytest.mark.parametrize("mode", BASES)
def test_without_a_port_all_of_an_address_are_followed(mode):
    way = translate(BASES[mode], Packet(ME, "10.96.0.11", host=HOST), False)
    assert {target.address for target in way.targets} == {WEB2, DB, FAR}
    assert way.kept


def test_affinity_binds_a_client_that_is_known():
    """nftables lists the clients that have been bound; iptables does not."""
    listing = json.loads((RECORDED / "nftables.json").read_text())
    for item in listing["nftables"]:
        if "set" in item and "sticky/tcp" in item["set"]["name"] and DB in item["set"]["name"]:
            item["set"]["elem"] = [{"elem": {"val": ME, "timeout": 10800, "expires": 10000}}]
    bases = nat_nft.bases(listing)
    packet = Packet(ME, "10.96.0.12", "tcp", 80, HOST)
    assert translate(bases, packet, False) == Way((Target(DB, 8080),), kept=False)
    assert len(translate(bases, replace(packet, source=WEB2), False).targets) == 2


# --- portmap, and rules by hand -------------------------------------------------------------------------------------

PORTMAP = """
-P PREROUTING ACCEPT
-P OUTPUT ACCEPT
-N CNI-HOSTPORT-DNAT
-N CNI-DN-86b8c0f4a8ad0d1d2b1a0
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"net\\"" -m multiport --dports 8080,443 -j CNI-DN-86b8c0f4a8ad0d1d2b1a0
-A CNI-HOSTPORT-DNAT -p udp -m multiport --dports 53 -j CNI-DN-86b8c0f4a8ad0d1d2b1a0
-A CNI-DN-86b8c0f4a8ad0d1d2b1a0 -s 10.200.5.0/26 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-86b8c0f4a8ad0d1d2b1a0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.200.5.2:80
-A CNI-DN-86b8c0f4a8ad0d1d2b1a0 -d 192.0.2.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.200.5.2:5353
-A CNI-DN-86b8c0f4a8ad0d1d2b1a0 -p tcp -m tcp --dport 443 -j REDIRECT --to-ports 8443
-A PREROUTING -p sctp -d 192.0.2.9 -j DNAT --to-destination 10.0.0.1
"""  # noqa: E501 - as it is written


@pytest.mark.parametrize(
    ("destination", "protocol", "port", "way"),
    [
        ("192.0.2.1", "tcp", 8080, Way((Target("10.200.5.2", 80),), kept=False)),
        ("192.0.2.1", "udp", 53, Way((Target("10.200.5.2", 5353),), kept=False)),
        ("192.0.2.2", "udp", 53, Way()),
        ("192.0.2.1", "tcp", 443, Way((Target("", 8443),), kept=False)),
        ("192.0.2.9", "sctp", 7, Way((Target("10.0.0.1"),), kept=False)),
        ("192.0.2.9", "tcp", 8080, Way()),  # no address of the host's
    ],
)
def test_portmap_by_iptables(destination, protocol, port, way):
    bases = nat_iptables.bases(PORTMAP.splitlines(), 4, "nat", "iptables")
    host = frozenset({"192.0.2.1", "192.0.2.2"})
    assert translate(bases, Packet(CLIENT, destination, protocol, port, host), False) == way


def table(*rules, **sets):
    chain = {"family": "inet", "table": "t", "name": "c", "type": "nat", "hook": "prerouting", "prio": -100}
    named = [{"map": {"name": name, "elem": elements}} for name, elements in sets.items()]
    return nat_nft.bases(
        {"nftables": [{"chain": chain}, *named, *({"rule": {"chain": "c", "expr": r}} for r in rules)]}
    )


def match(protocol, field, right, op="=="):
    return {"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}}


TO = {"dnat": {"family": "ip", "addr": "10.200.5.2", "port": 80}}


@pytest.mark.parametrize(
    ("rule", "ends", "kept"),
    [
        ([match("tcp", "dport", 8080), TO], ["10.200.5.2"], False),
        ([match("udp", "dport", 8080), TO], [], True),
        ([match("tcp", "dport", {"set": [1, {"range": [8000, 8090]}]}), TO], ["10.200.5.2"], False),
        ([match("ip", "saddr", {"prefix": {"addr": "203.0.113.0", "len": 24}}, "!="), TO], [], True),
        ([match("ip", "daddr", "@unknown"), TO], ["10.200.5.2"], True),
        ([{"limit": {"rate": 1}}, TO], ["10.200.5.2"], True),
        ([{"dnat": {"addr": {"map": {"key": {"numgen": {}}, "data": {"set": [[0, "10.0.0.1"], [1, "10.0.0.2"]]}}}}}],
         ["10.0.0.1", "10.0.0.2"], False),
        ([{"dnat": {"addr": {"map": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": "@by_port"}}}}],
         ["10.0.0.3"], False),
        ([{"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}}, TO],
         ["10.200.5.2"], False),
        ([{"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv6"}}, TO], [], True),
        ([{"return": None}], [], True),
        ([{"drop": None}], [], False),
    ],
)  # fmt: skip
def test_rules_of_nftables(rule, ends, kept):
    bases = table(rule, by_port=[[8080, {"concat": ["10.0.0.3", 80]}], [1, {"concat": ["10.0.0.4", 80]}]])
    way = translate(bases, Packet(CLIENT, NODE, "tcp", 8080, HOST), False)
    assert ([target.address for target in way.targets], way.kept) == (ends, kept)
