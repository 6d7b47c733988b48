"""To which servers a question goes: what settings and resolv.conf say, and the zone that a name is in."""

import pytest

from cni.daemon.model.dns_upstreams import NameServer, endpoint_of, in_resolv_conf, is_domain, wire_name, zones_of


@pytest.mark.parametrize(
    ("text", "server", "shown"),
    [
        ("10.0.0.53", NameServer("10.0.0.53"), "10.0.0.53"),
        ("10.0.0.53:5353", NameServer("10.0.0.53", 5353), "10.0.0.53:5353"),
        ("10.0.0.53:53", NameServer("10.0.0.53"), "10.0.0.53"),
        ("fd00::53", NameServer("fd00::53"), "fd00::53"),
        ("[fd00::53]:5353", NameServer("fd00::53", 5353), "[fd00::53]:5353"),
    ],
)
def test_a_server_is_an_address_with_or_without_a_port(text, server, shown):
    assert endpoint_of(text) == server
    assert str(server) == shown


@pytest.mark.parametrize(
    "text", ["", "ns.example", "ns.example:53", "10.0.0", "10.0.0.53:0", "10.0.0.53:65536", "[::1]"]
)
def test_what_is_no_server_is_refused(text):
    with pytest.raises(ValueError):
        endpoint_of(text)


def test_resolv_conf_is_read_as_the_c_library_reads_it():
    text = """
# nameserver 10.0.0.1
search corp.example
nameserver 10.0.0.2 # the first
nameserver ten
nameserver
 nameserver fe80::1%eth0
nameserver 10.0.0.2
options edns0
nameserver 10.0.0.4
nameserver 10.0.0.5
"""
    assert in_resolv_conf(text) == (NameServer("10.0.0.2"), NameServer("fe80::1%eth0"), NameServer("10.0.0.4"))
    assert in_resolv_conf("") == ()


def test_the_longest_zone_decides():
    zones = zones_of({"corp.example": ["10.0.0.1"], "a.Corp.example.": ["10.0.0.2"]}, [NameServer("10.0.0.9")])
    asked = {
        "corp.example": "10.0.0.1",
        "www.corp.example": "10.0.0.1",
        "a.corp.example": "10.0.0.2",
        "b.a.corp.example": "10.0.0.2",
        "xcorp.example": "10.0.0.9",
        "example": "10.0.0.9",
        "": "10.0.0.9",
    }
    assert {name: zones.servers(wire_name(name))[0].address for name in asked} == asked


@pytest.mark.parametrize("text", ["a", "corp.example", "corp.example.", "_tcp.a-b.c", "a" * 63])
def test_domains(text):
    assert is_domain(text)


@pytest.mark.parametrize("text", ["", ".", "a..b", "a b", "-a", "a-", "a" * 64, "ä", ".a", ".".join(["a" * 63] * 4)])
def test_no_domains(text):
    assert not is_domain(text)
