"""The doctor's check of WireGuard's port: what iptables' INPUT does with a new packet to it."""

from __future__ import annotations

import pytest

from cni.cli.checks_port import wireguard_port
from cni.host.closed_port import closed_by, of_containers

PORT = 51420
UFW = ["-P INPUT DROP", "-N ufw-user-input", "-N ufw-before", "-A INPUT -j ufw-before", "-A INPUT -j ufw-user-input"]
BEFORE = ["-A ufw-before -i lo -j ACCEPT", "-A ufw-before -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"]
SSH = ["-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT"]


@pytest.mark.parametrize(
    ("lines", "is_closed"),
    [
        ([], False),
        (["-P INPUT ACCEPT"], False),
        (["-P INPUT DROP"], True),
        (["-P INPUT DROP", f"-A INPUT -p udp -m udp --dport {PORT} -j ACCEPT"], False),
        (["-P INPUT DROP", "-A INPUT -p udp -m multiport --dports 53,51400:51500 -j ACCEPT"], False),
        (["-P INPUT DROP", f"-A INPUT -p tcp -m tcp --dport {PORT} -j ACCEPT"], True),
        (["-P INPUT DROP", "-A INPUT -s 192.0.2.0/24 -j ACCEPT"], False),
        (["-P INPUT DROP", "-A INPUT -i lo -j ACCEPT", "-A INPUT -m state --state ESTABLISHED -j ACCEPT"], True),
        (
            ["-P INPUT ACCEPT", "-A INPUT -p icmp -j ACCEPT", "-A INPUT -j REJECT --reject-with tcp-reset"],
            True,
        ),
        (["-P INPUT ACCEPT", '-A INPUT -m comment --comment "the end" -j DROP'], True),
        (["-P INPUT ACCEPT", f"-A INPUT -p udp -m udp --dport {PORT} -j DROP"], True),
        (["-P INPUT ACCEPT", f"-A INPUT -p udp -m udp --dport {PORT + 1} -j DROP"], False),
        ([*UFW, *BEFORE, *SSH], True),
        ([*UFW, *BEFORE, *SSH, f"-A ufw-user-input -p udp -m udp --dport {PORT} -j ACCEPT"], False),
        (["-P INPUT DROP", "-N X", "-A INPUT -g X", "-A INPUT -j ACCEPT", "-A X -p tcp -j ACCEPT"], True),
        (["-P INPUT DROP", "-N X", "-A INPUT -j X", "-A INPUT -j ACCEPT", "-A X -j RETURN", "-A X -j DROP"], False),
    ],
)
def test_a_closed_port_is_found(lines: list[str], is_closed: bool) -> None:
    (finding,) = wireguard_port(PORT, {"iptables": lines}, [])
    assert finding.level == ("fail" if is_closed else "ok")
    assert str(PORT) in finding.text
    assert is_closed == ("--dport 51420 -j ACCEPT" in finding.fix)


@pytest.mark.parametrize(
    ("lines", "is_closed"),
    [
        (["-P INPUT DROP"], True),
        (["-P INPUT DROP", "-A INPUT -i zl-+ -j ACCEPT"], False),
        (["-P INPUT DROP", "-A INPUT -s 10.0.0.0/8 -p udp -m udp --dport 53 -j ACCEPT"], False),
        (["-P INPUT DROP", "-A INPUT -i eth0 -p udp -m udp --dport 53 -j ACCEPT"], True),
        (["-P INPUT ACCEPT"], False),
    ],
)
def test_dns_that_is_closed_to_containers_is_found(lines: list[str], is_closed: bool) -> None:
    found = closed_by(of_containers(53, "10.200.0.0/16"), {"iptables": lines, "ip6tables": ["-P INPUT DROP"]}, [])
    assert [each.text for each in found] == (
        ["INPUT of iptables drops UDP to port 53: containers cannot ask the node's DNS server"] if is_closed else []
    )
