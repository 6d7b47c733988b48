"""Pairs of a relay (model/relay_pairs.py), the rules that join them, and the client's book of grants."""

from __future__ import annotations

import ipaddress

import pytest

from cni.daemon.model import relay_pairs
from cni.daemon.model.probe_message import Probe
from cni.daemon.nat.relay_client import AGAIN, RENEW, Node, RelayClient
from cni.daemon.nat.rules import NatRules, RelayRules, in_effect
from cni.daemon.settings import Nat, RelayPorts
from cni.daemon.settings_reader import parse
from cni.errors import InvalidConfig

ONE, TWO, RELAY, OTHER = b"node-one", b"node-two", b"relay--1", b"relay--2"


def test_a_pair_is_the_same_whichever_side_asks_and_takes_free_ports() -> None:
    one = relay_pairs.new_pair("aa", "bb", {40000}, range(40000, 40004))
    other = relay_pairs.new_pair("bb", "aa", {40000}, range(40000, 40004))
    assert one is not None
    assert one == other
    assert one.ports == (40001, 40002)
    assert relay_pairs.new_pair("aa", "bb", {40000, 40001, 40002}, range(40000, 40004)) is None


def test_the_rules_lead_each_side_to_the_other_from_the_others_port() -> None:
    pair = relay_pairs.new_pair("aa", "bb", (), range(40000, 40002))
    assert pair is not None
    assert "elements" not in relay_pairs.ruleset([pair])
    half = relay_pairs.bound(pair, 0, "203.0.113.1:5", "198.51.100.9")
    assert not half.is_joined
    whole = relay_pairs.bound(half, 1, "203.0.113.2:6", "198.51.100.8")
    text = relay_pairs.ruleset([whole])
    assert "{ 203.0.113.1 . 5 . 40000 : 203.0.113.2 . 6, 203.0.113.2 . 6 . 40001 : 203.0.113.1 . 5 }" in text
    assert (
        "{ 203.0.113.1 . 5 . 203.0.113.2 . 6 : 198.51.100.8 . 40001, "
        "203.0.113.2 . 6 . 203.0.113.1 . 5 : 198.51.100.9 . 40000 }" in text
    )
    assert relay_pairs.flows(whole) == [
        ("203.0.113.1:5", "198.51.100.9", 40000),
        ("203.0.113.2:6", "198.51.100.8", 40001),
    ]


def test_a_token_is_good_for_one_source_one_port_and_one_node() -> None:
    token = relay_pairs.token(b"s", "203.0.113.1:5", 40000, ONE)
    assert len(token) == relay_pairs.TOKEN
    assert token != relay_pairs.token(b"s", "203.0.113.1:6", 40000, ONE)
    assert token != relay_pairs.token(b"s", "203.0.113.1:5", 40001, ONE)
    assert token != relay_pairs.token(b"s", "203.0.113.1:5", 40000, TWO)
    assert token != relay_pairs.token(b"t", "203.0.113.1:5", 40000, ONE)


def test_both_sides_choose_the_same_relays_and_pairs_spread() -> None:
    relays = [bytes([n]) * 8 for n in range(10)]
    assert relay_pairs.chosen(ONE, TWO, relays, 2) == relay_pairs.chosen(TWO, ONE, reversed(relays), 2)
    first = {relay_pairs.chosen(ONE, bytes([n]) * 8, relays, 1)[0] for n in range(100)}
    assert len(first) > 7


def test_a_relay_is_asked_until_it_answers_and_a_grant_that_was_not_asked_for_counts_for_nothing() -> None:
    client = RelayClient()
    peer, relay = Node("peer", TWO), Node("relay", RELAY, "198.51.100.9")
    ((key, ask),) = client.requests(ONE, peer, [peer, relay], 10.0)
    assert (key, ask.kind, ask.word) == ("relay", "ask", TWO)
    assert client.requests(ONE, peer, [peer, relay], 10.0 + AGAIN / 2) == []
    forged = Probe("grant", ONE, RELAY, b"another_", port=40000, word=TWO)
    assert not client.granted(relay, "peer", forged)
    grant = Probe("grant", ONE, RELAY, ask.transaction, port=40000, word=TWO)
    assert client.granted(relay, "peer", grant)
    assert not client.granted(relay, "peer", grant)
    place = (ipaddress.ip_address("198.51.100.9"), 40000)
    assert client.places("peer") == [place]
    assert client.relay_at(place) == "relay"
    assert client.bind(ONE, RELAY, place).word == bytes(8)
    assert client.checked(place, Probe("check", ONE, RELAY, b"whatever", word=b"a-token-")) == "peer"
    assert client.bind(ONE, RELAY, place).word == b"a-token-"
    assert client.requests(ONE, peer, [peer, relay], 10.0 + RENEW / 2) == []
    assert len(client.requests(ONE, peer, [peer, relay], 10.0 + RENEW)) == 1
    client.keep(["peer"])
    assert client.places("peer") == []


def test_no_peer_relays_for_itself() -> None:
    peer = Node("peer", TWO, "198.51.100.8")
    assert RelayClient().requests(ONE, peer, [peer], 10.0) == []


def test_the_configuration() -> None:
    rules = in_effect(Nat(relay=RelayPorts(ports="40000-40003", max_pairs=2)), None)
    assert rules == NatRules(True, relay=RelayRules(range(40000, 40004), "", 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nat: {relay: {ports: '40000'}}", "nat.relay.ports: 40000: not FIRST-LAST"),
        ("nat: {relay: {ports: 40003-40000}}", "nat.relay.ports: 40003-40000: two ports at least"),
        ("nat: {relay: {ports: 80-90}}", "nat.relay.ports: 80-90: two ports at least between 1024"),
        ("nat: {relay: {ports: 40000-40003, external: relay.example}}", "nat.relay.external: relay.example: no IPv4"),
        ("nat: {relay: {}}", "ports"),
    ],
)
def test_a_fault_is_told_with_key_and_value(text: str, said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse(text)
    assert said in caught.value.msg
