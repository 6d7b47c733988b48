"""WireGuard's port, closed by the host's own firewall: `doctor` names the chain, whichever kind of firewall it is."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.mesh.fleet import PORT, Node, run, wait_for

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
FIREWALLD = """
table inet firewalld {
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_INPUT_POLICIES
        reject with icmpx admin-prohibited
    }
    chain filter_INPUT_POLICIES {
        iifname "eth0" goto filter_IN_public
        goto filter_IN_public
    }
    chain filter_IN_public {
        jump filter_IN_public_allow
        meta l4proto { icmp, ipv6-icmp } accept
        reject with icmpx admin-prohibited
    }
    chain filter_IN_public_allow {
        tcp dport 22 accept
        ip6 daddr fe80::/64 udp dport 546 accept
    }
}
"""
HOST = """
table inet host {
    chain input {
        type filter hook input priority 0; policy drop;
        iif "lo" accept
        ct state vmap { established : accept, related : accept, invalid : drop }
        meta l4proto { icmp, icmpv6 } accept
        tcp dport { 22, 80-90 } accept
    }
}
"""


def findings(node: Node) -> list[dict[str, str]]:
    """What `doctor` finds about the port."""
    places = ("--run-dir", str(node.directory / "run"), "--data-dir", str(node.directory / "data"))
    document = json.loads(node.cli("doctor", "--json", *places).stdout)
    return [each for each in document["findings"] if f"UDP to port {PORT}" in each["text"]]


def closed(node: Node) -> str:
    """The texts and remedies of the findings that fail."""
    return " ".join(f"{each['text']} {each['fix']}" for each in findings(node) if each["level"] == "fail")


@pytest.mark.usefixtures("engine")
def test_a_closed_port_is_named(frozen: Callable[..., Node]) -> None:
    node = frozen(1, peers=[{"public_key": KEY, "endpoint": "198.51.100.2:51820", "allowed_ips": ["10.200.64.0/26"]}])
    wait_for(lambda: node.tool("status")["wireguard"]["interface"], "a device")

    def at(*words: str) -> None:
        run("ip", "netns", "exec", node.name, *words)

    def load(text: str) -> None:
        (node.directory / "rules.nft").write_text(text)
        at("nft", "-f", str(node.directory / "rules.nft"))

    assert [each["level"] for each in findings(node)] == ["ok"]
    for tool in ("iptables-nft", "iptables-legacy"):
        at(tool, "-P", "INPUT", "DROP")
        assert "INPUT of iptables" in closed(node), tool
        at(tool, "-A", "INPUT", "-p", "udp", "--dport", str(PORT), "-j", "ACCEPT")
        assert not closed(node), tool
        at(tool, "-F", "INPUT")
        at(tool, "-P", "INPUT", "ACCEPT")
    load(HOST)
    assert f"nft insert rule inet host input udp dport {PORT} accept" in closed(node)
    at("nft", "insert", "rule", "inet", "host", "input", "udp", "dport", str(PORT), "accept")
    assert not closed(node)
    at("nft", "delete", "table", "inet", "host")
    load(FIREWALLD)
    assert f"firewall-cmd --permanent --add-port={PORT}/udp" in closed(node)
    at("nft", "add", "rule", "inet", "firewalld", "filter_IN_public_allow", "udp", "dport", str(PORT), "accept")
    assert [each["level"] for each in findings(node)] == ["ok"]
