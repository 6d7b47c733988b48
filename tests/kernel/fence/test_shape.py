"""A table's shape: the same as long as every rule is what it was, another one after any change to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cni.daemon.fence import ruleset
from cni.daemon.fence.model import TABLE, FenceBridge, FenceNode, FencePort
from cni.host.nft import Nft

from .spaces import Space

NODE = FenceNode(("10.200.0.0/16", "fd00:200::/48"), ("10.200.0.1",), ("zl-a-1-g",))
BRIDGE = FenceBridge("zl-a-1-web-b", "02:42:00:00:00:05")
PORT = FencePort("zl-0123456789-v", BRIDGE.name, "02:00:00:00:00:05", ("10.200.5.2",), None)
RED = FencePort("zl-1123456789-v", BRIDGE.name, "02:00:00:00:00:06", ("10.200.5.3",), "red")


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space("host")
    yield made
    made.close()


@pytest.fixture
def nft(space: Space) -> Iterator[Nft]:
    made = space.inside(Nft)
    made.run(ruleset.base(NODE) + ruleset.create_network("red"))
    yield made
    made.close()


def handle(space: Space, chain: str) -> str:
    """The handle of the first rule of a chain of the inet table."""
    said = space.run("nft", "-a", "list", "chain", "inet", TABLE, chain)
    return next(line.split("# handle ")[1].strip() for line in said.splitlines() if "comment" in line)


@pytest.mark.parametrize("family", ruleset.FAMILIES)
def test_both_tables_are_in_it(nft: Nft, family: str) -> None:
    before = nft.shape(TABLE)
    assert before
    nft.run(f"delete table {family} {TABLE}\n")
    after = nft.shape(TABLE)
    assert after is not None
    assert 0 < len(after) < len(before)


def test_what_changes_with_every_attach_is_no_part_of_it(nft: Nft, space: Space) -> None:
    before = nft.shape(TABLE)
    for change in (ruleset.open_bridge(BRIDGE), ruleset.add_port(PORT), ruleset.add_port(RED)):
        nft.run(change)
    space.run("nft", "reset", "counters")
    assert nft.shape(TABLE) == before
    nft.run(ruleset.remove_port(PORT))
    assert nft.shape(TABLE) == before


def test_other_peoples_tables_are_no_part_of_it(nft: Nft, space: Space) -> None:
    before = nft.shape(TABLE)
    space.run("nft", "add table inet other; add chain inet other forward; add rule inet other forward accept")
    space.run("nft", f"add table ip {TABLE}; add chain ip {TABLE} forward")  # no family of ours
    space.run("nft", f"add table inet {TABLE}x")
    assert nft.shape(TABLE) == before


CHANGES = {
    "a rule more": "add rule inet {table} forward accept",
    "a rule in front": "insert rule inet {table} forward accept",
    "a rule less": "delete rule inet {table} forward handle {handle}",
    "a rule replaced": "replace rule inet {table} forward handle {handle} accept",
    "a chain flushed": "flush chain bridge {table} port",
    "a chain more": "add chain bridge {table} strange",
    "a policy": "add chain inet {table} forward {{ policy drop; }}",
    "a set more": "add set inet {table} strange {{ type ipv4_addr; }}",
    "the table asleep": "add table inet {table} {{ flags dormant; }}",
    "made again": "",
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_to_the_rules_changes_it(nft: Nft, space: Space, change: str) -> None:
    before = nft.shape(TABLE)
    if change == "made again":
        nft.run(ruleset.uninstall())
        nft.run(ruleset.base(NODE) + ruleset.create_network("red"))
    else:
        space.run("nft", CHANGES[change].format(table=TABLE, handle=handle(space, "forward")))
    after = nft.shape(TABLE)
    assert after is not None
    assert after != before


def test_nothing_there(space: Space) -> None:
    nft = space.inside(Nft)
    try:
        assert nft.shape(TABLE) == ()
    finally:
        nft.close()
