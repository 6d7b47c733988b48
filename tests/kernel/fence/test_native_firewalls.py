"""Other programs' native nftables chains that drop what containers send: named with table, chain and rule, and no
others are.
"""

from __future__ import annotations

import subprocess

import pytest

from cni.daemon.fence.model import TABLE
from cni.host import iptables
from cni.host.nft_forward import Obstacle, firewall_obstacles

from .lab import CLUSTER4, CLUSTER6, Lab
from .probes import Ears, ask

CLUSTERS = (CLUSTER4, CLUSTER6)
# firewalld 1.3: every zone's rules are in chains of its own, and what no zone accepts is rejected twice.
FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002::/24 } reject with icmpv6 addr-unreachable
        jump filter_FORWARD_POLICIES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_POLICIES {
        TRUSTED
        iifname "up0" goto filter_FWD_public
        goto filter_FWD_public
    }
    chain filter_FWD_public {
        jump filter_FWD_public_allow
        meta l4proto { icmp, ipv6-icmp } accept
        reject with icmpx admin-prohibited
    }
    chain filter_FWD_public_allow {
    }
    chain filter_FWD_trusted {
        accept
    }
}
"""
TRUSTED = f"ip saddr {CLUSTER4} goto filter_FWD_trusted\n        ip6 saddr {CLUSTER6} goto filter_FWD_trusted"
CHAIN = "table inet host {{\n chain forward {{\n type filter hook forward priority 0; policy {};\n{}\n }}\n{}\n}}\n"


def load(lab: Lab, text: str) -> None:
    lab.host.run("nft", "-f", "-", stdin=text)


def obstacles(lab: Lab) -> list[Obstacle]:
    return firewall_obstacles(lab.nft, CLUSTERS, TABLE)


def arrived(lab: Lab, ears: Ears, src: str, dst: str) -> frozenset[str]:
    return ask(ears, [(lab.places[src], lab.places[dst])], set())[src, dst].arrived


def test_firewalld_is_named_with_the_setting_that_lets_containers_through(lab: Lab, ears: Ears) -> None:
    """And that setting does: the overlay's range as a source of the zone trusted."""
    load(lab, FIREWALLD.replace("TRUSTED", ""))
    for _ in range(2):
        assert not arrived(lab, ears, "flat-web", "outside") & {"tcp4", "udp4", "tcp6", "udp6"}
    (obstacle,) = obstacles(lab)
    assert obstacle == Obstacle("inet firewalld filter_FWD_public", "reject with icmpx admin-prohibited")
    said = obstacle.describe(CLUSTERS)
    assert f"--zone=trusted --add-source={CLUSTER4} --add-source={CLUSTER6}" in said
    load(lab, "delete table inet firewalld\n" + FIREWALLD.replace("TRUSTED", TRUSTED))
    assert obstacles(lab) == []
    assert {"tcp4", "udp4", "tcp6", "udp6"} <= arrived(lab, ears, "flat-web", "outside")


@pytest.mark.parametrize(
    ("policy", "rules", "chains", "expected"),
    [
        ("drop", "ct state established,related accept", "", [("forward", "")]),
        ("accept", "drop", "", [("forward", "drop")]),
        ("accept", 'ct state new counter log prefix "x" reject', "", [("forward", "reject")]),
        ("accept", "ct state vmap { established : accept, related : accept, new : drop }", "", [("forward", "vmap")]),
        (
            "accept",
            "jump inner\nreject",
            "chain inner {\nct state established accept\ndrop\n}",
            [("forward", "jump inner")],
        ),
        ("accept", 'iifname != "lo" drop', "", [("forward", "drop")]),
        ("drop", f"ip saddr {CLUSTER4} accept\nip6 saddr {CLUSTER6} accept", "", []),
        ("drop", 'iifname "zl-*" oifname "up0" accept', "", []),
        ("accept", 'iifname "docker0" drop\nip saddr 192.0.2.0/24 drop\nct state invalid drop', "", []),
        ("accept", "tcp dport 25 drop\nmeta mark 0x7 drop\nlimit rate 5/second drop", "", []),
        ("accept", "accept\ndrop", "", []),
    ],
)
def test_a_chain_is_named_exactly_if_it_drops_what_containers_send(
    lab: Lab, policy: str, rules: str, chains: str, expected: list[tuple[str, str]]
) -> None:
    load(lab, CHAIN.format(policy, rules, chains))
    found = obstacles(lab)
    assert [obstacle.chain.split()[2] for obstacle in found] == [chain for chain, _ in expected]
    for obstacle, (_, words) in zip(found, expected, strict=True):
        assert words in obstacle.rule
        assert bool(words) is bool(obstacle.rule)


BASE = "table {} host {{\n chain c {{\n type filter hook {} priority {}; policy {};\n{}\n }}\n}}\n"


@pytest.mark.parametrize(
    ("family", "hook", "priority", "policy", "rules", "rule"),
    [
        ("inet", "prerouting", "raw", "drop", 'iifname { "lo", "up0" } accept', ""),
        ("ip", "prerouting", "-150", "accept", f"ip saddr {CLUSTER4} drop", f"ip saddr {CLUSTER4} drop"),
        ("ip6", "postrouting", "0", "accept", "counter drop", "drop"),
        ("inet", "postrouting", "200", "drop", "ct state established accept", ""),
        ("bridge", "prerouting", "0", "drop", 'iifname "up0" accept', ""),
        ("bridge", "forward", "0", "drop", "", ""),
        ("bridge", "input", "0", "accept", 'iifname != "up0" drop', 'iifname != "up0" drop'),
        ("bridge", "postrouting", "0", "accept", 'oifname "zl-*" drop', 'oifname "zl-*" drop'),
        ("arp", "input", "0", "drop", 'iifname "up0" accept', ""),
        ("arp", "output", "0", "accept", "drop", "drop"),
    ],
)
def test_a_chain_is_named_at_whatever_hook_it_drops(
    lab: Lab, ears: Ears, family: str, hook: str, priority: str, policy: str, rules: str, rule: str
) -> None:
    load(lab, BASE.format(family, hook, priority, policy, rules))
    (obstacle,) = obstacles(lab)
    assert obstacle.chain == f"{family} host c"
    assert rule in obstacle.rule
    assert bool(rule) is bool(obstacle.rule)
    lab.host.run("ip", "neigh", "flush", "all")
    pairs = [("red-web", "red-web2"), ("flat-web", "outside")]
    missed = [pair for pair in pairs if not {"tcp4", "udp4", "tcp6", "udp6"} <= arrived(lab, ears, *pair)]
    assert missed, "the chain drops nothing"


@pytest.mark.parametrize(
    ("family", "hook", "priority", "policy", "rules"),
    [
        ("inet", "prerouting", "raw", "drop", 'iifname { "lo", "up0", "zl-*" } accept'),
        ("inet", "prerouting", "raw", "accept", "fib saddr . iif oif missing drop\nct state invalid drop"),
        ("ip", "prerouting", "raw", "accept", 'ip daddr 172.17.0.2 iifname != "docker0" drop'),
        ("ip", "prerouting", "dstnat", "accept", "ip daddr 192.0.2.9 drop"),
        ("inet", "postrouting", "0", "accept", 'oifname "docker0" drop'),
        ("inet", "output", "0", "drop", "ct state established accept"),
        ("bridge", "forward", "0", "drop", "ether type arp accept\nip saddr 10.0.0.0/8 accept\nether type ip6 accept"),
        ("bridge", "forward", "0", "accept", 'iifname "vnet*" drop'),
        ("arp", "input", "0", "drop", "arp operation { request, reply } accept"),
        ("arp", "output", "0", "accept", 'oifname "up0" drop'),
    ],
)
def test_a_chain_that_lets_containers_through_is_not_named(
    lab: Lab, family: str, hook: str, priority: str, policy: str, rules: str
) -> None:
    load(lab, BASE.format(family, hook, priority, policy, rules))
    assert obstacles(lab) == []


def test_iptables_other_tables_are_read_too(lab: Lab) -> None:
    assert obstacles(lab) == []
    lab.host.inside(lambda: subprocess.run(["iptables", "-t", "mangle", "-A", "FORWARD", "-j", "DROP"], check=True))
    assert [obstacle.chain for obstacle in obstacles(lab)] == ["ip mangle FORWARD"]
    lab.host.inside(lambda: subprocess.run(["ip6tables", "-t", "raw", "-A", "PREROUTING", "-j", "DROP"], check=True))
    assert [obstacle.chain for obstacle in obstacles(lab)] == ["ip mangle FORWARD", "ip6 raw PREROUTING"]


@pytest.mark.parametrize(("tool", "table"), [("iptables-legacy", "raw"), ("ip6tables-legacy", "mangle")])
def test_iptables_legacys_other_tables_are_read_too(lab: Lab, ears: Ears, tool: str, table: str) -> None:
    """The kernel lists them as no nftables chain."""

    def denials() -> dict[str, str]:
        return lab.host.inside(lambda: iptables.legacy_denials(CLUSTERS))

    lab.host.run(tool, "-t", table, "-A", "PREROUTING", "-i", "docker0", "-j", "DROP")
    assert denials() == {}
    lab.host.run(tool, "-t", table, "-A", "PREROUTING", "-i", "zl-+", "-j", "DROP")
    assert denials() == {f"{tool} {table} PREROUTING": "-A PREROUTING -i zl-+ -j DROP"}
    said = iptables.describe_denial(*next(iter(denials().items())))
    assert f"the chain PREROUTING of the table {table} of {tool} drops" in said
    assert not {"tcp4", "udp4", "tcp6", "udp6"} <= arrived(lab, ears, "flat-web", "outside")
    lab.host.run(tool, "-t", table, "-F", "PREROUTING")
    lab.host.run(tool, "-t", table, "-P", "PREROUTING", "DROP")
    assert denials() == {f"{tool} {table} PREROUTING": ""}
