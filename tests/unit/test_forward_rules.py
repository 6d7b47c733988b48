"""Which rule of iptables' FORWARD drops every packet, in whatever form; and what conditions keep."""

from __future__ import annotations

import pytest

from cni.host import iptables_rules
from cni.host.forward_rules import Flow, Position, denial, drops_before

CLUSTER = "10.200.0.0/16"
LEAVING, ENTERING = Flow(iif="zl-*", src=CLUSTER), Flow(oif="zl-*", dst=CLUSTER)


def table(text: str, policy: str = "ACCEPT") -> iptables_rules.Table:
    rules = [line.strip() for line in text.strip().splitlines()]
    chains = dict.fromkeys(line.split()[1] for line in rules if not line.startswith("-A FORWARD"))
    return iptables_rules.parse([f"-P FORWARD {policy}", *(f"-N {name}" for name in chains), *rules])


def place(text: str) -> tuple[str, int, str | None]:
    made = table(text)
    found = denial(made.rules_of, "FORWARD", Flow(), made.is_only_forwards)
    return found.chain, found.at, found.rule.text if found.rule is not None else None


@pytest.mark.parametrize(
    "last",
    [
        "-A FORWARD -j DROP",
        '-A FORWARD -m comment --comment "what\'s left" -j DROP',
        "-A FORWARD -j REJECT --reject-with icmp-host-prohibited",
        "-A FORWARD -m conntrack --ctstate NEW -j DROP",
        "-A FORWARD -m state --state INVALID,NEW -j REJECT",
        "-A FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP",
        "-A FORWARD ! -i lo -j DROP",
        "-A FORWARD -s 0.0.0.0/0 -d 0.0.0.0/0 -i + -j DROP",
        "-A FORWARD -j LOGDROP\n-A LOGDROP -m limit --limit 5/min -j LOG --log-prefix x\n-A LOGDROP -j DROP",
        "-A FORWARD -g LOGDROP\n-A LOGDROP -j LOG\n-A LOGDROP -j INNER\n-A INNER -j REJECT",
        "-A FORWARD -j BOTH\n-A BOTH -p tcp -j DROP\n-A BOTH ! -p tcp -j REJECT\n-A BOTH -j DROP",
    ],
)
def test_a_rule_of_any_form_that_drops_every_packet_is_found(last: str) -> None:
    first = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -i eth1 -j DROP\n"
    assert place(first + last) == ("FORWARD", 2, last.splitlines()[0])


@pytest.mark.parametrize(
    "rule",
    [
        "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A FORWARD -m conntrack --ctstate DNAT -j DROP",
        "-A FORWARD -p tcp -j DROP",
        "-A FORWARD -m limit --limit 5/min -j DROP",
        "-A FORWARD -m socket -j DROP",
        "-A FORWARD -s 10.0.0.0/8 -j DROP",
        "-A FORWARD ! -i docker0 -j DROP",
        "-A FORWARD -j NFQUEUE --queue-num 0",
        "-A FORWARD -j LOG",
        "-A FORWARD -j USER\n-A USER -s 192.0.2.7/32 -j DROP\n-A USER -j RETURN",
        "-A FORWARD -j USER\n-A USER -j RETURN\n-A USER -j DROP",
        "-A FORWARD -m comment --comment DROP -j MARK --set-xmark 0x1/0x1",
    ],
)
def test_a_rule_that_drops_some_or_none_is_passed_by(rule: str) -> None:
    assert place(rule) == ("FORWARD", 1, None)


def test_what_stands_behind_a_rule_that_lets_all_through_is_never_reached() -> None:
    assert place("-A FORWARD -j ACCEPT\n-A FORWARD -j DROP") == ("FORWARD", 0, None)
    assert place("-A FORWARD -j RETURN\n-A FORWARD -j DROP") == ("FORWARD", 0, None)


OWN = "-A FORWARD -j own\n-A own -s 192.0.2.7/32 -j DROP\n-A own -p icmp -j ACCEPT\n-A own -j DROP"


def test_a_chain_that_accepts_some_and_drops_the_rest_is_entered() -> None:
    assert place(OWN) == ("own", 2, "-A own -j DROP")


def test_a_chain_that_input_uses_too_is_not_entered() -> None:
    """There the accept would open the host to containers."""
    assert place(OWN + "\n-A INPUT -j own") == ("FORWARD", 0, "-A FORWARD -j own")


def dropped(text: str, flow: Flow) -> list[str]:
    made = table(text)
    return [rule.text for rule in drops_before(made.rules_of, "FORWARD", flow, Position("FORWARD", 99, None))]


def test_rules_that_may_drop_a_containers_packets_are_named() -> None:
    text = """
    -A FORWARD -j DOCKER-USER
    -A FORWARD -i docker0 ! -o docker0 -j ISOLATION
    -A FORWARD -m conntrack --ctstate INVALID -j DROP
    -A FORWARD -p tcp -m tcp --dport 25 -j REJECT
    -A FORWARD -i zl-+ -j ACCEPT
    -A FORWARD -d 192.0.2.0/24 -j DROP
    -A DOCKER-USER -s 10.200.5.0/26 -j DROP
    -A DOCKER-USER -d 10.200.5.0/26 -j DROP
    -A DOCKER-USER -s 10.201.0.0/16 -j DROP
    -A ISOLATION -o docker0 -j DROP
    """
    leaving, entering = dropped(text, LEAVING), dropped(text, ENTERING)
    assert leaving == [
        "-A DOCKER-USER -s 10.200.5.0/26 -j DROP",
        "-A DOCKER-USER -d 10.200.5.0/26 -j DROP",
        "-A FORWARD -p tcp -m tcp --dport 25 -j REJECT",
    ]
    assert entering == [
        "-A DOCKER-USER -s 10.200.5.0/26 -j DROP",
        "-A DOCKER-USER -d 10.200.5.0/26 -j DROP",
        "-A DOCKER-USER -s 10.201.0.0/16 -j DROP",
        "-A FORWARD -p tcp -m tcp --dport 25 -j REJECT",
    ]


def test_jumps_in_a_circle_end() -> None:
    assert place("-A FORWARD -j a\n-A a -j b\n-A b -j a")[2] is None
