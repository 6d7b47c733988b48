"""A relay on a host whose own firewall denies is not offered, and `netcheck` says why."""

from __future__ import annotations

import pytest

from tests.mesh.fleet import run, wait_for

from .lab import Lab
from .test_paths import meet, path_of
from .test_relay import RELAY, SERVERS

NATIVE = """
table inet other {
    chain pass { type filter hook forward priority 0; policy drop; ct state established accept; }
}
"""
FIREWALLS = {
    "docker": (("iptables", "-P", "FORWARD", "DROP"), "FORWARD of iptables"),
    "native": (("nft", NATIVE), "the nftables chain inet other pass"),
    "ufw": (("iptables", "-P", "INPUT", "DROP"), "INPUT of iptables"),
}


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_a_relay_whose_host_denies_is_not_offered(lab: Lab, firewall: str) -> None:
    lab.start_stun()
    words, named = FIREWALLS[firewall]
    relay = lab.joined("public", 3, start=False, nat=RELAY)
    run("ip", "netns", "exec", relay.name, *words)
    if firewall == "ufw":
        for rule in ("-i lo", "-m conntrack --ctstate ESTABLISHED,RELATED", "-p udp --dport 51420"):
            run("ip", "netns", "exec", relay.name, "iptables", "-A", "INPUT", *rule.split(), "-j", "ACCEPT")
    relay.start()
    problem = wait_for(lambda: relay.problem("relay-unavailable"), "the problem")
    assert named in str(problem)
    wait_for(lambda: lab.document(relay)["nat"], "the document")
    assert lab.document(relay)["nat"]["relay"] == ""
    assert any(named in note for note in relay.tool("netcheck")["notes"])


def test_a_relay_whose_host_accepts_what_nat_has_translated_works(lab: Lab) -> None:
    lab.start_stun()
    relay = lab.joined("public", 3, start=False, nat=RELAY)
    run("ip", "netns", "exec", relay.name, "iptables", "-P", "FORWARD", "DROP")
    accept = "-A FORWARD -p udp -m conntrack --ctstate DNAT -j ACCEPT"
    run("ip", "netns", "exec", relay.name, "iptables", *accept.split())
    relay.start()
    first, second, _ = meet(lab, "sym", "sym", nat=SERVERS)
    assert path_of(first, second)["path"] == "relayed"
