"""Other programs' native nftables chains that drop what containers send: named with table, chain and rule, and no
others are.
"""

from __future__ import annotations

import subprocess

import pytest

from cni.daemon.fence.model import TABLE
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


def test_iptables_other_tables_are_read_too(lab: Lab) -> None:
    assert obstacles(lab) == []
    lab.host.inside(lambda: subprocess.run(["iptables", "-t", "mangle", "-A", "FORWARD", "-j", "DROP"], check=True))
    assert [obstacle.chain for obstacle in obstacles(lab)] == ["ip mangle FORWARD"]
