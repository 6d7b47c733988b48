"""`trace`: the rules that a real packet meets, and nothing left of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.kernel import toolnode
from tests.kernel.toolnode import Node, until

CONTAINERS = {"red1": ("web", "red"), "red2": ("db", "red"), "blue1": ("db", "blue")}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with toolnode.running(tmp_path_factory.mktemp("node"), CONTAINERS) as made:
        yield made


def tables(node: Node) -> int:
    return node.host.nft("list tables").count("zlayer_trace")


def test_a_packet_that_passes(node: Node) -> None:
    code, out = node.tool("trace", "red1", "red2", "80", "--json")
    found = json.loads(out)
    assert code == 0 and found["sent"]
    (packet, *_) = found["packets"]
    assert not packet["dropped"]
    met = [(step["family"], step["chain"], step["rule"]) for step in packet["steps"] if step["table"] == "zlayer_cni"]
    rule = node.why("red1", "red2", "80")["paths"][0]["rule"]
    assert (rule["family"], rule["chain"], rule["name"]) in met
    assert ("bridge", "prerouting", "port") in met
    assert tables(node) == 0


@pytest.mark.parametrize("six", [(), ("-6",)])
def test_a_packet_that_is_dropped_ends_at_the_rule_that_why_names(node: Node, six: tuple[str, ...]) -> None:
    code, out = node.tool("trace", "red1", "blue1", "80/udp", "--json", *six)
    found = json.loads(out)
    assert code == 1
    (packet, *_) = found["packets"]
    last = packet["steps"][-1]
    (rule,) = [p["rule"] for p in node.why("red1", "blue1")["paths"] if (p["family"] == 6) == bool(six)]
    assert packet["dropped"] and last["verdict"] == "drop"
    assert (last["family"], last["chain"], last["rule"]) == (rule["family"], rule["chain"], rule["name"])
    text = node.tool("trace", "red1", "blue1", "80/udp", *six)[1]
    assert f'dropped by rule "{rule["name"]}" of table {rule["family"]} zlayer_cni' in text


def test_another_programs_rule_is_shown_as_its_text(node: Node) -> None:
    node.host.nft("add table inet other { chain f { type filter hook forward priority 7; udp dport 81 drop; }; }")
    try:
        code, out = node.tool("trace", "red1", "red2", "81/udp", "--json")
    finally:
        node.host.nft("delete table inet other")
    last = json.loads(out)["packets"][0]["steps"][-1]
    assert code == 1
    assert (last["table"], last["chain"], last["rule"]) == ("other", "f", "udp dport 81 drop")


def test_it_waits_for_a_packet_and_says_that_none_came(node: Node) -> None:
    code, out = node.tool("trace", "red1", "red2", "82", "--wait", "--seconds", "0.5")
    assert code == 1 and out.startswith("no packet from ")


def test_a_killed_trace_leaves_nothing(node: Node) -> None:
    process = node.program("trace", "red1", "red2", "83", "--wait", "--seconds", "30", "--run-dir", node.run_dir)
    assert until(lambda: tables(node) == 2, 10)
    process.kill()
    process.wait(10)
    assert until(lambda: tables(node) == 0, 5)
    assert node.ask("status")["problems"] == []
