"""What the fence does about others' changes, as functions of values: what is heard, what differs, what is believed."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from cni.daemon.fence import compare, elements, expected, replacement, ruleset
from cni.daemon.fence.believed import MAX_NETWORKS, believed, without
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.from_records import RemoteView, change_of_remotes
from cni.daemon.fence.model import TABLE, FenceEdge, FenceNode, FencePort, RemoteMember, chain_of
from cni.daemon.fence.repairs import BRIEF, LASTS, Pace, Repairs
from cni.host import netconf, nft_elements, nlmsg, xtables
from cni.host.nft_news import Interest, News, gather
from cni.host.nft_rules import ChainSeen, RuleSeen, TableSeen

CLUSTERS = ("10.200.0.0/16", "fd00:200::/48")
FAR = ("10.200.64.0/18", "fd00:200:0:40::/64")


# --- what is believed -----------------------------------------------------------------------------------------------


def taken(
    *remotes: RemoteMember, far: tuple[str, ...] = FAR, edges: tuple[FenceEdge, ...] = ()
) -> tuple[RemoteView, dict[str, str]]:
    return believed(RemoteView(("zl-g",), far, remotes, edges), CLUSTERS)


def test_good_members_are_taken_as_they_are():
    remotes = (
        RemoteMember("blue", frozenset({"10.200.64.3", "fd00:200:0:40::3"})),
        RemoteMember("red", frozenset({"10.200.65.1"})),
    )
    beyond, refused = taken(*remotes)
    assert beyond.remotes == remotes
    assert refused == {}


@pytest.mark.parametrize(
    "address",
    [
        "fd00:200:0:40::1%eth0",
        "fd00:200:0:40::1%eth0 }\nflush ruleset\n",
        "10.200.064.3",
        "FD00:200:0:40::1",
        "fd00:200:0:40:0::1",
        "::ffff:10.200.64.3",
        "10.200.64.3/32",
        " 10.200.64.3",
        "10.200.1.1",  # inside the overlay, behind no tunnel
        "192.0.2.1",
        "",
        "}",
        "\ud800",
    ],
)
def test_what_is_no_member_is_left_out_alone_and_told(address):
    beyond, refused = taken(RemoteMember("red", frozenset({address, "10.200.64.9"})))
    assert beyond.remotes == (RemoteMember("red", frozenset({"10.200.64.9"})),)
    (told,) = refused.values()
    assert "left out" in told
    assert "\n" not in told


def test_an_address_is_in_one_network():
    both = frozenset({"10.200.64.3"})
    beyond, refused = taken(RemoteMember("red", both), RemoteMember("blue", both | {"10.200.64.4"}))
    assert beyond.remotes == (RemoteMember("blue", both | {"10.200.64.4"}),)
    assert "blue" in refused["'10.200.64.3'"]


def test_an_edge_peers_address_is_no_members():
    edge = FenceEdge("\0x", "10.200.64.3", ("192.0.2.0/24",))
    beyond, refused = taken(
        RemoteMember("red", frozenset({"10.200.64.3"})), edges=(edge, FenceEdge("\0y", "nonsense", ()))
    )
    assert beyond.edges == (edge,)
    assert beyond.remotes == ()
    assert len(refused) == 2


def test_networks_behind_tunnels_are_apart_and_inside_the_overlay():
    far = (
        "10.200.64.0/18",
        "10.200.64.0/24",
        "0.0.0.0/0",
        "192.0.2.0/24",
        "10.200.64.1/24",
        "nonsense",
        "fd00:200::/64",
    )
    beyond, refused = taken(far=far)
    assert beyond.far == ("10.200.64.0/18", "fd00:200::/64")
    assert len(refused) == 4


def test_networks_are_bounded_and_so_is_what_is_told():
    addresses = [f"10.200.{64 + n // 250}.{n % 250 + 1}" for n in range(MAX_NETWORKS + 100)]
    beyond, refused = taken(*(RemoteMember(f"n{n:05}", frozenset({a})) for n, a in enumerate(addresses)))
    assert len(beyond.remotes) == MAX_NETWORKS
    assert len(refused) == 16
    beyond, _ = taken(RemoteMember("\ud800", frozenset({"10.200.64.1"})))
    assert beyond.remotes == ()


def test_the_nodes_own_word_counts_here():
    beyond, _ = taken(
        RemoteMember("red", frozenset({"10.200.64.3", "10.200.64.4"})), RemoteMember("sole", frozenset({"10.200.64.5"}))
    )
    assert without(beyond, frozenset({"10.200.64.3", "10.200.64.5"})) == (
        RemoteMember("red", frozenset({"10.200.64.4"})),
    )


def test_an_address_that_changes_networks_is_never_in_none():
    """One transaction takes it over: removed on its own it would count as one of the flat mesh."""
    for one, two in (("blue", "red"), ("red", "blue")):
        before = RemoteView(remotes=(RemoteMember(one, frozenset({"10.200.64.3"})),))
        after = RemoteView(remotes=(RemoteMember(two, frozenset({"10.200.64.3"})),))
        created, change, forgotten = change_of_remotes(before, after, lambda name: False)
        assert (created, forgotten) == (ruleset.create_network(two), ruleset.forget_network(one))
        lines = change.text().splitlines()
        assert [line for line in lines if "closed4" in line] == [f"add element inet {TABLE} closed4 {{ 10.200.64.3 }}"]
        assert f"delete element inet {TABLE} {chain_of(one)}_m4 {{ 10.200.64.3 }}" in lines
        assert f"add element inet {TABLE} net4 {{ 10.200.64.3 : goto {chain_of(two)} }}" in lines


# --- this node first ------------------------------------------------------------------------------------------------

PORT = FencePort("zl-0123456789-v", "zl-a-b", "02:00:00:00:00:05", ("10.200.5.2",), "red")
WANTED = DesiredState(
    FenceNode(CLUSTERS, far=FAR),
    (),
    (PORT,),
    (RemoteMember("red", frozenset({"10.200.64.3"})), RemoteMember("far", frozenset({"10.200.64.4"}))),
)


def test_what_others_say_is_in_no_transaction_of_this_node():
    assert "10.200.64.3" not in replacement.whole(WANTED.local())
    said = {record.whose: record for record in compare.records(None, WANTED)}
    assert set(said) == {"network 'red'", "network 'far'"}
    assert said["network 'far'"].rules == ruleset.create_network("far")
    assert said["network 'red'"].rules == "", "it is there for the node's own port"


def test_a_refill_holds_all_of_a_port():
    packed = nft_elements.pack(elements.change(add=elements.of_port(PORT)))
    kinds = [found.type for found in nlmsg.messages(packed)]
    assert kinds == [10 << 8 | nft_elements.NEWSETELEM] * len(elements.of_port(PORT))


# --- what differs ---------------------------------------------------------------------------------------------------

RULE = RuleSeen("between networks", b"drop")
MODEL = chain_of("\0template")


def tables(**changes: object) -> dict[str, TableSeen]:
    chains = {
        "forward": ChainSeen(b"hook", b"accept", (RuleSeen("a", b"1"), RuleSeen("b", b"2"))),
        "to_host": ChainSeen(b"", b"", (RULE,)),
        MODEL: ChainSeen(b"", b"", (RuleSeen("same network", b"@" + MODEL.encode() + b"_p"),)),
    }
    made = replace(TableSeen(0, chains, {"macs": b"x", f"{MODEL}_p": b"y"}), **changes)
    return {"bridge": made, "inet": made}


EXPECTED = expected.expand(tables(), ["red"])
RED = chain_of("red")


def seen(**changes: object) -> dict[str, TableSeen | None]:
    return {"bridge": EXPECTED["bridge"], "inet": replace(EXPECTED["inet"], **changes)}


def chain(name: str, **changes: object) -> dict[str, TableSeen | None]:
    chains = EXPECTED["inet"].chains
    return seen(chains={**chains, name: replace(chains[name], **changes)})


def test_a_network_follows_from_the_template():
    assert EXPECTED["inet"].chains[RED].rules == (RuleSeen("same network", b"@" + RED.encode() + b"_p"),)
    assert set(EXPECTED["inet"].sets) == {"macs", f"{RED}_p"}
    assert MODEL not in EXPECTED["inet"].chains
    assert expected.differences(EXPECTED, EXPECTED) == []


CASES = {
    "dormant": (seen(flags=1), "dormant"),
    "owned": (seen(flags=2), "flagged 0x2"),
    "hook": (chain("forward", hook=b"other"), "hook or priority"),
    "policy": (chain("forward", policy=b"drop"), "its policy"),
    "order": (chain("forward", rules=EXPECTED["inet"].chains["forward"].rules[::-1]), "order"),
    "body": (chain("forward", rules=(RuleSeen("a", b"1"), RuleSeen("b", b"3"))), "rule 'b'"),
    "body of a network": (chain(RED, rules=(RuleSeen("same network", b"accept"),)), "rule 'same network'"),
    "a chain gone": (seen(chains={}), "is gone"),
    "a set gone": (seen(sets={}), "is gone"),
    "a set of another kind": (seen(sets={"macs": b"z", f"{RED}_p": b"y"}), "another kind"),
    "a chain more": (seen(chains={**EXPECTED["inet"].chains, "own": ChainSeen()}), "none of ours"),
    "a table gone": ({"bridge": EXPECTED["bridge"], "inet": None}, "table inet zlayer_cni is gone"),
    "unreadable": (None, "being changed"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_difference_is_named(case):
    have, said = CASES[case]
    found = expected.differences(have, EXPECTED)
    assert any(said in fault.text for fault in found), found
    assert not any(expected.is_stale(fault) for fault in found)


def test_what_a_network_or_a_version_left_opens_nothing():
    have = seen(chains={**EXPECTED["inet"].chains, chain_of("old"): ChainSeen(), "base_00000000": ChainSeen()})
    found = expected.differences(have, EXPECTED)
    assert len(found) == 2
    assert all(expected.is_stale(fault) and not fault.structure for fault in found)


# --- what is heard --------------------------------------------------------------------------------------------------

INTEREST = Interest(TABLE, lambda: frozenset({"FORWARD", "ZLAYER-CNI", "SITE"}))
OWN = 77


def attr(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, family: int, *attributes: bytes, port: int = 1) -> bytes:
    body = struct.pack(">BBH", family, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), 10 << 8 | kind, 0, 0, port) + body


def name(kind: int, text: str) -> bytes:
    return attr(kind, text.encode() + b"\0")


def heard(*messages: bytes) -> News:
    news = News()
    for each in messages:
        gather(news, each, INTEREST, OWN)
    return news


GEN = message(15, 0, attr(1, struct.pack(">I", 9)), attr(2, struct.pack(">I", 4)), name(3, "nft"))
NEWS = {
    "our table gone": (message(2, 1, name(1, TABLE)), News(rules=True, generations=[9], by="nft")),
    "a rule of ours": (message(8, 7, name(1, TABLE), name(2, "forward")), News(rules=True, generations=[9], by="nft")),
    "elements": (
        message(14, 7, name(1, TABLE), name(2, "macs")),
        News(sets={("bridge", "macs")}, generations=[9], by="nft"),
    ),
    "our own elements": (message(14, 7, name(1, TABLE), name(2, "macs"), port=OWN), News()),
    "another family's": (message(8, 2, name(1, TABLE), name(2, "forward")), News()),
    "FORWARD": (message(3, 2, name(1, "filter"), attr(2, bytes(8)), name(3, "FORWARD")), News(forward=True)),
    "our chain there": (message(8, 10, name(1, "filter"), name(2, "ZLAYER-CNI")), News(forward=True)),
    "a chain that FORWARD leads to": (message(6, 2, name(1, "filter"), name(2, "SITE")), News(forward=True)),
    "another chain there": (message(8, 2, name(1, "filter"), name(2, "DOCKER")), News()),
    "iptables' table": (message(2, 2, name(1, "filter")), News(forward=True)),
    "iptables' nat": (message(2, 2, name(1, "nat")), News()),
    "a hook of others": (message(3, 1, name(1, "firewalld"), name(3, "f"), attr(4, b"")), News(hooks=True)),
    "a chain of others": (message(3, 1, name(1, "firewalld"), name(3, "f")), News()),
    "a rule of others": (message(6, 1, name(1, "firewalld"), name(2, "f")), News()),
}


@pytest.mark.parametrize("what", NEWS)
def test_a_notification_is_taken_for_what_it_is(what):
    said, news = NEWS[what]
    assert heard(said, GEN) == news
    assert heard(said + GEN) == news


@pytest.mark.parametrize("size", range(0, 60, 7))
def test_half_a_notification_is_no_error(size):
    heard(NEWS["elements"][0][:size], GEN[:size])


def test_forwarding_that_is_switched_off_is_heard():
    def said(index: int, *more: bytes) -> bytes:
        body = b"\2\0\0\0" + attr(1, struct.pack("=i", index)) + b"".join(more)
        return struct.pack("=IHHII", 16 + len(body), 80, 0, 0, 0) + body

    off, on = attr(2, bytes(4)), attr(2, b"\1\0\0\0")
    heard = said(-1, off) + said(4, on) + said(5, attr(3, bytes(4))) + said(6, off)
    assert netconf.switched_off(heard, (4, 6)) == {-1, 6}
    assert netconf.switched_off(heard, (6,)) == set(), "of another IP version than the overlay's"
    for size in (16, 18, 20):
        assert netconf.switched_off(said(-1, off)[:size], (4,)) == set()


def test_counters_of_iptables_legacy_do_not_count():
    def entry(counters: bytes, target: bytes) -> bytes:
        head = bytes(88) + struct.pack("=HHI", 112, 112 + len(target), 0)
        return head + counters + target

    one, two = entry(bytes(16), b"accept.."), entry(b"\1" * 16, b"accept..")
    start = len(one)
    assert xtables.masked(one + one, start, start, 4) == xtables.masked(one + two, start, start, 4) != b""
    assert xtables.masked(one + two, start, start, 4) != xtables.masked(
        one + entry(bytes(16), b"drop...."), start, start, 4
    )
    assert xtables.masked(b"", 0, 0, 4) == xtables.masked(bytes(300), 0, 0, 4) == b""


def test_a_chain_that_iptables_legacys_forward_leads_to_counts():
    def entry(target_name: bytes, verdict: int) -> bytes:
        target = struct.pack("=H29sB", 36, target_name, 0) + struct.pack("=i", verdict)
        return bytes(88) + struct.pack("=HHI", 112, 112 + len(target), 0) + bytes(16) + target

    size = len(entry(b"", 0))

    def table(its_verdict: int, others_verdict: int) -> bytes:
        """FORWARD has a jump, a rule without a verdict, and its policy."""
        forward = [entry(b"", 4 * size), entry(b"", 2 * size), entry(b"", -2)]
        site = [entry(b"ERROR", 0), entry(b"", its_verdict), entry(b"", -5)]
        other = [entry(b"ERROR", 0), entry(b"", others_verdict), entry(b"", -5)]
        return b"".join([*forward, *site, *other])

    before = xtables.masked(table(-5, -5), 0, 2 * size, 4)
    assert before == xtables.masked(table(-5, -1), 0, 2 * size, 4)
    assert before != xtables.masked(table(-1, -5), 0, 2 * size, 4)
    assert xtables.masked(table(4 * size, -5), 0, 2 * size, 4)  # a chain that leads to itself


# --- how much, and what is told -------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_work_without_end_gets_its_share_of_the_time():
    clock = Clock()
    pace = Pace(0.1, 1.0, clock)
    waited = worked = 0.0
    for _ in range(200):
        clock.now += 0.05
        worked += 0.05
        pause = pace.worked(0.05)
        clock.now += pause
        waited += pause
    assert worked < 1.0 + 0.11 * (worked + waited)
    clock.now += 60
    assert pace.worked(0.05) == 0.0, "what rested may begin at once"


def test_repairs_are_told_briefly_and_pass():
    clock = Clock()
    repairs = Repairs(clock)
    assert repairs.text() == ""
    repairs.happened("nft")
    assert "(nft)" in (first := repairs.text())
    texts_told = set()
    for _ in range(1000):
        clock.now += 0.01
        repairs.happened("")
        texts_told.add(repairs.text())
    assert len(texts_told) <= 10 / BRIEF + 1
    assert first in texts_told
    clock.now += BRIEF
    assert "1001 times" in repairs.text()
    clock.now += LASTS
    assert repairs.text() == ""
