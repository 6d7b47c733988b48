"""`isolation.reach` and `isolation.from`: their forms, and the endpoints that a virtual address leads to."""

import json
from pathlib import Path

import pytest

from cni.daemon.fence.follower import Follower, endpoints, virtual
from cni.daemon.settings_reader import parse
from cni.errors import InvalidConfig
from cni.host import nat_nft
from cni.openings import Opening, Reach, Sender, parse_reach, parse_sender, read

RECORDED = Path(__file__).parents[1] / "services/recorded"
CLUSTERS = ("10.200.0.0/16", "fd00:200::/48")


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("10.96.0.10:53/udp", Reach("10.96.0.10", "", "udp", 53)),
        ("[fd00:96::A]:443/tcp", Reach("fd00:96::a", "", "tcp", 443)),
        ("10.96.0.10", Reach("10.96.0.10")),
        ("fd00:96::a", Reach("fd00:96::a")),
        ("service/kube-dns", Reach(service="kube-dns")),
        ("service/a:b:53/sctp", Reach(service="a:b", protocol="sctp", port=53)),
    ],
)
def test_forms_of_destinations(text, entry):
    assert parse_reach(text) == entry


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.96.0.10:53", "protocol is missing"),
        ("10.96.0.10:53/icmp", "icmp"),
        ("10.96.0.10:0/udp", "port 0"),
        ("10.96.0.10:65536/udp", "port 65536"),
        ("fd00:96::a:53/udp", "neither an address"),
        ("[10.96.0.10]:53/udp", "neither an address"),
        ("10.96.0.0/16", "neither an address"),
        ("kube-dns:53/udp", "neither an address"),
        ("0.0.0.0", "neither an address"),
        ("224.0.0.1:53/udp", "neither an address"),
        ("fe80::1%eth0", "neither an address"),
        ("", "neither an address"),
        ("service/", "name of the service"),
        ("service/\n", "name of the service"),
    ],
)
def test_destinations_that_are_none(text, words):
    with pytest.raises(ValueError, match=words):
        parse_reach(text)
    with pytest.raises(InvalidConfig) as error:
        parse(json.dumps({"isolation": {"reach": [text]}}))
    assert "isolation.reach" in error.value.msg
    assert words in error.value.msg


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("192.0.2.7", Sender("192.0.2.7/32")),
        ("192.0.2.0/24", Sender("192.0.2.0/24")),
        ("2001:db8::/64", Sender("2001:db8::/64")),
        ("service/monitoring", Sender(service="monitoring")),
        ("nodes", Sender()),
    ],
)
def test_forms_of_senders(text, entry):
    assert parse_sender(text) == entry


@pytest.mark.parametrize("text", ["", "node", "192.0.2.1/24", "0.0.0.0/0", "::/0", "service/", "192.0.2.7:53/udp"])
def test_senders_that_are_none(text):
    with pytest.raises(InvalidConfig) as error:
        parse(json.dumps({"isolation": {"from": [text]}}))
    assert f"isolation.from: {text!r}" in error.value.msg


def test_an_unknown_key_is_named():
    with pytest.raises(InvalidConfig, match=r"isolation\.form: unknown key; from is meant\?"):
        parse("isolation: {form: [nodes]}")


def test_nothing_is_open_by_default():
    assert not read((), ())
    assert not read(*((), ())).services()


def test_virtual_addresses_lead_to_endpoints_of_the_overlay():
    bases = nat_nft.bases(json.loads((RECORDED / "nftables.json").read_text()))
    listed = read(("10.96.0.11:80/tcp", "10.96.0.12", "10.200.5.9:80/tcp", "8.8.8.8:53/udp", "service/x"), ())
    entries = virtual(listed, CLUSTERS)
    assert [entry.address for entry in entries] == ["10.96.0.11", "10.96.0.12", "8.8.8.8"]
    found = endpoints(bases, entries, CLUSTERS)
    assert set(found) == {
        *(Opening(address, "tcp", 8080) for address in ("10.200.5.3", "10.200.6.2", "10.200.40.2")),
        *(Opening(address, "udp", 8080) for address in ("10.200.6.2", "10.200.40.2")),
    }


def test_rules_are_read_again_after_a_change_alone():
    follower = Follower()
    assert follower.is_due(1)
    follower.took(1, 0.0)
    assert not follower.is_due(1)
    assert follower.is_due(2)
    follower.took(2, 1000.0)
    assert not follower.is_due(3)  # the last reading took long
