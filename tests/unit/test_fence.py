"""The fence as text: what is said, said once, and said so that nft and our own packer both read it."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.daemon.fence import compare as fence_compare
from cni.daemon.fence import replacement
from cni.daemon.fence import ruleset as fence
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.elements import of_port
from cni.daemon.fence.model import (
    FLAT,
    TABLE,
    FenceBridge,
    FenceNode,
    FencePort,
    RemoteMember,
    chain_of,
    link_local,
    quoted,
)
from cni.errors import FenceFailed
from cni.host import iptables, nft_elements
from cni.host.nft_elements import Change, Element

NODE = FenceNode(("10.200.0.0/16", "fd00:200::/48"), ("10.200.0.1", "fd00:200::1"), ("zl-a-1-g",))
PORT = FencePort("zl-0123456789-v", "zl-a-1-web-b", "02:00:00:00:00:05", ("10.200.5.2", "fd00:200:0:5::2"), "red")


def test_base_is_one_text_that_flushes_no_membership() -> None:
    text = fence.base(NODE)
    flushed = re.findall(r"flush set \w+ zlayer_cni (\S+)", text)
    assert set(flushed) == set(fence.REFILLED)  # refilled in the same transaction
    assert "flush ruleset" not in text
    assert "delete table" not in text
    assert re.findall(r"flush map", text) == []


def test_every_chain_a_rule_names_is_declared_before_any_rule() -> None:
    lines = fence.base(NODE).splitlines()
    first_rule = next(i for i, line in enumerate(lines) if line.startswith("add rule"))
    declared = {tuple(line.split()[2:5:2]) for line in lines[:first_rule] if line.startswith("add chain")}
    for line in lines:
        if line.startswith("add rule"):
            for target in re.findall(r"goto (\w+)", line):
                assert (line.split()[2], target) in declared, line


def test_no_rule_touches_or_reads_a_packet_mark() -> None:
    assert " mark " not in fence.base(NODE) + fence.create_network("red")


def test_rule_names_are_unique_in_their_chain() -> None:
    for chain in fence.chains(NODE):
        assert len(set(chain.rule_names())) == len(chain.rules), chain.name


def test_every_drop_is_counted_and_named() -> None:
    for line in fence.base(NODE).splitlines():
        if line.startswith("add rule") and " drop " in line:
            assert "counter drop comment" in line


def test_one_family_alone() -> None:
    four = fence.base(FenceNode(("10.200.0.0/16",), ("10.200.0.1",)))
    six = fence.base(FenceNode(("fd00:200::/48",), ("fd00:200::1",)))
    assert "to_overlay6" not in four
    assert "to_overlay4" not in six
    assert "masquerade" in four
    assert "masquerade" in six


def test_masquerade_can_be_off() -> None:
    assert "masquerade" not in fence.base(FenceNode(("10.200.0.0/16",), masquerade=False))


def test_bridge_names_are_used_where_the_kernel_has_them() -> None:
    assert "ibrname" not in fence.base(NODE)
    assert "meta ibrname @bridges" in fence.base(FenceNode(("10.200.0.0/16",), bridge_names=True))


@pytest.mark.parametrize("network", [None, "", "red", 'a "quoted" name', "x" * 300, "naïve"])
def test_any_network_name_makes_a_chain(network: str | None) -> None:
    assert re.fullmatch(r"net_(flat|[0-9a-f]{16})", chain_of(network))


def test_the_empty_network_is_not_the_flat_mesh() -> None:
    assert chain_of("") != chain_of(None) == FLAT
    assert chain_of("flat") != FLAT


@pytest.mark.parametrize("name", ["", 'a"b', "a b", "a/b", "a\\b", "zl-*", "a" * 16, "a\nb"])
def test_a_name_nft_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(FenceFailed):
        quoted(name)


def test_link_local_is_the_kernels() -> None:
    assert str(link_local("02:c0:00:00:05:02")) == "fe80::c0:ff:fe00:502"


def test_admit_and_expel_speak_of_the_same_elements() -> None:
    for port in (
        PORT,
        FencePort("veth-7-g", None, PORT.mac, ("10.200.0.9",)),
        FencePort("p", "b", PORT.mac, ("fd00::1",), ""),
    ):
        admitted, expelled = fence.add_port(port), fence.remove_port(port)
        assert {e.place for e in admitted.add} == {e.place for e in expelled.take}
        assert {e.place for e in admitted.take} == {e.place for e in admitted.add if e.verdict}
        assert not expelled.add


def test_only_the_flat_mesh_may_reach_the_host() -> None:
    flat = FencePort(PORT.name, PORT.bridge, PORT.mac, PORT.addresses, None)
    assert not [e for e in of_port(PORT) if e.set.startswith("open")]
    assert len([e for e in of_port(flat) if e.set.startswith("open")]) == 3  # IPv4, IPv6, link-local


def test_a_routed_leg_has_no_place_on_a_bridge() -> None:
    leg = FencePort("veth-7-g", None, PORT.mac, ("10.200.0.9",), "red")
    assert {e.family for e in of_port(leg)} == {"inet"}
    assert ("inside", '"veth-7-g"') in {(e.set, e.key) for e in of_port(leg)}


ADDRESSES = st.ip_addresses().map(str)
NAMES = st.from_regex(r"[a-z][a-z0-9.@_-]{0,14}", fullmatch=True)


@given(
    NAMES, NAMES, st.binary(min_size=6, max_size=6), st.lists(ADDRESSES, max_size=4), st.none() | st.text(max_size=20)
)
def test_our_packer_reads_what_we_write(
    name: str, bridge: str, mac: bytes, addresses: list[str], network: str | None
) -> None:
    port = FencePort(name, bridge, mac.hex(":"), tuple(addresses), network)
    change = fence.add_port(port)
    assert not change.has_ranges
    for element in (*change.take, *change.add):
        assert len(nft_elements.pack_key(element.key)) % 2 == 0


@pytest.mark.parametrize(
    ("key", "packed"),
    [
        ('"lo"', "6c6f0000000000000000000000000000"),
        ("02:00:00:00:00:05", "020000000005"),
        ("10.200.5.2", "0ac80502"),
        ("fd00::1", "fd000000000000000000000000000001"),
        ("fd00:200:0:77::50", "fd000200000000770000000000000050"),  # as long as a MAC, with as many colons
        ('"lo" . 02:00:00:00:00:05', "6c6f00000000000000000000000000000200000000050000"),
        ("0x0102", "0102"),
    ],
)
def test_keys_are_packed_as_the_kernel_holds_them(key: str, packed: str) -> None:
    assert nft_elements.pack_key(key).hex() == packed


@pytest.mark.parametrize("key", ["lo", "1.2.3", '""', '"0123456789abcdef"', "::g", ""])
def test_a_key_of_no_known_form_is_refused(key: str) -> None:
    with pytest.raises(ValueError):
        nft_elements.pack_key(key)


def test_a_change_says_in_nfts_language_what_it_packs() -> None:
    name, leads = Element("bridge", "ports", '"zl-a-b"'), Element("inet", "net4", "10.0.0.1", "goto net_x")
    change = Change("t", (leads,), (name, leads))
    assert change.text() == (
        "delete element inet t net4 { 10.0.0.1 }\n"
        'add element bridge t ports { "zl-a-b" }\n'
        "add element inet t net4 { 10.0.0.1 : goto net_x }\n"
    )
    assert change
    assert not change.has_ranges
    assert not Change("t")


@pytest.mark.parametrize("key", ["10.0.0.0/8", "fd00::/64", "10.0.0.1-10.0.0.9"])
def test_a_network_is_a_range_and_libnftables_does_it(key: str) -> None:
    assert Change("t", add=(Element("inet", "far4", key),)).has_ranges


def test_the_whole_is_the_old_ones_end_and_the_new_ones_beginning() -> None:
    wanted = DesiredState(
        NODE, (FenceBridge("b", "02:00:00:00:00:01"),), (PORT,), (RemoteMember("blue", frozenset({"10.200.40.2"})),)
    )
    text = replacement.whole(wanted)
    lines = text.splitlines()
    assert text.startswith(fence.uninstall())
    for element in wanted.elements():
        assert Change(TABLE, add=(element,)).text().strip() in lines
    assert wanted.networks() == ["blue", "red"]


def test_missing_tables_are_the_only_fault_told() -> None:
    faults = fence_compare.faults({"bridge": None, "inet": None}, DesiredState(NODE))
    assert faults == ["table bridge zlayer_cni is gone", "table inet zlayer_cni is gone"]


def test_addresses_are_written_as_nft_prints_them() -> None:
    for element in of_port(FencePort("p", "b", PORT.mac, ("fd00:0200:0:5:0:0:0:2",), None)):
        if element.set == f"{FLAT}_m6":
            assert element.key == str(ip_address("fd00:200:0:5::2"))


def test_forward_rules_go_by_interface_and_address() -> None:
    assert iptables.forward_rules("10.200.0.0/16") == [
        "-A ZLAYER-CNI -s 10.200.0.0/16 -i zl-+ -j ACCEPT",
        "-A ZLAYER-CNI -d 10.200.0.0/16 -o zl-+ -j ACCEPT",
    ]


def markers(node: FenceNode) -> set[str]:
    return {chain.name for chain in fence.chains(node) if chain.name.startswith(fence.MARKER)}


def test_the_marker_says_which_rules_they_are() -> None:
    """The same for whatever only sets hold, another one for other rules. The node's first address is in a rule: NAT
    takes no address from a set."""
    (marker,) = markers(NODE)
    assert re.fullmatch("base_[0-9a-f]{8}", marker)
    elsewhere = replace(NODE, tunnels=("zl-b-1-g",), far=("10.200.64.0/26",))
    assert markers(elsewhere) == {marker}
    others = (
        replace(NODE, clusters=NODE.clusters[:1]),
        replace(NODE, clusters=("10.201.0.0/16", NODE.clusters[1])),
        replace(NODE, masquerade=False),
        replace(NODE, addresses=("10.200.9.1",)),
        replace(NODE, bridge_names=True),
    )
    assert len({name for node in (NODE, *others) for name in markers(node)}) == 1 + len(others)


def test_rules_need_no_database_of_names() -> None:
    """A minimal host has no /etc/protocols and no /etc/services: a name out of them makes nft refuse the whole text."""
    names = re.findall(r"(?:l4proto|nexthdr|protocol|[sd]port) \{? ?([a-z][a-z0-9-]*)", fence.base(NODE))
    assert set(names) <= {"ip", "ip6", "arp"}, names  # `meta protocol` and `ether type` take words of nft's own
