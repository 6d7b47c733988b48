"""Addresses as Rust reads and prints them."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.overlay.address import canonical_ip, join_host_port, network, split_socket_address


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("10.200.5.2", "10.200.5.2"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("FD00:0:0:0:0:0:0:1", "fd00::1"),
        ("1:2:3:4:5:6:0:8", "1:2:3:4:5:6:0:8"),
        ("1:0:0:4:0:0:0:8", "1:0:0:4::8"),
        ("1:0:0:4:5:0:0:8", "1::4:5:0:0:8"),
        ("1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
        ("::ffff:102:304", "::ffff:1.2.3.4"),
        ("::ffff:0:0", "::ffff:0.0.0.0"),
        ("::1.2.3.4", "::102:304"),
        ("64:ff9b::1.2.3.4", "64:ff9b::102:304"),
        ("1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:102:304"),
    ],
)
def test_an_address_is_printed_as_rust_prints_it(text, printed):
    assert canonical_ip(text) == printed
    assert canonical_ip(printed) == printed


NO_ADDRESS = """
010.0.0.1 10.0.0 10.0.0.1.2 256.0.0.1 10.0.0.1/24 0x0a.0.0.1 10.0.0.1:53 [::1] fe80::1%eth0 ::1%1 1 167772161
::ffff:01.2.3.4 ::ffff:1.2.3 1.2.3.4:: 1.2.3.4::1 ::: 1::2::3 1:2:3:4:5:6:7 1:2:3:4:5:6:7:8:9 1:2:3:4:5:6:7::8
::1:2:3:4:5:6:7:8 12345:: g:: 1:2:3:4:5:6:7:1.2.3.4 ::1/128
"""


@pytest.mark.parametrize(
    "text", [*NO_ADDRESS.split(), "", " 10.0.0.1", "10.0.0.1 ", "10.0.0.1\n", "\u0661.0.0.1", "::\u0661"]
)
def test_what_rust_does_not_parse_is_refused(text):
    with pytest.raises(ValueError, match="invalid IP address syntax"):
        canonical_ip(text)


@settings(deadline=None)
@given(st.ip_addresses())
def test_printing_keeps_the_address(address):
    assert ipaddress.ip_address(canonical_ip(str(address))) == address
    if isinstance(address, ipaddress.IPv6Address):
        assert canonical_ip(address.exploded) == canonical_ip(str(address))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("192.168.1.5:51420", ("192.168.1.5", 51420)),
        ("[2001:db8::5]:3478", ("2001:db8::5", 3478)),
        ("[fe80::1%3]:80", ("fe80::1", 80)),
        ("1.2.3.4:080", ("1.2.3.4", 80)),
        ("1.2.3.4:65535", ("1.2.3.4", 65535)),
        ("1.2.3.4:" + "0" * 5000 + "80", ("1.2.3.4", 80)),
        ("[fe80::1%04294967295]:0", ("fe80::1", 0)),
    ],
)
def test_socket_addresses(text, parts):
    assert split_socket_address(text) == parts


@pytest.mark.parametrize(
    "text",
    ["1.2.3.4", "::1:80", "[::1]", "[1.2.3.4]:80", "host:80", "1.2.3.4:65536", "1.2.3.4:", ":80", "1.2.3.4:-1", "",
     "[fe80::1%4294967296]:80", "[fe80::1%]:80", "[::1:80", "::1]:80", "[]:80",
     "[fe80::1%eth0]:80", "1.2.3.4:8\u0660", "1.2.3.4:" + "9" * 5000],
)  # fmt: skip
def test_what_is_no_socket_address(text):
    with pytest.raises(ValueError, match="invalid socket address syntax"):
        split_socket_address(text)


def test_joining_brackets_an_ipv6_address():
    assert join_host_port("10.0.0.1", 80) == "10.0.0.1:80"
    assert join_host_port("fd00::1", 80) == "[fd00::1]:80"
    assert join_host_port("edge.example.net", 80) == "edge.example.net:80"


@pytest.mark.parametrize(
    ("text", "cidr"),
    [
        ("10.200.0.0/16", "10.200.0.0/16"),
        ("10.200.7.7/16", "10.200.0.0/16"),
        ("10.0.0.0/08", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("FD00::1/64", "fd00::/64"),
    ],
)
def test_a_cidr_loses_its_host_bits(text, cidr):
    assert str(network(text)) == cidr


NO_NETWORK = """
10.0.0.0 10.0.0.0/ /8 10.0.0.0/255.0.0.0 10.0.0.0/0.255.255.255 10.0.0.0/33 10.0.0.0/-1 10.0.0.0/+8 10.0.0.0/8/8
10.0.0.0/0008 10.0.0.0/٨ fd00::/129 fe80::%eth0/64 fd00::/ffff:: 10/8 web 10.0.0/8
"""


@pytest.mark.parametrize("text", NO_NETWORK.split())
def test_what_upstream_takes_for_no_cidr_is_none_here(text):
    with pytest.raises(ValueError):
        network(text)


def test_host_bits_can_be_refused():
    with pytest.raises(ValueError, match="host bits"):
        network("10.200.7.7/16", strict=True)
