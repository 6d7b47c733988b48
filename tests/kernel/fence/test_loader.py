"""The loader on a real kernel: this node first, what others say apart from it, and nothing open on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from cni.daemon.durations import Durations
from cni.daemon.fence import compare, replacement, ruleset
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.loader import Loader
from cni.daemon.fence.model import TABLE, FenceBridge, FenceEdge, FenceNode, FencePort, RemoteMember, chain_of
from cni.host.nft import Nft
from cni.host.nft_elements import Change

from .spaces import Space

NODE = FenceNode(("10.200.0.0/16", "fd00:200::/48"), ("10.200.0.1",), ("zl-a-1-g",), ("10.200.64.0/18",))
BRIDGE = FenceBridge("zl-a-1-web-b", "02:42:00:00:00:05")
PORTS = tuple(
    FencePort(f"zl-{n:010x}-v", BRIDGE.name, f"02:00:00:00:00:{n:02x}", (f"10.200.5.{n}",), network)
    for n, network in ((5, "red"), (6, "blue"), (7, None))
)
REMOTES = (RemoteMember("red", frozenset({"10.200.64.2"})), RemoteMember("green", frozenset({"10.200.64.3"})))
EDGE = FenceEdge("\0one", "10.200.64.9", ("192.0.2.0/24",))
WANTED = DesiredState(NODE, (BRIDGE,), PORTS, REMOTES, (EDGE,))


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space("host")
    yield made
    made.close()


@pytest.fixture
def loader(space: Space) -> Iterator[Loader]:
    made = Loader(space.inside(Nft), Durations((0.1,)))
    yield made
    made.nft.close()


def listing(loader: Loader) -> compare.Listing:
    return {family: loader.nft.list_table(family, TABLE) for family in ruleset.FAMILIES}


def is_right(loader: Loader, wanted: DesiredState = WANTED) -> bool:
    found = listing(loader)
    return (
        loader.faults(wanted) == []
        and compare.compare(found, wanted, wanted.local()) == []
        and compare.records(found, wanted) == []
    )


def transactions(loader: Loader) -> list[str]:
    """The texts of the transactions that the loader runs from now on."""
    texts: list[str] = []
    run = loader.nft.run

    def recorded(*parts: str | Change) -> None:
        texts.append("".join(part.text() if isinstance(part, Change) else part for part in parts))
        run(*parts)

    loader.nft.run = recorded  # type: ignore[method-assign]
    return texts


RANGES = [f"10.128.0.0/{n}" for n in range(9, 27)] + ["10.0.0.0/8"]
RANGES6 = [f"fd00:8000::/{n}" for n in range(17, 119, 3)]


@pytest.mark.parametrize("number", range(max(len(RANGES), len(RANGES6))))
def test_ranges_of_every_length_are_loaded_and_listed(loader: Loader, number: int) -> None:
    """nft 1.0.6 ends the process when it lists a raw payload behind `meta l4proto` of a tunnel with an odd length."""
    clusters = (RANGES[number % len(RANGES)], RANGES6[number % len(RANGES6)])
    wanted = DesiredState(FenceNode(clusters, ("10.128.0.1",), ("zl-a-1-g",)), (), ())
    assert loader.mend_rules(wanted)
    assert is_right(loader, wanted)


def test_from_nothing(loader: Loader) -> None:
    assert loader.mend_rules(WANTED)
    assert loader.is_settled()
    assert is_right(loader)
    assert not loader.mend_rules(WANTED)


HELD = replace(WANTED, node=replace(NODE, far=("10.200.64.0/18", "10.200.255.0/24", "fd00:200:0:8000::/49")))
CHAIN = chain_of("red")


def test_what_is_held_exactly_is_seen_without_a_listing(loader: Loader) -> None:
    """The encoding that `holds` compares with is this kernel's: sets, maps with verdicts, ranges."""
    loader.mend_rules(HELD)
    assert not loader.holds(HELD), "the rules were never compared since they were loaded"
    assert not loader.mend_rules(HELD)
    assert loader.holds(HELD)
    assert not loader.holds(replace(HELD, ports=PORTS[:2]))
    assert not loader.holds(replace(HELD, node=NODE))


@pytest.mark.parametrize(
    "damage",
    [
        f"delete element inet {TABLE} {CHAIN}_m4 {{ 10.200.5.5 }}",
        f"add element inet {TABLE} {CHAIN}_m4 {{ 10.200.5.6 }}",
        f'delete element bridge {TABLE} net {{ "{PORTS[0].name}" }}; '
        f'add element bridge {TABLE} net {{ "{PORTS[0].name}" : goto {chain_of("blue")} }}',
        f"add element inet {TABLE} far4 {{ 10.200.8.0/24 }}",
        f"delete element inet {TABLE} far4 {{ 10.200.64.0/18 }}; add element inet {TABLE} far4 {{ 10.200.64.0/19 }}",
    ],
)
def test_one_element_that_differs_is_seen(loader: Loader, space: Space, damage: str) -> None:
    loader.mend_rules(HELD)
    space.run("nft", damage)
    assert not loader.mend_rules(HELD)
    assert not loader.holds(HELD)


DAMAGES = (
    "flush ruleset",
    f"delete table bridge {TABLE}",
    f"add table inet {TABLE} {{ flags dormant; }}",
    f"add chain inet {TABLE} forward {{ policy drop; }}",
    f"flush chain inet {TABLE} forward; delete chain inet {TABLE} forward; "
    f"add chain inet {TABLE} forward {{ type filter hook forward priority 7; }}",
    f"flush chain bridge {TABLE} {chain_of('blue')}",
    f"flush chain inet {TABLE} {chain_of('green')}",
    f"flush chain inet {TABLE} {chain_of(EDGE.network)}",
    f"add chain inet {TABLE} own {{ type filter hook input priority 7; policy drop; }}",
    f"add set inet {TABLE} own {{ type ipv4_addr; }}",
    f"insert rule bridge {TABLE} forward accept",
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_was_done_to_the_rules(loader: Loader, space: Space, damage: str) -> None:
    loader.mend_rules(WANTED)
    space.run("nft", damage)
    assert not loader.is_settled()
    assert loader.faults(WANTED)
    assert loader.mend_rules(WANTED)
    assert is_right(loader)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("macs", f"flush set bridge {TABLE} macs"),
        ("net4", f"delete element inet {TABLE} net4 {{ 10.200.5.5 }}"),
        ("net4", f"add element inet {TABLE} net4 {{ 10.200.5.77 : goto {chain_of('red')} }}"),
        (
            "net4",
            f"delete element inet {TABLE} net4 {{ 10.200.5.5 }}; "
            f"add element inet {TABLE} net4 {{ 10.200.5.5 : goto {chain_of('blue')} }}",
        ),
        (f"{chain_of('red')}_m4", f"add element inet {TABLE} {chain_of('red')}_m4 {{ 10.200.5.6 }}"),
        ("far4", f"add element inet {TABLE} far4 {{ 10.200.0.0/18 }}"),
        ("closed4", f"flush set inet {TABLE} closed4"),
    ],
)
def test_whatever_was_done_to_a_set(loader: Loader, space: Space, name: str, damage: str) -> None:
    loader.mend_rules(WANTED)
    space.run("nft", damage)
    family = "bridge" if f" bridge {TABLE}" in damage else "inet"
    assert loader.faults(WANTED) == []
    assert loader.mend_sets(WANTED, frozenset({(family, name)}))
    assert is_right(loader)


def test_one_bad_record_keeps_no_other_out(loader: Loader, space: Space) -> None:
    """The kernel refuses it: its address leads elsewhere already. This node's rules and the other records are in."""
    loader.mend_rules(WANTED)
    bad = replace(
        WANTED,
        remotes=(
            *REMOTES,
            RemoteMember("zzz", frozenset({"10.200.64.3"})),
            RemoteMember("last", frozenset({"10.200.64.5"})),
        ),
    )
    loader.add_records(compare.records(None, bad))
    assert set(loader.refused) == {"network 'zzz'"}
    assert "10.200.64.5" in space.run("nft", "list", "set", "inet", TABLE, f"{chain_of('last')}_m4")
    assert "10.200.64.3" in space.run("nft", "list", "set", "inet", TABLE, "closed4")


def test_what_lies_behind_the_tunnels_is_known_last(loader: Loader, space: Space) -> None:
    """Otherwise a member elsewhere would count as one of the flat mesh, until its network is known."""
    texts = transactions(loader)
    loader.mend_rules(WANTED)
    first_far = next(n for n, text in enumerate(texts) if "far4 { 10.200.64.0/18 }" in text)
    last_closed = max(n for n, text in enumerate(texts) if "closed4 { 10.200.64.3 }" in text)
    assert last_closed < first_far
    assert "10.200.64" not in texts[0]


def test_tables_of_another_version_are_replaced_with_all_they_hold_in_one_transaction(
    loader: Loader, space: Space
) -> None:
    """Until the transaction is done the old tables are in force, so no packet through a tunnel is lost."""
    loader.mend_rules(WANTED)
    space.run("nft", f"add set inet {TABLE} earlier {{ type ipv4_addr; }}")
    texts = transactions(loader)
    assert loader.mend_rules(WANTED)
    (text,) = texts
    assert "delete table" not in text
    for part in ("far4 { 10.200.64.0/18 }", "closed4 { 10.200.64.3 }", "edges4 { 10.200.64.9 }", "tunnels { "):
        assert part in text
    assert is_right(loader)


def test_a_set_that_an_earlier_version_lacks_is_added_with_all_that_is_known(loader: Loader) -> None:
    """The tables are changed in place: an address behind a tunnel stays known in every moment."""
    whole = replacement.whole(WANTED).splitlines()
    loader.nft.run("".join(f"{line}\n" for line in whole if "@edges" not in line and " edges" not in line))
    texts = transactions(loader)
    assert loader.mend_rules(WANTED)
    (text,) = texts
    assert "delete table" not in text
    for part in ("far4 { 10.200.64.0/18 }", "closed4 { 10.200.64.3 }", "edges4 { 10.200.64.9 }"):
        assert part in text
    assert is_right(loader)


def test_a_set_of_another_kind_is_replaced_in_one_transaction(loader: Loader) -> None:
    loader.nft.run(
        replacement.whole(WANTED).replace("closed4 { type ipv4_addr;", "closed4 { type ipv4_addr; flags timeout;")
    )
    texts = transactions(loader)
    assert loader.mend_rules(WANTED)
    assert len(texts) == 1
    assert is_right(loader)


def test_what_others_publish_keeps_no_table_of_this_version_out(loader: Loader, space: Space) -> None:
    """The one transaction is refused: this node's part is loaded alone, then the other records one by one."""
    loader.mend_rules(WANTED)
    space.run("nft", f"add set inet {TABLE} earlier {{ type ipv4_addr; }}")
    bad = replace(WANTED, remotes=(*REMOTES, RemoteMember("zzz", frozenset({"10.200.64.3"}))))
    texts = transactions(loader)
    assert loader.mend_rules(bad)
    assert set(loader.refused) == {"network 'zzz'"}
    assert "earlier" not in space.run("nft", "list", "table", "inet", TABLE)
    assert "10.200.64.3" in space.run("nft", "list", "set", "inet", TABLE, "closed4")
    assert "far4 { 10.200.64.0/18 }" not in "".join(texts[2:-1])
    assert "far4 { 10.200.64.0/18 }" in texts[-1]


def test_transactions_of_our_own_are_known(loader: Loader, space: Space) -> None:
    loader.mend_rules(WANTED)
    generation = loader.nft.generation()
    assert loader.made(generation)
    space.run("nft", "add table ip zlt_other")
    assert loader.nft.generation() == generation + 1
    assert not loader.made(generation + 1)
    assert not loader.is_settled()
    assert loader.faults(WANTED) == []


def test_tables_that_are_switched_off_after_the_reading_are_not_taken_for_right(loader: Loader, space: Space) -> None:
    """Another program's transaction falls between the reading of the rules and the note that they are right."""
    loader.mend_rules(WANTED)
    loader.mend_elements(listing(loader), WANTED)
    read = loader._comparison.differences

    def read_and_overtaken(nft: Nft, desired: DesiredState) -> object:
        found = read(nft, desired)
        space.run("nft", f"add table inet {TABLE} {{ flags dormant; }}")
        return found

    loader._comparison.differences = read_and_overtaken  # type: ignore[assignment,method-assign]
    assert not loader.mend_rules(WANTED)
    loader._comparison.differences = read  # type: ignore[method-assign]
    since = loader.mark()
    loader.mend_elements(listing(loader), WANTED)
    loader.settle(since)
    assert not loader.is_settled()
    assert [fault.text for fault in loader.faults(WANTED)] == [f"table inet {TABLE} is dormant"]
    assert loader.mend_rules(WANTED)
    assert is_right(loader)
